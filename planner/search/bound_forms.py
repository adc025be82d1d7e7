"""The bound by forms: each table in its cheapest form, and no step is shorter than its dearest shard.

A form of a table is a type with the exact sizes of all its shards: whole, a copy on each rank, the row blocks of
`row_blocks`, or columns cut at any multiples of `DIM_MULTIPLE`, which is more than searches offer. Loads of a shard
may be any function of its table, type, rows and columns, and of its rank's device kind and node size. Each phase is at
least linear in the loads (`LinearBound`); that gives a shard a price as part of the sum over all shards, and one of its
own. Loads add over shards, and so do prices. So a `LinearBound` proves, for all phases together and for any one of
them, at least its constants plus the larger of

1. the sum over tables of the cheapest form, which costs the sum of its shards' prices;
2. for any one table, its cheapest form, which costs its dearest shard's own price.

The phases sum up to at least the best of these for all phases together, and at least the sum over phases of the best
for each.
"""

import numpy as np
from numpy.typing import NDArray

from planner.search.bound_prices import Layout, Pricing, allowed_tables, in_chunks, layouts
from planner.sharding import ShardingType
from planner.tables import DIM_MULTIPLE


def form_bound_ms(pricing: Pricing) -> float:
    """Milliseconds that the phases of every legal plan sum up to at least; infinite where a table has no form.

    Prices T x D / 4 shards for T tables of D columns; finding their best cuts takes T x (D / 4)^2 / 4 additions.
    """
    totals_ms, dearest_ms = _cheapest_forms(pricing)
    proven_ms = np.maximum(totals_ms.sum(axis=0), dearest_ms.max(axis=0))
    constant_ms = pricing.constant_ms
    together_ms = constant_ms.sum(axis=1) + proven_ms[:, 0]
    by_phase_ms = np.maximum(constant_ms + proven_ms[:, 1:], 0.0)
    return float(max(together_ms.max(), by_phase_ms.max(axis=0).sum()))


def _cheapest_forms(pricing: Pricing) -> NDArray[np.float64]:
    """Prices [2, T, N, 1 + P] of the tables' cheapest forms, each for itself: sum of the shards, dearest shard."""
    problem = pricing.problem
    prices = np.full((2, len(problem.workload.tables), pricing.weights_ms.shape[-1]), np.inf)
    for sharding_type, layout in layouts(problem).items():
        is_legal = np.all([num_rows > 0 for num_rows, _ in layout], axis=0)
        tables = allowed_tables(problem, sharding_type)
        for chunk in in_chunks(tables[is_legal[tables]]):
            found = _layout_ms(pricing, chunk, sharding_type, layout)
            prices[:, chunk] = np.minimum(prices[:, chunk], found)
    by_columns = allowed_tables(problem, ShardingType.COLUMN_WISE)
    num_quads = problem.arrays.num_cols[by_columns].astype(np.int64) // DIM_MULTIPLE
    for quads in np.unique(num_quads).tolist():
        for chunk in in_chunks(by_columns[num_quads == quads], quads):
            prices[:, chunk] = np.minimum(prices[:, chunk], _columns_ms(pricing, chunk, quads))
    return prices[:, :, pricing.view]


def _layout_ms(
    pricing: Pricing, tables: NDArray[np.int64], sharding_type: ShardingType, layout: Layout
) -> NDArray[np.float64]:
    """Prices [2, T, V] of T tables in one form: the sum of their shards, the dearest shard."""
    num_cols = pricing.problem.arrays.num_cols[tables]
    shards = [pricing.shards_ms(tables, sharding_type, num_rows[tables], num_cols) for num_rows, _ in layout]
    totals = [count * total for (total, _), (_, count) in zip(shards, layout, strict=True)]
    return np.stack([np.sum(totals, axis=0), np.max([alone for _, alone in shards], axis=0)])


def _columns_ms(pricing: Pricing, tables: NDArray[np.int64], num_quads: int) -> NDArray[np.float64]:
    """Prices [2, T, V] of T tables cut by columns as is cheapest: the sum of the shards, the dearest shard."""
    table = np.tile(tables, num_quads)
    widths = np.repeat(DIM_MULTIPLE * np.arange(1.0, num_quads + 1), len(tables))
    prices = pricing.shards_ms(table, ShardingType.COLUMN_WISE, pricing.problem.arrays.num_rows[table], widths)
    totals, alone = prices.reshape(2, num_quads, len(tables), -1)
    return np.stack([_cheapest_cut(totals, np.add), _cheapest_cut(alone, np.maximum)])


def _cheapest_cut(prices: NDArray[np.float64], combine: np.ufunc) -> NDArray[np.float64]:
    """Price [T, V] of Q quads of columns, cut as is cheapest, from prices [Q, T, V] of 1 to Q quads in one shard.

    Uncut, or the best cuts of two parts: best[q] = min(prices[q], min over a <= q / 2 of combine(best[a],
    best[q - a])).

    Source: rod cutting, Cormen et al., Introduction to Algorithms, 3rd edition, section 15.1.
    """
    best = prices.copy()
    for quads in range(2, len(best) + 1):
        half = quads // 2
        in_two = combine(best[:half], best[quads - half - 1 : quads - 1][::-1])
        best[quads - 1] = np.minimum(best[quads - 1], in_two.min(axis=0))
    return best[-1]
