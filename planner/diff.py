"""What changes between two plans, and how many bytes of tables move for it."""

from collections.abc import Mapping
from dataclasses import dataclass

from planner.plan import ShardingPlan, TablePlacement
from planner.sharding import ShardingType
from planner.tables import Workload
from planner.text import render_bytes
from planner.transfers import table_transfers, transfer_bytes


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
        KeyError: A table of `new` is not in `old`.
    """
    before: Mapping[str, TablePlacement] = {table.name: table for table in old.tables}
    moves = [_table_move(before[table.name], table, workload) for table in new.tables if table != before[table.name]]
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


def _table_move(old: TablePlacement, new: TablePlacement, workload: Workload) -> TableMove:
    moved = sum(transfer_bytes(each, workload) for each in table_transfers(old, new) if not each.stays)
    return TableMove(new.name, old.sharding_type, new.sharding_type, old.ranks, new.ranks, moved)
