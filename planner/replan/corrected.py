"""An estimator that was held against a running job: the model it wraps, corrected by what was seen.

    phase of rank r = factor x model's phase + offset [+ bytes that r sends x send_ms_per_byte, of an exchange], >= 0

with the model's lookups taken of loads that are scaled by table, and their times scaled by rank.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import LOOKUP_PHASES, PHASES, AdditiveEstimator, LinearBound, PlanCost
from planner.cost.loads import NUM_TRAFFIC, Load
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.shards import ShardArrays, plan_shards

EXCHANGES = ("input_dist", "output_dist_forward", "output_dist_backward")
"""Phases that are all-to-alls, in the order of `sent_bytes`."""

EXCHANGE_ROWS = [PHASES.index(phase) for phase in EXCHANGES]
LOOKUP_ROWS = [PHASES.index(phase) for phase in LOOKUP_PHASES]


@dataclass(frozen=True, eq=False)
class CorrectedEstimator:
    """The corrected estimator; additive as its base is, for problems with the same tables and ranks.

    Attributes:
        base: The model.
        table_factor: float64 [T], on lookup loads of shards, by the table's position in the workload.
        lookup_factor: float64 [2, W], on lookup times, forward and backward.
        phase_factor: float64 [P, W], on all other phases; 1 on lookups.
        phase_offset_ms: float64 [P, W].
        send_ms_per_byte: float64 [W] >= 0, what a byte that leaves the rank takes longer than the model says.
    """

    base: AdditiveEstimator
    table_factor: NDArray[np.float64]
    lookup_factor: NDArray[np.float64]
    phase_factor: NDArray[np.float64]
    phase_offset_ms: NDArray[np.float64]
    send_ms_per_byte: NDArray[np.float64]

    def estimate(self, problem: PlanningProblem, plan: ShardingPlan) -> PlanCost:
        """The corrected cost of a plan."""
        return PlanCost(self.phases_ms(problem, self.sum_loads(problem, plan)))

    def sum_loads(self, problem: PlanningProblem, plan: ShardingPlan) -> NDArray[np.float64]:
        """The loads [W, K] of a plan, summed over the shards of each rank."""
        shards = plan_shards(problem, plan)
        loads = self.shard_loads(problem, shards)
        sums = np.zeros((problem.topology.world_size, loads.shape[1]))
        np.add.at(sums, shards.rank, loads)
        return sums

    def shard_loads(self, problem: PlanningProblem, shards: ShardArrays) -> NDArray[np.float64]:
        """Additive figures [S, K] of shards >= 0: the base's, those of lookups scaled by table."""
        loads = self.base.shard_loads(problem, shards).copy()
        loads[:, NUM_TRAFFIC:] *= self.table_factor[shards.table, None]
        return loads

    def phases_ms(self, problem: PlanningProblem, loads: NDArray[np.float64]) -> NDArray[np.float64]:
        """Phases [..., P, W] of summed loads [..., W, K]."""
        lookup_ms = self.lookup_ms(problem, loads, np.arange(loads.shape[-2]))
        return self.join_ms(problem, loads[..., :NUM_TRAFFIC], lookup_ms)

    def lookup_ms(
        self, problem: PlanningProblem, loads: NDArray[np.float64], ranks: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Milliseconds [2, ...] in embedding kernels of loads [..., K] on ranks (broadcast to [...])."""
        of_base = self.base.lookup_ms(problem, loads, ranks)
        return np.moveaxis(np.moveaxis(of_base, 0, -1) * self.lookup_factor.T[ranks], -1, 0)

    def join_ms(
        self, problem: PlanningProblem, traffic: NDArray[np.float64], lookup_ms: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Phases [..., P, W] of traffic [..., W, NUM_TRAFFIC] and lookup times [2, ..., W]."""
        phases_ms = self.phase_factor * self.base.join_ms(problem, traffic, lookup_ms) + self.phase_offset_ms
        if self.send_ms_per_byte.any():
            phases_ms[..., EXCHANGE_ROWS, :] += self.send_ms_per_byte * sent_bytes(problem, traffic)
        return np.maximum(phases_ms, 0.0)

    def linear_bounds(self, problem: PlanningProblem) -> tuple[LinearBound, ...]:
        """The base's bounds of our loads, times the least factor of each phase, plus its least offset.

        Proof: what the base's phase is at least, it is on loads that are scaled by table as well, since its floors hold
        for any loads >= 0. A rank's corrected phase is >= f x the base's + offset with f >= 0 its factor, of a lookup
        the smaller of it and 1, since the host's part of the phase is not scaled. Bytes of slow senders only add.
        Waiting is left out, so the step is at least the sum over phases.
        """
        least = self.phase_factor.min(axis=1)
        least[LOOKUP_ROWS] = np.minimum(self.lookup_factor.min(axis=1), 1.0)
        offset_ms = self.phase_offset_ms.min(axis=1)
        return tuple(
            LinearBound(
                least[:, None] * bound.of_total,
                least[:, None] * bound.of_shard,
                least * bound.constant_ms + offset_ms,
            )
            for bound in self.base.linear_bounds(problem)
        )


def sent_bytes(problem: PlanningProblem, traffic: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bytes [..., 3, W] that leave each rank in each of `EXCHANGES`, of summed traffic [..., W, NUM_TRAFFIC].

    Pooled rows go from the rank that holds them to all others. Ids and gradients of its own samples go from a rank to
    those that hold the tables, so the less the more of them it holds itself. `planner.cost.loads` defines the loads.
    """
    devices, world_size = problem.devices, problem.topology.world_size
    ids, intra, inter = (traffic[..., each] for each in (Load.ID_BYTES, Load.INTRA_BYTES, Load.INTER_BYTES))
    forward = (devices.node_size - 1) * intra + (world_size - devices.node_size) * inter
    gradients = devices.node_sums(intra) - intra + inter.sum(axis=-1, keepdims=True) - devices.node_sums(inter)
    return np.stack([ids.sum(axis=-1, keepdims=True) - ids, forward, gradients], axis=-2)
