"""What changes between two plans, and how many bytes of tables move for it."""

from collections.abc import Mapping
from dataclasses import dataclass

from planner.memory import FLOAT_BYTES
from planner.plan import ShardingPlan, TablePlacement
from planner.sharding import Shard, ShardingType
from planner.tables import OptimizerKind, TableSpec, Workload
from planner.text import render_bytes


@dataclass(frozen=True)
class TableMove:
    """One table whose placement changes.

    Attributes:
        name: The table.
        from_type: Sharding type before.
        to_type: Sharding type after.
        from_ranks: Rank of each shard before.
        to_ranks: Rank of each shard after.
        moved_bytes: Weights and optimizer state that a rank needs and does not yet hold.
    """

    name: str
    from_type: ShardingType
    to_type: ShardingType
    from_ranks: tuple[int, ...]
    to_ranks: tuple[int, ...]
    moved_bytes: int


def diff(old: ShardingPlan, new: ShardingPlan, workload: Workload) -> tuple[TableMove, ...]:
    """The tables whose placement differs, largest move first; both plans place the same tables.

    Raises:
        KeyError: A table of `new` is not in `old` or not in the workload.
    """
    before: Mapping[str, TablePlacement] = {table.name: table for table in old.tables}
    specs = {table.name: table for table in workload.tables}
    moves = [
        _table_move(before[table.name], table, specs[table.name], workload)
        for table in new.tables
        if table != before[table.name]
    ]
    return tuple(sorted(moves, key=lambda move: (-move.moved_bytes, move.name)))


def render_diff(moves: tuple[TableMove, ...]) -> str:
    """The moves as text within 100 columns, one table a line, with the sum of bytes."""
    if not moves:
        return "no table moves"
    lines = [
        f"{move.name[:28]:<28} {move.from_type} {_render_ranks(move.from_ranks)} -> "
        f"{move.to_type} {_render_ranks(move.to_ranks)}: {move.moved_bytes:,} B"
        for move in moves
    ]
    total = sum(move.moved_bytes for move in moves)
    return "\n".join([*lines, f"{len(moves)} tables change, {render_bytes(total)} move"])


def _render_ranks(ranks: tuple[int, ...]) -> str:
    if len(ranks) > 4:
        return f"{ranks[0]}..{ranks[-1]}"
    return ",".join(str(rank) for rank in ranks)


def _table_move(old: TablePlacement, new: TablePlacement, table: TableSpec, workload: Workload) -> TableMove:
    held_of: dict[int, list[Shard]] = {}
    for shard in old.shards:
        held_of.setdefault(shard.rank, []).append(shard)
    state_bytes = workload.weight_bytes + (2 * FLOAT_BYTES if workload.optimizer is OptimizerKind.ADAM else 0)
    moved = 0
    for shard in new.shards:
        held = sum(_overlap(shard, other) for other in held_of.get(shard.rank, ()))
        moved += (shard.num_rows * shard.num_cols - held) * state_bytes
        if workload.optimizer is OptimizerKind.ROWWISE_ADAGRAD:
            moved += (shard.num_rows - held // shard.num_cols) * FLOAT_BYTES
    return TableMove(table.name, old.sharding_type, new.sharding_type, old.ranks, new.ranks, moved)


def _overlap(left: Shard, right: Shard) -> int:
    rows = min(left.row_offset + left.num_rows, right.row_offset + right.num_rows) - max(
        left.row_offset, right.row_offset
    )
    cols = min(left.col_offset + left.num_cols, right.col_offset + right.num_cols) - max(
        left.col_offset, right.col_offset
    )
    return max(rows, 0) * max(cols, 0)
