"""A proven lower bound of the step time of every legal plan."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import AdditiveEstimator, LinearBound
from planner.memory import capacity_bytes, shard_bytes
from planner.problem import PlanningProblem
from planner.sharding import ShardingType, is_data_parallel_legal
from planner.shards import TYPE_CODE, ShardArrays
from planner.tables import DIM_MULTIPLE

CHUNK_SHARDS = 1 << 14
"""Shards priced at once: some megabytes, enough that numpy's overhead does not count."""

Layout = list[tuple[NDArray[np.float64], int]]
"""The shards of a form that has whole rows: rows [T] of a shard and how many are alike."""


def lower_bound_ms(problem: PlanningProblem, estimator: AdditiveEstimator) -> float:
    """Milliseconds that no plan which `check` accepts can beat under an additive estimator.

    A form of a table is a type with the exact sizes of all its shards: whole, a copy on each rank, the row blocks
    of `row_blocks`, or columns cut at any multiples of `DIM_MULTIPLE`, which is more than searches offer. Loads
    of a shard may be any function of its table, type, rows and columns, and of its rank's device kind and node
    size. Each phase is at least linear in the loads (`LinearBound`); that gives a shard a price as part of the
    sum over all shards, and one of its own. Loads add over shards, and so do prices. So a `LinearBound` proves,
    for all phases together and for any one of them, at least its constants plus the larger of
    1. the sum over tables of the cheapest form, which costs the sum of its shards' prices;
    2. for any one table, its cheapest form, which costs its dearest shard's own price.
    The step is at least the best of these for all phases together, and at least the sum over phases of the best
    for each. A shard counts as if on the device kind and node where it is cheapest, and constraints on ranks are
    left out, which only makes minima smaller. Forms that the constraints on types rule out, or with a shard that
    exceeds the memory of every device, belong to no legal plan and are left out.

    Prices T x D / 4 shards for T tables of D columns; finding their best cuts takes T x (D / 4)^2 / 4 additions.

    Returns:
        The bound, 0 or more; infinite where a table has no form that fits, so that no plan is legal.
    """
    bounds = estimator.linear_bounds(problem)
    totals_ms, dearest_ms = _cheapest_forms(_Pricing(problem, estimator, bounds))
    proven_ms = np.maximum(totals_ms.sum(axis=0), dearest_ms.max(axis=0))
    constant_ms = np.array([bound.constant_ms for bound in bounds])
    together_ms = constant_ms.sum(axis=1) + proven_ms[:, 0]
    by_phase_ms = np.maximum(constant_ms + proven_ms[:, 1:], 0.0)
    return float(max(together_ms.max(), by_phase_ms.max(axis=0).sum()))


