"""What a run's telemetry comes to: every figure of every rank as medians, read file by file and batch by batch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.imbalance.signals import StepSignals, split_steps
from cluster.telemetry import Block
from launcher.run_dir import RunDir
from launcher.telemetry_file import iterate_blocks
from planner.cost.estimator import COMMS_PHASES

WINDOW_STEPS = 10
"""Steps whose median stands for them: long enough to be quiet, short enough to show a change as it comes."""

MOST_WINDOWS = 2000
"""Windows that are kept for medians, evenly spread over a longer run: of 256 ranks they take 140 MB."""

HOTTEST_TABLES = 10
"""Tables that a report names."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Steps of one file, `WINDOW_STEPS` at a time as they were delivered.

    Attributes:
        columns: C names: those of the file, `work_ms`, `waiting_ms`, and of every collective `transfer_ms/NAME`
            (the same on all ranks) and `waiting_ms/NAME`.
        values: float64 [N, W, C], medians over the steps of a window, of transfers and waiting means, since of two
            ranks often neither waits in most steps; N is below 2 x MOST_WINDOWS.
        imbalances: float64, of every window in which there were forward lookups: max / mean over ranks of these.
        num_steps: Steps that are in the file.
    """

    columns: tuple[str, ...]
    values: NDArray[np.float64]
    imbalances: NDArray[np.float64]
    num_steps: int

    def column(self, name: str) -> NDArray[np.float64]:
        """One figure of every window and rank [N, W]."""
        return self.values[..., self.columns.index(name)]

    def typical(self, name: str) -> NDArray[np.float64]:
        """One figure of every rank [W], the median over windows."""
        return np.asarray(np.median(self.column(name), axis=0))


def read_windows(run: RunDir) -> list[Windows]:
    """The windows of each telemetry file of a run, oldest first; empty where there is no telemetry."""
    found = [_windows(iterate_blocks(path)) for path in run.telemetry_files("steps")]
    return [windows for windows in found if windows is not None]


def describe_collectives(windows: Windows) -> list[dict[str, Any]]:
    """Each collective: what it takes, who waits least (and so is waited for) and most, bytes of every rank's input."""
    return [_describe_collective(windows, name) for name in COMMS_PHASES]


def hottest_tables(run: RunDir) -> list[dict[str, Any]]:
    """The tables with the most ids a step under the last plan, most first: means over sampled steps, all shards.

    Its keys are the table, where it is, and the columns of the series; `distinct_ids` sums what each shard found, None
    where it was never counted.
    """
    files = run.telemetry_files("shards")
    labels, means = _shard_means(iterate_blocks(files[-1])) if files else ({}, np.zeros((0, 2)))
    if not len(means):
        return []
    names, table_of = np.unique(np.asarray(labels["tables"]), return_inverse=True)
    sums = np.zeros((len(names), means.shape[1]))
    np.add.at(sums, table_of, means)
    order = np.argsort(-sums[:, 0], kind="stable")[:HOTTEST_TABLES]
    return [_describe_table(labels, str(names[index]), sums[index]) for index in order]


def _windows(blocks: Iterable[Block]) -> Windows | None:
    columns: tuple[str, ...] = ()
    kept, imbalances, num_steps = _Spread(), [], 0
    for block in _in_windows(blocks):
        columns, rows = _with_signals(block)
        values = _reduce(columns, rows.reshape(-1, min(len(rows), WINDOW_STEPS), *rows.shape[1:]))
        imbalances.append(_imbalances(values[..., columns.index("lookup_forward_ms")]))
        kept.add(values)
        num_steps += len(rows)
    return Windows(columns, kept.values, np.concatenate(imbalances), num_steps) if num_steps else None


