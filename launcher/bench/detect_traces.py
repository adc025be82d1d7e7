"""Traces of steps with and without planted faults, and the file that keeps recorded ones.

A file is an .npz without pickled objects. `about` is an array of strings, one JSON object a trace: `kind`, `seed`,
`columns` (of its rows), `shards` (labels of the series "shards", or null), `fault` (`cause`, `rank`, `tables`, or
null) and `first_fault_step` (or null). The arrays of trace N are

    N.steps [S], N.rows [S, W, C]                the series "steps" (rows as float32)
    N.shard_steps [M], N.shard_rows [M, K, 2]    the series "shards", where there is one
    N.send_ms [W, W]                             a link probe made while the fault was there, where there is one
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.imbalance.verdict import Cause
from cluster.telemetry import Block


@dataclass(frozen=True)
class Fault:
    """What was planted and ought to be found.

    Attributes:
        cause: The verdict's.
        rank: Whose; of a slow link the sender.
        tables: The hot ones.
        first_step: The first step that has it; from there on all have.
    """

    cause: Cause
    rank: int
    tables: tuple[str, ...]
    first_step: int


@dataclass(frozen=True, eq=False)
class Trace:
    """One run.

    Attributes:
        kind: What was planted, as the report names it: "slow_lookups", "clean", ...
        seed: Of the run.
        steps: All rows of the series "steps".
        shards: All rows of the series "shards", or None where it was not recorded.
        fault: What ought to be found; None in harmless runs.
        send_ms: A link probe [W, W] made under the fault, row = sender; None where none was made.
    """

    kind: str
    seed: int
    steps: Block
    shards: Block | None = None
    fault: Fault | None = None
    send_ms: NDArray[np.float64] | None = None

    @property
    def num_ranks(self) -> int:
        """W."""
        return int(self.steps.rows.shape[1])


def save_traces(path: Path, traces: Sequence[Trace]) -> None:
    """Write the traces beside `path` and rename, so that there is never half a file."""
    arrays: dict[str, Any] = {"about": np.array([json.dumps(_describe(trace)) for trace in traces])}
    for number, trace in enumerate(traces):
        arrays[f"{number}.steps"] = trace.steps.steps
        arrays[f"{number}.rows"] = trace.steps.rows.astype(np.float32)
        if trace.shards is not None:
            arrays[f"{number}.shard_steps"] = trace.shards.steps
            arrays[f"{number}.shard_rows"] = trace.shards.rows.astype(np.float32)
        if trace.send_ms is not None:
            arrays[f"{number}.send_ms"] = trace.send_ms
    written = path.with_suffix(".part.npz")
    np.savez_compressed(written, **arrays)
    written.replace(path)


def load_traces(path: Path) -> tuple[Trace, ...]:
    """The traces of a file that `save_traces` wrote.

    Raises ValueError with what is wrong where it is another file, OSError where it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about = [json.loads(str(text)) for text in arrays["about"]]
            return tuple(_restore(number, each, arrays) for number, each in enumerate(about))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected traces as `bench detect --record` writes them, found {error}") from error


def _describe(trace: Trace) -> dict[str, Any]:
    fault = trace.fault
    return {
        "kind": trace.kind,
        "seed": trace.seed,
        "columns": list(trace.steps.labels["columns"]),
        "shards": None
        if trace.shards is None
        else {key: list(trace.shards.labels[key]) for key in trace.shards.labels},
        "fault": fault and {"cause": fault.cause, "rank": fault.rank, "tables": list(fault.tables)},
        "first_fault_step": fault and fault.first_step,
    }


def _restore(number: int, about: dict[str, Any], arrays: Any) -> Trace:
    def block(name: str, labels: dict[str, Any], steps: str, rows: str) -> Block:
        return Block(name, labels, arrays[f"{number}.{steps}"], arrays[f"{number}.{rows}"].astype(np.float64), 0)

    fault, shards, send_ms = about["fault"], about["shards"], f"{number}.send_ms"
    return Trace(
        kind=about["kind"],
        seed=about["seed"],
        steps=block("steps", {"columns": about["columns"]}, "steps", "rows"),
        shards=None if shards is None else block("shards", shards, "shard_steps", "shard_rows"),
        fault=None
        if fault is None
        else Fault(Cause(fault["cause"]), fault["rank"], tuple(fault["tables"]), about["first_fault_step"]),
        send_ms=arrays.get(send_ms),
    )