class _Pricing:
    """Prices of shards in V views: the distinct linear functions of N bounds, each for P phases and their sum.

    Attributes:
        problem: What is planned.
        estimator: Gives the loads.
        weights_ms: float64 [2, K, V], price of a unit of load: in the sum over all shards, and of one shard.
        view: int64 [N, 1 + P], which view is the sum over the phases of a bound, and which is each phase.
        ranks: One rank of each device kind and node size.
        most_bytes: Memory for shards of the largest device.
    """

    def __init__(self, problem: PlanningProblem, estimator: AdditiveEstimator, bounds: tuple[LinearBound, ...]) -> None:
        self.problem, self.estimator = problem, estimator
        phases = np.array([np.concatenate([bound.of_total, bound.of_shard], axis=1) for bound in bounds])
        every = np.concatenate([phases.sum(axis=1, keepdims=True), phases], axis=1)
        # Bounds differ in few phases, and many phases are linear in nothing.
        views, index = np.unique(every.reshape(-1, every.shape[-1]), axis=0, return_inverse=True)
        self.weights_ms = views.reshape(len(views), 2, -1).transpose(1, 2, 0)
        self.view = index.reshape(every.shape[:2])
        sizes = problem.devices.node_size.tolist()
        alike = {(device.kind, size): device.rank for device, size in zip(problem.topology.devices, sizes, strict=True)}
        self.ranks = tuple(alike.values())
        self.most_bytes = int(capacity_bytes(problem).max())

    def shards_ms(
        self,
        table: NDArray[np.int64],
        sharding_type: ShardingType,
        num_rows: NDArray[np.float64],
        num_cols: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Prices [2, S, V] of shards [S] where they are cheapest; infinite where they fit on no device."""
        on_each = [
            ShardArrays(
                table, np.full_like(table, rank), np.full_like(table, TYPE_CODE[sharding_type]), num_rows, num_cols
            )
            for rank in self.ranks
        ]
        prices = [self.estimator.shard_loads(self.problem, shards) @ self.weights_ms for shards in on_each]
        fits = shard_bytes(self.problem, on_each[0]) <= self.most_bytes
        return np.where(fits[:, None], np.minimum.reduce(prices), np.inf)


def _cheapest_forms(pricing: _Pricing) -> NDArray[np.float64]:
    """Prices [2, T, N, 1 + P] of the tables' cheapest forms, each for itself: sum of the shards, dearest shard."""
    problem = pricing.problem
    prices = np.full((2, len(problem.workload.tables), pricing.weights_ms.shape[-1]), np.inf)
    for sharding_type, layout in _layouts(problem).items():
        is_legal = np.all([num_rows > 0 for num_rows, _ in layout], axis=0)
        tables = _allowed(problem, sharding_type)
        for chunk in _chunks(tables[is_legal[tables]], CHUNK_SHARDS):
            found = _layout_ms(pricing, chunk, sharding_type, layout)
            prices[:, chunk] = np.minimum(prices[:, chunk], found)
    by_columns = _allowed(problem, ShardingType.COLUMN_WISE)
    num_quads = problem.arrays.num_cols[by_columns].astype(np.int64) // DIM_MULTIPLE
    for quads in np.unique(num_quads).tolist():
        for chunk in _chunks(by_columns[num_quads == quads], -(-CHUNK_SHARDS // quads)):
            prices[:, chunk] = np.minimum(prices[:, chunk], _columns_ms(pricing, chunk, quads))
    return prices[:, :, pricing.view]


def _layouts(problem: PlanningProblem) -> dict[ShardingType, Layout]:
    """The forms of all tables whose shards have all columns."""
    num_rows, topology = problem.arrays.num_rows, problem.topology
    layouts: dict[ShardingType, Layout] = {
        ShardingType.TABLE_WISE: [(num_rows, 1)],
        ShardingType.ROW_WISE: _row_layout(num_rows, topology.world_size),
    }
    if is_data_parallel_legal(problem.workload.optimizer):
        layouts[ShardingType.DATA_PARALLEL] = [(num_rows, topology.world_size)]
    if topology.local_world_size is not None:
        layouts[ShardingType.TABLE_ROW_WISE] = _row_layout(num_rows, topology.local_world_size)
    return layouts


def _row_layout(num_rows: NDArray[np.float64], num_blocks: int) -> Layout:
    """What `row_blocks` gives for many tables at once; no row is left for the last block where it is illegal."""
    block = np.ceil(num_rows / num_blocks)
    layout = [(block, num_blocks - 1), (num_rows - block * (num_blocks - 1), 1)]
    return [(rows, count) for rows, count in layout if count > 0]


def _allowed(problem: PlanningProblem, sharding_type: ShardingType) -> NDArray[np.int64]:
    """Positions of the tables whose constraints allow a type."""
    allowed = [problem.rules[table.name].sharding_types for table in problem.workload.tables]
    return np.flatnonzero([types is None or sharding_type in types for types in allowed])


def _chunks(tables: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    return (tables[first : first + size] for first in range(0, len(tables), size))


def _layout_ms(
    pricing: _Pricing, tables: NDArray[np.int64], sharding_type: ShardingType, layout: Layout
) -> NDArray[np.float64]:
    """Prices [2, T, V] of T tables in one form: the sum of their shards, the dearest shard."""
    num_cols = pricing.problem.arrays.num_cols[tables]
    shards = [pricing.shards_ms(tables, sharding_type, num_rows[tables], num_cols) for num_rows, _ in layout]
    totals = [count * total for (total, _), (_, count) in zip(shards, layout, strict=True)]
    return np.stack([np.sum(totals, axis=0), np.max([alone for _, alone in shards], axis=0)])


def _columns_ms(pricing: _Pricing, tables: NDArray[np.int64], num_quads: int) -> NDArray[np.float64]:
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
