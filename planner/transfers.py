"""What travels between two plans: intersections of old and new shards, and where each comes from."""

from collections.abc import Mapping
from dataclasses import dataclass

from planner.memory import FLOAT_BYTES
from planner.plan import ShardingPlan, TablePlacement
from planner.sharding import Shard, ShardingType
from planner.tables import OptimizerKind, Workload


@dataclass(frozen=True)
class Transfer:
    """A rectangle of one table that a rank of the new plan needs, and the rank of the old one that it is taken from.

    Attributes:
        table: The table.
        source: Rank that holds it.
        target: Rank that will hold it; where it is the source, nothing travels.
        row_offset: First row, of the table.
        num_rows: Rows.
        col_offset: First column, of the table.
        num_cols: Columns.
    """

    table: str
    source: int
    target: int
    row_offset: int
    num_rows: int
    col_offset: int
    num_cols: int

    @property
    def stays(self) -> bool:
        """Whether it remains on its rank."""
        return self.source == self.target


def transfers(old: ShardingPlan, new: ShardingPlan) -> tuple[Transfer, ...]:
    """Every rectangle of the new plan's shards, by table and target, with the rank that it comes from.

    What a rank holds it keeps; of a replicated table it holds all. Both plans place the same tables.

    Raises:
        KeyError: A table of `new` is not in `old`.
    """
    before: Mapping[str, TablePlacement] = {table.name: table for table in old.tables}
    return tuple(piece for table in new.tables for piece in table_transfers(before[table.name], table))


def table_transfers(old: TablePlacement, new: TablePlacement) -> tuple[Transfer, ...]:
    """The same of one table, in the order of the new shards."""
    if old == new:
        return tuple(
            Transfer(new.name, s.rank, s.rank, s.row_offset, s.num_rows, s.col_offset, s.num_cols)
            for s in new.shards
            if s.num_rows
        )
    is_replicated = old.sharding_type is ShardingType.DATA_PARALLEL
    found = []
    for shard in new.shards:
        # Every rank has a replica, and one of each is enough.
        held = [each for each in old.shards if not is_replicated or each.rank == shard.rank]
        found += [piece for each in held if (piece := _intersection(new.name, each, shard)) is not None]
    return tuple(found)


def transfer_bytes(transfer: Transfer, workload: Workload) -> int:
    """Bytes of a rectangle with its optimizer state: two moments a weight for Adam, a value a row for row-wise Adagrad.

    Source: FBGEMM `SplitTableBatchedEmbeddingBagsCodegen`, momentum1 and momentum2.
    """
    weights = transfer.num_rows * transfer.num_cols
    if workload.optimizer is OptimizerKind.ADAM:
        return weights * (workload.weight_bytes + 2 * FLOAT_BYTES)
    state = transfer.num_rows * FLOAT_BYTES if workload.optimizer is OptimizerKind.ROWWISE_ADAGRAD else 0
    return weights * workload.weight_bytes + state


def moved_bytes(old: ShardingPlan, new: ShardingPlan, workload: Workload) -> int:
    """Bytes that change their rank between two plans."""
    return sum(transfer_bytes(each, workload) for each in transfers(old, new) if not each.stays)


def _intersection(table: str, held: Shard, wanted: Shard) -> Transfer | None:
    row, col = max(held.row_offset, wanted.row_offset), max(held.col_offset, wanted.col_offset)
    rows = min(held.row_offset + held.num_rows, wanted.row_offset + wanted.num_rows) - row
    cols = min(held.col_offset + held.num_cols, wanted.col_offset + wanted.num_cols) - col
    return Transfer(table, held.rank, wanted.rank, row, rows, col, cols) if rows > 0 and cols > 0 else None
