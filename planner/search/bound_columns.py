"""The columns of the linear program of `planner.search.bound_levels`: what they are of, and what they cost."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from planner.search.bound_prices import Layout, Pricing, allowed_tables, in_chunks, layouts
from planner.sharding import ShardingType
from planner.tables import DIM_MULTIPLE


@dataclass(frozen=True, eq=False)
class Columns:
    """J ways in which a table, or a part of it, may be placed, in V views of `Pricing`.

    Attributes:
        table: int64 [J].
        share: float64 [J], part of the table: 1 for whole forms, its columns over the table's for a column shard.
        total_ms: float64 [J, V], summed over the shards.
        own_ms: float64 [J, V], of the dearest shard; of the cheapest where each rank has one.
        num_bytes: float64 [J], over all shards.
        is_on_all: bool [J], whether every rank has a shard.
        is_column_shard: bool [J].
    """

    table: NDArray[np.int64]
    share: NDArray[np.float64]
    total_ms: NDArray[np.float64]
    own_ms: NDArray[np.float64]
    num_bytes: NDArray[np.float64]
    is_on_all: NDArray[np.bool_]
    is_column_shard: NDArray[np.bool_]

    def __len__(self) -> int:
        """J."""
        return len(self.table)


def build_columns(pricing: Pricing) -> Columns:
    """All columns whose shards fit into the memory of some device."""
    parts = [*_whole_forms(pricing), *_column_shards(pricing)]
    every = Columns(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Columns)))
    kept = np.isfinite(every.total_ms).all(axis=1)
    return Columns(*(getattr(every, field.name)[kept] for field in fields(Columns)))


def _whole_forms(pricing: Pricing) -> Iterator[Columns]:
    problem = pricing.problem
    for sharding_type, layout in layouts(problem).items():
        is_legal = np.all([num_rows > 0 for num_rows, _ in layout], axis=0)
        tables = allowed_tables(problem, sharding_type)
        for chunk in in_chunks(tables[is_legal[tables]]):
            yield _form_columns(pricing, chunk, sharding_type, layout)


def _form_columns(pricing: Pricing, tables: NDArray[np.int64], sharding_type: ShardingType, layout: Layout) -> Columns:
    num_cols, counts = pricing.problem.arrays.num_cols[tables], [number for _, number in layout]
    is_on_all = sum(counts) == pricing.problem.topology.world_size
    prices = [pricing.shards_ms(tables, sharding_type, num_rows[tables], num_cols) for num_rows, _ in layout]
    sizes = [pricing.bytes_of(tables, sharding_type, num_rows[tables], num_cols) for num_rows, _ in layout]
    own_ms = [own for _, own in prices]
    return Columns(
        table=tables,
        share=np.ones(len(tables)),
        total_ms=np.sum([number * total for (total, _), number in zip(prices, counts, strict=True)], axis=0),
        own_ms=np.min(own_ms, axis=0) if is_on_all else np.max(own_ms, axis=0),
        num_bytes=np.sum([number * size for size, number in zip(sizes, counts, strict=True)], axis=0).astype(float),
        is_on_all=np.full(len(tables), is_on_all),
        is_column_shard=np.zeros(len(tables), dtype=np.bool_),
    )


def _column_shards(pricing: Pricing) -> Iterator[Columns]:
    problem = pricing.problem
    tables = allowed_tables(problem, ShardingType.COLUMN_WISE)
    num_quads = problem.arrays.num_cols[tables].astype(np.int64) // DIM_MULTIPLE
    for quads in np.unique(num_quads).tolist():
        for chunk in in_chunks(tables[num_quads == quads], quads):
            yield _width_columns(pricing, chunk, quads)


def _width_columns(pricing: Pricing, tables: NDArray[np.int64], num_quads: int) -> Columns:
    table = np.tile(tables, num_quads)
    quads = np.repeat(np.arange(1.0, num_quads + 1), len(tables))
    num_rows, num_cols = pricing.problem.arrays.num_rows[table], DIM_MULTIPLE * quads
    total_ms, own_ms = pricing.shards_ms(table, ShardingType.COLUMN_WISE, num_rows, num_cols)
    sizes = pricing.bytes_of(table, ShardingType.COLUMN_WISE, num_rows, num_cols)
    no, yes = np.zeros(len(table), dtype=np.bool_), np.ones(len(table), dtype=np.bool_)
    return Columns(table, quads / num_quads, total_ms, own_ms, sizes.astype(float), no, yes)
