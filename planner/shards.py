"""Shards as arrays, the form in which memory and cost are computed for thousands of tables."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.sharding import TYPE_ORDER, ShardingOption, ShardingType

TYPE_CODE = {sharding_type: code for code, sharding_type in enumerate(TYPE_ORDER)}
"""Position of each sharding type in `TYPE_ORDER`."""


@dataclass(frozen=True)
class ShardArrays:
    """S shards, one entry each.

    Attributes:
        table: int64 [S], position of the table in the workload.
        rank: int64 [S].
        type_code: int64 [S], `TYPE_CODE` of the sharding type.
        num_rows: float64 [S].
        num_cols: float64 [S].
    """

    table: NDArray[np.int64]
    rank: NDArray[np.int64]
    type_code: NDArray[np.int64]
    num_rows: NDArray[np.float64]
    num_cols: NDArray[np.float64]

    def __len__(self) -> int:
        """Number of shards."""
        return len(self.table)


def plan_shards(problem: PlanningProblem, plan: ShardingPlan) -> ShardArrays:
    """All shards of a plan, in its order; every table of the plan must be one of the problem's."""
    rows = [
        (
            problem.index_of[table.name],
            shard.rank,
            TYPE_CODE[table.sharding_type],
            shard.num_rows,
            shard.num_cols,
        )
        for table in plan.tables
        for shard in table.shards
    ]
    columns = np.array(rows, dtype=np.int64).reshape(-1, 5).T
    return ShardArrays(columns[0], columns[1], columns[2], columns[3].astype(np.float64), columns[4].astype(np.float64))


def option_shards(problem: PlanningProblem, options: Sequence[ShardingOption]) -> ShardArrays:
    """The shards of options one after another; free types stand on the first rank of their choice."""
    counts = [option.num_shards for option in options]
    sizes = [option.sizes() for option in options]
    ranks = [option.ranks[:1] * option.num_shards if option.is_free else option.ranks for option in options]
    return ShardArrays(
        table=np.repeat([problem.index_of[option.table.name] for option in options], counts),
        rank=np.concatenate([np.asarray(each, dtype=np.int64) for each in ranks]),
        type_code=np.repeat([TYPE_CODE[option.sharding_type] for option in options], counts),
        num_rows=np.concatenate([rows for rows, _ in sizes]),
        num_cols=np.concatenate([cols for _, cols in sizes]),
    )


def whole_tables(problem: PlanningProblem, sharding_type: ShardingType) -> ShardArrays:
    """One shard a table [T] that is all of it: table-wise, or one rank's copy of data_parallel."""
    num_tables = len(problem.workload.tables)
    return ShardArrays(
        table=np.arange(num_tables),
        rank=np.zeros(num_tables, dtype=np.int64),
        type_code=np.full(num_tables, TYPE_CODE[sharding_type]),
        num_rows=problem.arrays.num_rows,
        num_cols=problem.arrays.num_cols,
    )
