"""The transitions of `bench migrate`: pairs of plans, and tables so large that a given number of bytes travels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.plan import ShardingPlan, TablePlacement
from planner.sharding import ShardingOption, ShardingType, column_shard_counts
from planner.tables import OptimizerKind, TableSpec, Workload
from planner.transfers import transfer_bytes, transfers

MIXED = "mixed"
PAIRS: tuple[tuple[str, str], ...] = (
    (ShardingType.TABLE_WISE, ShardingType.TABLE_WISE),
    (ShardingType.TABLE_WISE, ShardingType.COLUMN_WISE),
    (ShardingType.TABLE_WISE, ShardingType.ROW_WISE),
    (ShardingType.TABLE_WISE, ShardingType.DATA_PARALLEL),
    (MIXED, MIXED),
)
"""What tables move between, forth and back; table-wise tables go to the next rank, mixed ones to the next kind.

Within one node table_row_wise is row_wise.
"""
KINDS = (
    ShardingType.TABLE_WISE,
    ShardingType.COLUMN_WISE,
    ShardingType.ROW_WISE,
    ShardingType.DATA_PARALLEL,
)
EMBEDDING_DIM = 128
"""Columns: the width of the MLPerf DLRM-DCNv2 benchmark's tables, enough for eight column shards."""
# Sizes are found by what tables of so many rows move; divisible by many numbers of ranks.
PROBE_ROWS = 1 << 12


@dataclass(frozen=True)
class Transition:
    """Two plans of the same tables.

    Attributes:
        kinds: What the plans are called.
        tables: As many of each kind as there are ranks.
        plans: The plan before and the one after.
    """

    kinds: tuple[str, str]
    tables: tuple[TableSpec, ...]
    plans: tuple[ShardingPlan, ShardingPlan]

    @classmethod
    def build(
        cls, kinds: tuple[str, str], world_size: int, optimizer: OptimizerKind, wanted_bytes: int
    ) -> "Transition":
        """The transition in which about so many bytes travel from the first plan to the second, all ranks together."""
        probe = cls._of_rows(kinds, world_size, PROBE_ROWS)
        num_rows = max(world_size, round(PROBE_ROWS * wanted_bytes / sum(map(sum, probe.traffic(optimizer)))))
        return cls._of_rows(kinds, world_size, num_rows)

    @classmethod
    def _of_rows(cls, kinds: tuple[str, str], world_size: int, num_rows: int) -> "Transition":
        tables = tuple(
            TableSpec(f"table_{number}", num_rows, EMBEDDING_DIM, (f"table_{number}",))
            for number in range(len(KINDS) * world_size)
        )
        first, second = kinds
        return cls(kinds, tables, (_plan(tables, first, world_size, 0), _plan(tables, second, world_size, 1)))

    @property
    def reverse(self) -> "Transition":
        """The way back."""
        return replace(self, kinds=self.kinds[::-1], plans=self.plans[::-1])

    def traffic(self, optimizer: OptimizerKind) -> list[list[int]]:
        """Bytes [W, W] that each rank sends to each; nothing on the diagonal."""
        old, new = self.plans
        workload = Workload(self.tables, 1, optimizer)
        found = [[0] * old.world_size for _ in range(old.world_size)]
        for piece in transfers(old, new):
            if not piece.stays:
                found[piece.source][piece.target] += transfer_bytes(piece, workload)
        return found

    def most_new_bytes(self, optimizer: OptimizerKind) -> int:
        """Bytes of the new shards, with their optimizer state, of the rank that gets most."""
        new, workload = self.plans[1], Workload(self.tables, 1, optimizer)
        held = [0] * new.world_size
        # All of a plan stays where it is if nothing is changed.
        for shard in transfers(new, new):
            held[shard.target] += transfer_bytes(shard, workload)
        return max(held)


def busiest_rank_bytes(traffic: Sequence[Sequence[int]]) -> int:
    """Bytes that the busiest rank sends and receives, of what each rank sends to each [W, W]."""
    return max(sum(sent) + sum(received) for sent, received in zip(traffic, zip(*traffic, strict=True), strict=True))


def _plan(tables: Sequence[TableSpec], kind: str, world_size: int, shift: int) -> ShardingPlan:
    """All tables under a kind, or kinds in turn; `shift` moves whole tables by ranks, and mixed ones by kinds."""
    placed = []
    for number, table in enumerate(tables):
        if kind == MIXED:
            placed.append(_place(table, KINDS[(number // world_size + shift) % len(KINDS)], world_size, number))
        else:
            placed.append(_place(table, ShardingType(kind), world_size, number + shift))
    return ShardingPlan(world_size, tuple(placed))


def _place(table: TableSpec, kind: ShardingType, world_size: int, first: int) -> TablePlacement:
    """A table cut into as many shards as it may have, from rank `first` (modulo the ranks) on where that is free."""
    num_shards = world_size
    if kind is ShardingType.TABLE_WISE:
        num_shards = 1
    elif kind is ShardingType.COLUMN_WISE:
        num_shards = column_shard_counts(table.embedding_dim, world_size)[-1]
    option = ShardingOption(table, kind, num_shards, tuple(range(world_size)))
    ranks = [(first + index) % world_size for index in range(num_shards)] if option.is_free else option.ranks
    return TablePlacement(table.name, kind, option.shards(ranks))
