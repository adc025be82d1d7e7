"""Prices of shards under linear bounds, and the shards of every form that a table may legally have."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import AdditiveEstimator, LinearBound
from planner.memory import capacity_bytes, shard_bytes
from planner.problem import PlanningProblem
from planner.sharding import ShardingType, is_data_parallel_legal
from planner.shards import TYPE_CODE, ShardArrays

CHUNK_SHARDS = 1 << 14
"""Shards priced at once: some megabytes, enough that numpy's overhead does not count."""

Layout = list[tuple[NDArray[np.float64], int]]
"""The shards of a form that has whole rows: rows [T] of a shard and how many are alike."""


class Pricing:
    """Prices of shards in V views: the distinct linear functions of N bounds, each for P phases and their sum.

    Attributes:
        problem: What is planned.
        estimator: Gives the loads.
        weights_ms: float64 [2, K, V], price of a unit of load: in the sum over all shards, and of one shard.
        constant_ms: float64 [N, P], of the bounds.
        view: int64 [N, 1 + P], which view is the sum over the phases of a bound, and which is each phase.
        ranks: One rank of each device kind and node size.
        most_bytes: Memory for shards of the largest device.
    """

    def __init__(self, problem: PlanningProblem, estimator: AdditiveEstimator, bounds: tuple[LinearBound, ...]) -> None:
        self.problem, self.estimator = problem, estimator
        self.constant_ms = np.array([bound.constant_ms for bound in bounds])
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
        on_each = [_shards_on(rank, table, sharding_type, num_rows, num_cols) for rank in self.ranks]
        prices = [self.estimator.shard_loads(self.problem, shards) @ self.weights_ms for shards in on_each]
        fits = shard_bytes(self.problem, on_each[0]) <= self.most_bytes
        return np.where(fits[:, None], np.minimum.reduce(prices), np.inf)

    def bytes_of(
        self,
        table: NDArray[np.int64],
        sharding_type: ShardingType,
        num_rows: NDArray[np.float64],
        num_cols: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """Bytes [S] of the same shards."""
        return shard_bytes(self.problem, _shards_on(self.ranks[0], table, sharding_type, num_rows, num_cols))


def _shards_on(
    rank: int,
    table: NDArray[np.int64],
    sharding_type: ShardingType,
    num_rows: NDArray[np.float64],
    num_cols: NDArray[np.float64],
) -> ShardArrays:
    return ShardArrays(
        table, np.full_like(table, rank), np.full_like(table, TYPE_CODE[sharding_type]), num_rows, num_cols
    )


def layouts(problem: PlanningProblem) -> dict[ShardingType, Layout]:
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


def allowed_tables(problem: PlanningProblem, sharding_type: ShardingType) -> NDArray[np.int64]:
    """Positions of the tables whose constraints allow a type."""
    allowed = [problem.rules[table.name].sharding_types for table in problem.workload.tables]
    return np.flatnonzero([types is None or sharding_type in types for types in allowed])


def in_chunks(tables: NDArray[np.int64], shards_each: int = 1) -> Iterator[NDArray[np.int64]]:
    """Parts of some tables, of about `CHUNK_SHARDS` shards each."""
    size = -(-CHUNK_SHARDS // shards_each)
    return (tables[first : first + size] for first in range(0, len(tables), size))
