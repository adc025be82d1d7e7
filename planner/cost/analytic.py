"""Lookups and dense layers from first principles: bytes over bandwidth, flops over rate, a launch a kernel.

Legend: F features and I ids per sample of a table, R rows, D columns of a shard (share s = its rows / the table's
rows), w bytes of a weight. samples is the global batch, or the rank's own where the table is replicated.

- Forward bytes: samples x (I s (D w + 8) + 4 F D): rows gathered, ids read, pooled rows written.
- Backward bytes: samples x I s (4 D + 16) for the gradient of every id and the sort of the ids, plus distinct
  rows x (2 D w + 2 state) for the rows updated: the table's, as its access statistics tell or for uniform ids,
  times the share s. Replicated tables have no fused update.
- A lookup takes bytes / hbm_bytes_per_s + launch_s a kernel. Dense backward is twice forward: two matrix products
  for one.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planner.cost.comms import MS_PER_S
from planner.cost.loads import REPLICATED, shard_ids_per_sample, shard_samples
from planner.cost.parts import LookupFloor
from planner.cost.step import StepEstimator
from planner.lookups import state_bytes
from planner.memory import FLOAT_BYTES, ID_BYTES
from planner.problem import PlanningProblem
from planner.shards import ShardArrays

SORT_BYTES = 16
"""Bytes moved per id by the sort of the backward pass: an int64 id is read and written once."""

DENSE_BACKWARD_FACTOR = 2.0
"""Dense backward over forward work: gradients of inputs and of weights, one matrix product each."""


class AnalyticLookups:
    """Lookup times of this module's docstring; loads are forward bytes and backward bytes."""

    def shard_loads(self, problem: PlanningProblem, shards: ShardArrays) -> NDArray[np.float64]:
        """Bytes [S, 2] that each shard moves, forward and backward."""
        workload, samples = problem.workload, shard_samples(problem, shards)
        ids = samples * shard_ids_per_sample(problem, shards)
        pooled_bytes = problem.arrays.num_features[shards.table] * shards.num_cols * FLOAT_BYTES
        forward = ids * (shards.num_cols * workload.weight_bytes + ID_BYTES) + samples * pooled_bytes
        update = np.where(shards.type_code == REPLICATED, 0.0, _update_bytes(problem, shards))
        return np.stack([forward, ids * (shards.num_cols * FLOAT_BYTES + SORT_BYTES) + update], axis=1)

    def times_ms(
        self,
        problem: PlanningProblem,
        loads: NDArray[np.float64],
        num_kernels: NDArray[np.float64],
        ranks: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Milliseconds [2, ...] of summed bytes [..., 2] on ranks, in so many kernels [...]."""
        devices = problem.devices
        bytes_first = np.moveaxis(loads, -1, 0)
        launch_s = devices.launch_s[ranks] * num_kernels
        return np.asarray((bytes_first / devices.hbm_bytes_per_s[ranks] + launch_s) * MS_PER_S)

    def floors(self, problem: PlanningProblem, at: Sequence[NDArray[np.float64]] = ()) -> tuple[LookupFloor, ...]:
        """The same, with the shortest launch; times are linear, so one floor serves for all loads."""
        rate_ms = MS_PER_S / problem.devices.hbm_bytes_per_s
        launch_bytes = (problem.devices.launch_s.min() * MS_PER_S) / rate_ms.min()
        floor = LookupFloor(np.full(2, launch_bytes), np.eye(2), np.stack([rate_ms, rate_ms]))
        return (floor,) * (1 + len(at))


class AnalyticDense:
    """Dense times from the devices' floating point rates."""

    def times_ms(self, problem: PlanningProblem) -> NDArray[np.float64]:
        """Milliseconds [2, W] forward and backward."""
        flops = problem.workload.batch_size * problem.workload.dense_flops_per_sample
        forward_ms = flops / problem.devices.flops_per_s * MS_PER_S
        return np.stack([forward_ms, forward_ms * DENSE_BACKWARD_FACTOR])


class AnalyticEstimator(StepEstimator):
    """A step from the figures of the topology alone: nothing was measured."""

    def __init__(self) -> None:
        super().__init__(AnalyticLookups(), AnalyticDense())


def _update_bytes(problem: PlanningProblem, shards: ShardArrays) -> NDArray[np.float64]:
    """Bytes [S] that a fused optimizer reads and writes: the distinct rows of the global batch, evenly spread."""
    touched = problem.arrays.distinct_rows / problem.arrays.num_rows
    state = state_bytes(problem.workload.optimizer, shards.num_cols)
    row_bytes = 2 * (shards.num_cols * problem.workload.weight_bytes + state)
    return np.asarray(shards.num_rows * touched[shards.table] * row_bytes)
