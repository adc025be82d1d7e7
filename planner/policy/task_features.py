"""What the policy is told of tables and shards before anything is placed, free of the task's scale."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planner.memory import capacity_bytes
from planner.policy.even_step import LEAST_MS
from planner.policy.options import Options
from planner.problem import PlanningProblem
from planner.search.placement import Unit
from planner.sharding import TYPE_ORDER

TABLE_FEATURES = (
    "log_rows",
    "log_cols",
    "log_ids",
    "log_distinct",
    "log_bytes",
    "bytes_over_capacity",
    "log_own_ms",
    "own_over_level",
    "log_own_over_level",
    "num_tables",
)
"""What a unit is, on its own scale and relative to the devices."""

SHARD_FEATURES = (
    "share_of_level",
    "log_share",
    "log_shards",
    "bytes_over_capacity",
    "log_rows",
    "log_cols",
    "log_ids",
    *(f"is_{each}" for each in TYPE_ORDER),
)
"""What a shard of an option is to its rank; the first one weighs it in the rank's set."""

MOST_SHARE, LEAST_SHARE = 8.0, 1e-6
"""Shares of a level or of a capacity are cut off at the one, their logarithms at the other."""


def table_features(
    problem: PlanningProblem,
    units: Sequence[Unit],
    own_ms: NDArray[np.float64],
    least_bytes: NDArray[np.int64],
    level_ms: float,
) -> NDArray[np.float32]:
    """`TABLE_FEATURES` [T, F]: means over a unit's tables of what is no sum.

    Args:
        problem: The task.
        units: T units.
        own_ms: float64 [T], as in `Tasks`.
        least_bytes: int64 [T], as in `Tasks`.
        level_ms: Of the task, as in `Tasks`.
    """
    arrays, samples = problem.arrays, problem.arrays.samples
    members = [[problem.index_of[name] for name in unit.names] for unit in units]
    per_table = np.stack([arrays.num_rows, arrays.num_cols, samples * arrays.ids_per_sample, arrays.distinct_rows])
    rows, cols, ids, distinct = np.stack([per_table[:, at].mean(axis=1) for at in members], axis=1)
    share = own_ms / level_ms
    columns = {
        "log_rows": np.log1p(rows) / 10,
        "log_cols": np.log(cols) / 5,
        "log_ids": np.log1p(ids) / 10,
        "log_distinct": np.log1p(distinct) / 10,
        "log_bytes": np.log1p(least_bytes) / 20,
        "bytes_over_capacity": np.minimum(least_bytes / _mean_capacity(problem), MOST_SHARE),
        "log_own_ms": np.log(np.maximum(own_ms, LEAST_MS)) / 5,
        "own_over_level": np.minimum(share, MOST_SHARE),
        "log_own_over_level": np.log(np.maximum(share, LEAST_SHARE)) / 5,
        "num_tables": np.log([len(at) for at in members]),
    }
    return np.stack([columns[name] for name in TABLE_FEATURES], axis=1).astype(np.float32)


def shard_features(
    problem: PlanningProblem, options: Options, tables: NDArray[np.float32], share: NDArray[np.float64]
) -> NDArray[np.float32]:
    """`SHARD_FEATURES` [T, O, F] of the first shard of each option.

    Sizes are the table's; the number of shards tells how they are cut.

    Args:
        problem: The task.
        options: Of its units, [T, O].
        tables: float32 [T, F], `TABLE_FEATURES` of the units.
        share: float64 [T, O], what the shards take of the task's level.
    """
    share = np.clip(share, 0.0, MOST_SHARE)
    of_table = {name: np.broadcast_to(tables[:, index, None], share.shape) for index, name in enumerate(TABLE_FEATURES)}
    columns = {
        "share_of_level": share,
        "log_share": np.log(np.maximum(share, LEAST_SHARE)) / 5,
        "log_shards": np.log(options.num_shards) / 3,
        "bytes_over_capacity": options.num_bytes[..., 0] / _mean_capacity(problem),
        **{name: of_table[name] for name in ("log_rows", "log_cols", "log_ids")},
        **{f"is_{each}": options.type_code == code for code, each in enumerate(TYPE_ORDER)},
    }
    return np.stack([columns[name] for name in SHARD_FEATURES], axis=-1).astype(np.float32)


def _mean_capacity(problem: PlanningProblem) -> float:
    """Bytes, at least one."""
    return max(1.0, float(capacity_bytes(problem).mean()))
