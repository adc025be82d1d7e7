"""Blocks of measured steps as a run delivers them, with known figures."""

from typing import Any

import numpy as np

from cluster.telemetry import Block
from dlrm.step_columns import StepColumns
from planner.cost.estimator import COMMS_PHASES

COLUMNS = StepColumns().names


def steps_block(first: int, num_steps: int, ranks: int = 2, slow_rank: int | None = None, **columns: Any) -> Block:
    """Steps of 20 ms: every phase 1 ms; a slow rank's lookups take twice as long, the others wait for it.

    `columns` sets columns by name to what broadcasts to [steps, ranks].
    """
    rows = np.zeros((num_steps, ranks, len(COLUMNS)))
    times = [index for index, name in enumerate(COLUMNS) if name.endswith("_ms")]
    rows[..., times] = 1.0
    rows[..., COLUMNS.index("step_ms")] = 20.0
    rows[..., COLUMNS.index("ids")] = 1000.0 + np.arange(ranks)
    for name in (f"{phase}_bytes" for phase in COMMS_PHASES):
        rows[..., COLUMNS.index(name)] = 4096.0
    rows[..., COLUMNS.index("peak_bytes")] = 1e9
    if slow_rank is not None:
        others = [rank for rank in range(ranks) if rank != slow_rank]
        rows[:, slow_rank, COLUMNS.index("lookup_forward_ms")] = 2.0
        rows[:, others, COLUMNS.index("output_dist_forward_ms")] = 2.0
    for name, values in columns.items():
        rows[..., COLUMNS.index(name)] = values
    return Block("steps", {"columns": list(COLUMNS)}, np.arange(first, first + num_steps), rows)


def shards_block(steps: list[int], ids: dict[tuple[int, str], float], distinct: float = np.nan) -> Block:
    """Sampled steps in which each (rank, table) looked up so many ids."""
    labels = {
        "columns": ["ids", "distinct_ids"],
        "ranks": [rank for rank, _ in ids],
        "tables": [table for _, table in ids],
        "sharding_types": ["table_wise"] * len(ids),
    }
    rows = np.full((len(steps), len(ids), 2), distinct)
    rows[..., 0] = list(ids.values())
    return Block("shards", labels, np.array(steps), rows)


def window(step: int = 10, auc: float | None = 0.7, slowest: float = 21.0) -> dict[str, Any]:
    """A record of kind window."""
    return {
        "kind": "window",
        "step": step,
        "total_steps": 100,
        "epoch": 0,
        "loss": 0.5,
        "ne": 0.9,
        "auc": auc,
        "calibration": 1.0,
        "samples": 5120,
        "qps": 1000.0,
        "step_ms": {"fastest": 20.0, "median": 20.5, "slowest": slowest},
    }


def evaluation(ne: float = 0.8) -> dict[str, Any]:
    """A record of kind evaluation."""
    return {"kind": "evaluation", "step": 10, "loss": 0.5, "ne": ne, "auc": 0.6, "calibration": 1.0, "samples": 5}


def resharding_records() -> list[dict[str, Any]]:
    """A decision to move, the migration and its outcome."""
    decision = {
        "kind": "decision",
        "step": 45,
        "move": 1,
        "trigger": "verdict",
        "cause": "hot_table",
        "rank": 1,
        "answer": "move",
        "reason": "it pays",
        "predicted_gain_ms": 3.0,
        "moved_bytes": 2**21,
        "price_ms": 150.0,
        "remaining_steps": 700,
        "step_ms": 24.0,
        "planned_step_ms": 21.0,
        "message": "hot_table on rank 1: move: it pays",
    }
    migration = {
        "kind": "migration",
        "step": 46,
        "move": 1,
        "is_committed": True,
        "reason": "it pays",
        "moved_bytes": 2**21,
        "pause_ms": 120.0,
        "transfer_ms": 20.0,
        "extra_peak_bytes": 2**22,
        "announced_bytes": 2**22,
        "staging": "device",
        "fault": None,
        "fault_rank": None,
        "message": "moved 2.0 MiB",
    }
    outcome = {
        "kind": "outcome",
        "step": 99,
        "move": 1,
        "promised_gain_ms": 3.0,
        "realised_gain_ms": 2.5,
        "is_rolled_back": False,
        "message": "move 1: 2.50 ms a step gained",
    }
    return [decision, migration, outcome]
