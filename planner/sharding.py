"""Sharding types, shards, and the legal ways to cut one table."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from planner.tables import DIM_MULTIPLE, OptimizerKind, TableSpec
from planner.topology import Topology

MIN_COLUMN_WIDTH = 16
"""Narrowest column shard that is offered: 16 fp32 columns fill one 64-byte memory line.

Source: 64-byte lines of x86 caches and HBM accesses; TorchRec's planner stops at 128
(`planner.constants.MIN_CW_DIM`), the legal limit is `DIM_MULTIPLE`.
"""


class ShardingType(StrEnum):
    """How a table is cut. Source: `torchrec.distributed.types.ShardingType`, same words."""

    DATA_PARALLEL = "data_parallel"
    TABLE_WISE = "table_wise"
    COLUMN_WISE = "column_wise"
    ROW_WISE = "row_wise"
    TABLE_ROW_WISE = "table_row_wise"


TYPE_ORDER = tuple(ShardingType)
"""Sharding types by their code in arrays."""

FREE_TYPES = (ShardingType.TABLE_WISE, ShardingType.COLUMN_WISE)
"""Types whose shards may go to any rank; the others say themselves which ranks they take."""


@dataclass(frozen=True)
class Shard:
    """A rectangle of a table on a rank; it may have 0 rows where a row-wise block layout runs out of rows."""

    rank: int
    row_offset: int
    num_rows: int
    col_offset: int
    num_cols: int


@dataclass(frozen=True)
class ShardingOption:
    """One legal way to cut a table.

    Attributes:
        table: The table.
        sharding_type: How it is cut.
        num_shards: Into how many shards.
        ranks: For the free types the ranks to choose `num_shards` different ones from; otherwise the rank of
            each shard, in shard order.
    """

    table: TableSpec
    sharding_type: ShardingType
    num_shards: int
    ranks: tuple[int, ...]

    @property
    def is_free(self) -> bool:
        """Whether a search chooses the ranks."""
        return self.sharding_type in FREE_TYPES

    @property
    def shape(self) -> tuple[ShardingType, int, tuple[int, ...]]:
        """What tables kept together must have in common."""
        return self.sharding_type, self.num_shards, self.ranks

    def shards(self, ranks: Sequence[int]) -> tuple[Shard, ...]:
        """The shards when they are placed on `ranks`, one rank a shard, in shard order."""
        rows, cols = self.table.num_embeddings, self.table.embedding_dim
        if self.sharding_type in (ShardingType.ROW_WISE, ShardingType.TABLE_ROW_WISE):
            counts = row_blocks(rows, self.num_shards)
            starts = np.cumsum(counts) - counts
            return tuple(
                Shard(int(rank), int(start), int(count), 0, cols)
                for rank, start, count in zip(ranks, starts, counts, strict=True)
            )
        if self.sharding_type is ShardingType.COLUMN_WISE:
            width = cols // self.num_shards
            return tuple(Shard(int(rank), 0, rows, width * index, width) for index, rank in enumerate(ranks))
        return tuple(Shard(int(rank), 0, rows, 0, cols) for rank in ranks)

    def sizes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rows and columns of the shards, each [num_shards]."""
        rows = np.full(self.num_shards, float(self.table.num_embeddings))
        cols = np.full(self.num_shards, float(self.table.embedding_dim))
        if self.sharding_type in (ShardingType.ROW_WISE, ShardingType.TABLE_ROW_WISE):
            rows = row_blocks(self.table.num_embeddings, self.num_shards).astype(np.float64)
        elif self.sharding_type is ShardingType.COLUMN_WISE:
            cols /= self.num_shards
        return rows, cols


def row_blocks(num_rows: int, num_blocks: int) -> NDArray[np.int64]:
    """Rows of each block [num_blocks]: ceil(rows / blocks) until the rows run out, then a rest, then 0.

    Source: TorchRec 1.8 `planner.enumerators` / `sharding_plan`, `_calculate_rw_shard_sizes_and_offsets`; its
    input_dist sends id to rank id // block, so no other layout is legal.

    >>> row_blocks(5, 4).tolist()
    [2, 2, 1, 0]
    """
    block = -(-num_rows // num_blocks)
    return np.clip(num_rows - block * np.arange(num_blocks, dtype=np.int64), 0, block)


def is_data_parallel_legal(optimizer: OptimizerKind) -> bool:
    """Whether a replicated table trains exactly as a fused one does.

    Dense Adam decays and moves rows that a batch never touched, fused Adam leaves them alone: another
    algorithm.
    """
    return optimizer is not OptimizerKind.ADAM


def enumerate_options(
    table: TableSpec,
    topology: Topology,
    optimizer: OptimizerKind,
    ranks: tuple[int, ...] | None = None,
    sharding_types: tuple[ShardingType, ...] | None = None,
) -> tuple[ShardingOption, ...]:
    """All offered options of a table: whole, by columns, in a node, over all ranks, replicated.

    Column shards are equally wide, at least `MIN_COLUMN_WIDTH`, at most one a rank. Row-wise types are
    offered where every rank gets a row, in a node only where all nodes have equally many ranks
    (`Topology.local_world_size`).

    Args:
        table: The table.
        topology: The devices.
        optimizer: Replication is offered only where it trains the same (`is_data_parallel_legal`).
        ranks: The ranks the table may use; None for all.
        sharding_types: The types it may have; None for all.
    """
    allowed = ranks if ranks is not None else topology.ranks
    options = [ShardingOption(table, ShardingType.TABLE_WISE, 1, allowed)]
    options += [
        ShardingOption(table, ShardingType.COLUMN_WISE, count, allowed)
        for count in column_shard_counts(table.embedding_dim, len(allowed))
    ]
    options += _row_options(table, topology, frozenset(allowed))
    if len(allowed) == topology.world_size and is_data_parallel_legal(optimizer):
        options.append(ShardingOption(table, ShardingType.DATA_PARALLEL, topology.world_size, topology.ranks))
    return tuple(option for option in options if sharding_types is None or option.sharding_type in sharding_types)


def column_shard_counts(embedding_dim: int, max_shards: int) -> list[int]:
    """Numbers of equal column shards that are offered, ascending from 2.

    >>> column_shard_counts(128, 8)
    [2, 4, 8]
    """
    most = min(max_shards, embedding_dim // MIN_COLUMN_WIDTH)
    return [count for count in range(2, most + 1) if embedding_dim % (count * DIM_MULTIPLE) == 0]


def _row_options(table: TableSpec, topology: Topology, allowed: frozenset[int]) -> list[ShardingOption]:
    nodes = () if topology.local_world_size is None else topology.nodes
    groups = [(ShardingType.TABLE_ROW_WISE, topology.ranks_of(node)) for node in nodes]
    groups.append((ShardingType.ROW_WISE, topology.ranks))
    return [
        ShardingOption(table, sharding_type, len(group), group)
        for sharding_type, group in groups
        if len(group) > 1 and allowed.issuperset(group) and _fills_every_block(table.num_embeddings, len(group))
    ]


def _fills_every_block(num_rows: int, num_blocks: int) -> bool:
    return -(-num_rows // num_blocks) * (num_blocks - 1) < num_rows