def _reduce(columns: Sequence[str], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """One row a window [N, W, C] of its steps [N, S, W, C]."""
    is_mean = [name.startswith(("waiting_ms", "transfer_ms")) for name in columns]
    return np.where(is_mean, rows.mean(axis=1), np.median(rows, axis=1))


class _Spread:
    """Keeps every one of the arrays that come, then every second, fourth, ...: never as many as 2 x MOST_WINDOWS."""

    def __init__(self) -> None:
        self._kept: list[NDArray[np.float64]] = []
        self._stride, self._num_seen = 1, 0

    def add(self, values: NDArray[np.float64]) -> None:
        """More of them, along the first axis."""
        for value in values[-self._num_seen % self._stride :: self._stride]:
            self._kept.append(value)
        self._num_seen += len(values)
        while len(self._kept) >= 2 * MOST_WINDOWS:
            self._kept, self._stride = self._kept[::2], 2 * self._stride

    @property
    def values(self) -> NDArray[np.float64]:
        """Those that were kept."""
        return np.stack(self._kept)


def _imbalances(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Max / mean over ranks of values [N, W], where there are any."""
    mean = values.mean(axis=1)
    return values[mean > 0].max(axis=1) / mean[mean > 0]


def _in_windows(blocks: Iterable[Block]) -> Iterator[Block]:
    """The same rows in blocks of whole windows; what is left at the end is a last, shorter window."""
    rest: Block | None = None
    for block in blocks:
        if rest is not None:
            steps = np.concatenate([rest.steps, block.steps])
            block = Block(block.name, block.labels, steps, np.concatenate([rest.rows, block.rows]))
        whole = len(block.steps) // WINDOW_STEPS * WINDOW_STEPS
        if whole:
            yield Block(block.name, block.labels, block.steps[:whole], block.rows[:whole])
        rest = Block(block.name, block.labels, block.steps[whole:], block.rows[whole:])
    if rest is not None and len(rest.steps):
        yield rest


def _with_signals(block: Block) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """The columns of a block and those that are derived from them, with their values [S, W, C]."""
    columns = tuple(block.labels["columns"])
    signals = split_steps(block.steps, block.rows, columns)
    derived = _derived_columns(signals)
    values = np.concatenate([block.rows, np.stack(list(derived.values()), axis=-1)], axis=-1)
    return (*columns, *derived), values


def _derived_columns(signals: StepSignals) -> dict[str, NDArray[np.float64]]:
    waiting = signals.waiting_ms
    transfer = np.broadcast_to(signals.transfer_ms[:, None, :], waiting.shape)
    return {
        "work_ms": signals.work_ms,
        "waiting_ms": waiting.sum(axis=2),
        **{f"transfer_ms/{name}": transfer[..., i] for i, name in enumerate(COMMS_PHASES)},
        **{f"waiting_ms/{name}": waiting[..., i] for i, name in enumerate(COMMS_PHASES)},
    }


def _describe_collective(windows: Windows, name: str) -> dict[str, Any]:
    waiting_ms = windows.typical(f"waiting_ms/{name}")
    least, most = int(waiting_ms.argmin()), int(waiting_ms.argmax())
    return {
        "name": name,
        "transfer_ms": float(windows.typical(f"transfer_ms/{name}")[0]),
        "waits_least": {"rank": least, "waiting_ms": float(waiting_ms[least])},
        "waits_most": {"rank": most, "waiting_ms": float(waiting_ms[most])},
        "bytes": windows.typical(f"{name}_bytes").tolist(),
    }


def _shard_means(blocks: Iterable[Block]) -> tuple[Mapping[str, Any], NDArray[np.float64]]:
    """The labels of S shards, and means [S, 2] over windows of the counts that are there, NaN where there is none."""
    labels: Mapping[str, Any] = {}
    sums, num_counted = np.zeros((0, 2)), np.zeros((0, 2))
    for block in blocks:
        is_counted = np.isfinite(block.rows)
        if not labels:
            labels, sums, num_counted = block.labels, np.zeros(block.rows.shape[1:]), np.zeros(block.rows.shape[1:])
        sums, num_counted = sums + np.nansum(block.rows, axis=0), num_counted + is_counted.sum(axis=0)
    return labels, np.divide(sums, num_counted, out=np.full_like(sums, np.nan), where=num_counted > 0)


def _describe_table(labels: Mapping[str, Any], name: str, sums: np.ndarray) -> dict[str, Any]:
    of_table = [index for index, table in enumerate(labels["tables"]) if table == name]
    return {
        "name": name,
        "sharding_type": labels["sharding_types"][of_table[0]],
        "ranks": [labels["ranks"][index] for index in of_table],
        **{
            column: None if np.isnan(value) else float(value)
            for column, value in zip(labels["columns"], sums, strict=True)
        },
    }
