"""Plans between two placements of the same tables, cut so that as little as possible moves."""

import numpy as np
from numpy.typing import NDArray

from planner.plan import ShardingPlan, TablePlacement
from planner.problem import PlanningProblem
from planner.search.assignment import Assignment
from planner.sharding import Shard, ShardingType
from planner.tables import TableSpec, Workload
from planner.transfers import Transfer, table_transfers, transfer_bytes


def least_moved(problem: PlanningProblem, plan: ShardingPlan, goal: Assignment) -> ShardingPlan:
    """The goal as a plan whose column shards stand in an order that keeps much of what ranks hold under `plan`."""
    before = {table.name: table for table in plan.tables}
    return ShardingPlan(
        plan.world_size,
        tuple(_least_moved(problem.workload, before[table.name], table) for table in goal.to_plan().tables),
    )


def mixed(plan: ShardingPlan, goal: ShardingPlan, names: set[str]) -> ShardingPlan:
    """A plan with the tables of these names as in `goal`, all others as they are."""
    after = {table.name: table for table in goal.tables}
    return ShardingPlan(
        plan.world_size, tuple(after[table.name] if table.name in names else table for table in plan.tables)
    )


def table_bytes(workload: Workload, old: TablePlacement, new: TablePlacement) -> int:
    """Bytes of a table that change their rank."""
    pieces = (piece for piece in table_transfers(old, new) if not piece.stays)
    return sum(transfer_bytes(piece, workload) for piece in pieces)


def whole_bytes(workload: Workload, table: TableSpec) -> int:
    """Bytes of all of a table, with its optimizer state."""
    return transfer_bytes(Transfer(table.name, 0, 1, 0, table.num_embeddings, 0, table.embedding_dim), workload)


def _least_moved(workload: Workload, old: TablePlacement, new: TablePlacement) -> TablePlacement:
    """Of three orders of column shards the one that moves least: by rank, newcomers after those that stay, and before.

    Ranks that stay keep the order of the columns that they hold.
    """
    if new.sharding_type is not ShardingType.COLUMN_WISE:
        return new
    centres = [_held_centre(old, shard.rank) for shard in new.shards]
    orders = [np.argsort(np.nan_to_num(centres, nan=missing), kind="stable") for missing in (np.inf, -1.0)]
    cuts = [new, *(_cut(new, order) for order in orders)]
    return min(cuts, key=lambda cut: table_bytes(workload, old, cut))


def _held_centre(old: TablePlacement, rank: int) -> float:
    """The mean column that a rank holds of a table; NaN where it holds none."""
    held = [(shard.col_offset + shard.num_cols / 2, shard.num_cols) for shard in old.shards if shard.rank == rank]
    num_cols = sum(width for _, width in held)
    return sum(centre * width for centre, width in held) / num_cols if held else float("nan")


def _cut(placement: TablePlacement, order: NDArray[np.int64]) -> TablePlacement:
    """Column shards of the same ranks and widths in another order."""
    shards = [placement.shards[at] for at in order]
    ends = np.cumsum([shard.num_cols for shard in shards]).tolist()
    return TablePlacement(
        placement.name,
        placement.sharding_type,
        tuple(
            Shard(shard.rank, shard.row_offset, shard.num_rows, end - shard.num_cols, shard.num_cols)
            for shard, end in zip(shards, ends, strict=True)
        ),
    )
