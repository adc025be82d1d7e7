"""Whether a plan can follow another one: the last look before anything is touched, alike on all ranks."""

from planner.plan import ShardingPlan, TablePlacement
from planner.sharding import ShardingType, row_blocks

ROW_TYPES = (ShardingType.ROW_WISE, ShardingType.TABLE_ROW_WISE)


def find_misfit(old: ShardingPlan, new: ShardingPlan) -> str | None:
    """What is wrong with a plan beside the one that trains, or None: other ranks, other tables, cells left out, rows
    cut where TorchRec does not look for them.

    `planner.check.check` says more, of constraints and memory too; it needs the whole problem, which ranks do not have.
    """
    if old.world_size != new.world_size:
        return f"the plan is for {new.world_size} ranks, and {old.world_size} train"
    was, now = ({table.name: table for table in plan.tables} for plan in (old, new))
    if was.keys() != now.keys():
        return (
            f"tables that train and are not in the plan, or the reverse: {', '.join(sorted(was.keys() ^ now.keys()))}"
        )
    return next((fault for name in now if (fault := _table_misfit(was[name], now[name], new.world_size))), None)


def _table_misfit(old: TablePlacement, new: TablePlacement, world_size: int) -> str | None:
    rows, cols = _shape(old)
    if not all(0 <= rank < world_size for rank in new.ranks):
        return f"table {new.name!r} is on ranks {sorted(set(new.ranks))}, and there are {world_size}"
    copies = len(new.shards) if new.sharding_type is ShardingType.DATA_PARALLEL else 1
    if (
        _shape(new) != (rows, cols)
        or sum(shard.num_rows * shard.num_cols for shard in new.shards) != rows * cols * copies
    ):
        return f"table {new.name!r}: its shards do not make up {rows} x {cols} cells"
    blocks = [shard.num_rows for shard in new.shards]
    if new.sharding_type in ROW_TYPES and blocks != row_blocks(rows, len(blocks)).tolist():
        return f"table {new.name!r} has shards of {blocks} rows, expected {row_blocks(rows, len(blocks)).tolist()}"
    return None


def _shape(table: TablePlacement) -> tuple[int, int]:
    """Rows and columns that a table reaches to."""
    rows = max(shard.row_offset + shard.num_rows for shard in table.shards)
    return rows, max(shard.col_offset + shard.num_cols for shard in table.shards)
