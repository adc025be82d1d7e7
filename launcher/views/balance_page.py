"""TensorBoard's figures of the balance: which scalars a block of steps gives, and the page that lays them out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.imbalance.signals import StepSignals
from cluster.telemetry import Block
from planner.cost.estimator import COMMS_PHASES, PlanCost

MOST_RANK_LINES = 32
"""Beyond this many ranks a chart shows quantiles over ranks instead of a line a rank."""

QUANTILES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}
"""The lines that then stand in place of the ranks."""

RANK_COLUMNS = {
    "step_ms": "step_ms",
    "data_wait_ms": "data_wait_ms",
    "lookup_ms": "lookup_forward_ms",
    "peak_bytes": "peak_bytes",
}
"""Tags with a line a rank, and the columns that they show as they are."""


def _lines(*tags: str) -> list[object]:
    return ["Multiline", list(tags)]


def _margin(name: str) -> list[object]:
    """A band: the middle, its lower and its upper end."""
    return ["Margin", [f"balance/{name}_mean_ms", f"balance/{name}_least_ms", f"balance/{name}_most_ms"]]


LAYOUT = {
    "balance": {
        "imbalance (max / mean over ranks)": _lines("balance/lookup_imbalance", "balance/work_imbalance"),
        "step ms: mean, fastest and slowest rank": _margin("step"),
        "own work ms: mean, least and most": _margin("work"),
        "own work ms of every rank": _lines("work_ms/"),
        "phases ms of the slowest rank": _lines("phase_ms/"),
    },
    "waiting": {
        "share of the step, mean over ranks": _lines("balance/waiting_share"),
        "waiting ms of every rank": _lines("waiting_ms/"),
        **{
            f"{name} ms: transfer, and waiting (mean over ranks)": _lines(
                f"balance/transfer_ms/{name}", f"balance/waiting_ms/{name}"
            )
            for name in COMMS_PHASES
        },
    },
    "estimate against measurement": {
        "step ms": _lines("estimate/step_ms", "balance/step_mean_ms"),
        "forward lookups ms of every rank": _lines("estimate/lookup_ms/", "lookup_ms/"),
    },
    "re-sharding": {
        "gain ms a step: predicted, realised": _lines("resharding/predicted_gain_ms", "resharding/realised_gain_ms"),
        "pause ms": _lines("resharding/pause_ms"),
        "moved bytes": _lines("resharding/moved_bytes"),
    },
    "learning": {
        "loss": _lines("train/loss", "held_out/loss"),
        "NE": _lines("train/ne", "held_out/ne"),
        "AUC": _lines("train/auc", "held_out/auc"),
    },
}
"""The custom-scalars page. The lines of a chart are patterns of tags, the same for any number of ranks, so that several
runs have one page."""


@dataclass(frozen=True, eq=False)
class Promise:
    """What the present plan promised.

    Attributes:
        step_ms: A step.
        lookup_ms: float64 [W], forward lookups of each rank.
    """

    step_ms: float
    lookup_ms: NDArray[np.float64]

    @classmethod
    def of(cls, cost: PlanCost) -> "Promise":
        """The promise of a plan with this estimated cost."""
        return cls(cost.step_ms, cost.phase("lookup_forward"))


def block_scalars(block: Block, signals: StepSignals, promise: Promise | None) -> dict[str, float]:
    """Every scalar of a block of the series `steps` and its signals, by tag: means over its steps, of memory the most.

    A tag of ranks has at most `MOST_RANK_LINES` lines.
    """
    columns = list(block.labels["columns"])
    mean = block.rows.mean(axis=0)
    mean[:, columns.index("peak_bytes")] = block.rows[..., columns.index("peak_bytes")].max(axis=0)
    found: dict[str, float] = {}
    for tag, column in RANK_COLUMNS.items():
        found |= rank_lines(tag, mean[:, columns.index(column)])
    found |= rank_lines("work_ms", signals.work_ms.mean(axis=0))
    found |= rank_lines("waiting_ms", signals.waiting_ms.sum(axis=2).mean(axis=0))
    found |= _phases(columns, mean) | _balance(mean[:, columns.index("step_ms")], signals)
    found |= imbalance("lookup_imbalance", mean[:, columns.index("lookup_forward_ms")])
    if promise is not None:
        found |= {"estimate/step_ms": promise.step_ms} | rank_lines("estimate/lookup_ms", promise.lookup_ms)
    return found


def resharding_scalars(record: dict[str, Any]) -> dict[str, float]:
    """The scalars of a decision to move, of a migration that was committed, or of its outcome, by tag."""
    match record:
        case {"kind": "decision", "answer": "move"}:
            return {"resharding/predicted_gain_ms": record["predicted_gain_ms"]}
        case {"kind": "migration", "is_committed": True}:
            return {f"resharding/{name}": record[name] for name in ("moved_bytes", "pause_ms")}
        case {"kind": "outcome"}:
            return {"resharding/realised_gain_ms": record["realised_gain_ms"]}
    return {}


def rank_lines(tag: str, values: NDArray[np.float64]) -> dict[str, float]:
    """A figure of every rank [W] as scalars by tag: a line a rank, of many ranks their quantiles."""
    if len(values) <= MOST_RANK_LINES:
        return {f"{tag}/rank_{rank:02d}": float(value) for rank, value in enumerate(values)}
    found = np.quantile(values, list(QUANTILES.values()))
    return {f"{tag}/{name}": float(value) for name, value in zip(QUANTILES, found, strict=True)}


def _phases(columns: Sequence[str], mean: NDArray[np.float64]) -> dict[str, float]:
    """The slowest rank's time in each phase, and in its parts."""
    is_phase = {name: name.partition("/")[0].endswith("_ms") and name != "step_ms" for name in columns}
    return {
        f"phase_ms/{name.replace('_ms', '', 1)}": float(mean[:, index].max())
        for index, name in enumerate(columns)
        if is_phase[name]
    }


def _balance(step_ms: NDArray[np.float64], signals: StepSignals) -> dict[str, float]:
    work_ms, waiting_ms = signals.work_ms.mean(axis=0), signals.waiting_ms.mean(axis=(0, 1))
    transfer_ms = signals.transfer_ms.mean(axis=0)
    return {
        **_band("step", step_ms),
        **_band("work", work_ms),
        **imbalance("work_imbalance", work_ms),
        "balance/waiting_share": float(waiting_ms.sum() / step_ms.mean()),
        **{f"balance/transfer_ms/{name}": float(transfer_ms[i]) for i, name in enumerate(COMMS_PHASES)},
        **{f"balance/waiting_ms/{name}": float(waiting_ms[i]) for i, name in enumerate(COMMS_PHASES)},
    }


def _band(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    return {
        f"balance/{name}_mean_ms": float(values.mean()),
        f"balance/{name}_least_ms": float(values.min()),
        f"balance/{name}_most_ms": float(values.max()),
    }


def imbalance(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    """Max / mean over ranks, nothing where no rank has any."""
    mean = values.mean()
    return {f"balance/{name}": float(values.max() / mean)} if mean > 0 else {}
