"""The interface of cost estimators and the estimate they give."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.shards import ShardArrays

PHASES = (
    "input_dist",
    "lookup_forward",
    "output_dist_forward",
    "dense_forward",
    "dense_backward",
    "output_dist_backward",
    "lookup_backward",
    "all_reduce",
    "optimizer",
    "other",
)
"""The phases of a training step, in order; rows of `PlanCost.phases_ms`.

optimizer: of the dense part and of replicated tables. other: what the host does between the phases.
"""

LOOKUP_PHASES = ("lookup_forward", "lookup_backward")
"""Phases in which embedding kernels run."""

COMMS_PHASES = ("input_dist", "output_dist_forward", "output_dist_backward", "all_reduce")
"""Phases that are collectives."""


@dataclass(frozen=True, eq=False)
class PlanCost:
    """Estimated times of one training step under a plan.

    Attributes:
        phases_ms: float64 [P, W], milliseconds of each of `PHASES` on each rank, own work without waiting.
    """

    phases_ms: NDArray[np.float64]

    def phase(self, name: str) -> NDArray[np.float64]:
        """Milliseconds [W] of one of `PHASES`."""
        return np.asarray(self.phases_ms[PHASES.index(name)])

    @property
    def lookup_ms(self) -> NDArray[np.float64]:
        """Milliseconds [W] in embedding kernels, forward and backward."""
        return self._sum(LOOKUP_PHASES)

    @property
    def comms_ms(self) -> NDArray[np.float64]:
        """Milliseconds [W] in collectives."""
        return self._sum(COMMS_PHASES)

    @property
    def total_ms(self) -> NDArray[np.float64]:
        """Milliseconds [W] of own work in a step."""
        return np.asarray(self.phases_ms.sum(axis=0))

    @property
    def step_ms(self) -> float:
        """Milliseconds of a step: the sum over phases of the slowest rank.

        A collective ends when its last rank arrives.

        Source: Lin et al. 2022, arXiv 2201.07821, section on multi-device execution.
        """
        return float(self.phases_ms.max(axis=1).sum())

    @property
    def max_rank_ms(self) -> float:
        """Own work of the busiest rank."""
        return float(self.total_ms.max())

    @property
    def mean_rank_ms(self) -> float:
        """Own work of the average rank."""
        return float(self.total_ms.mean())

    @property
    def imbalance(self) -> float:
        """Busiest over average rank, 1 when even."""
        return max(1.0, self.max_rank_ms / self.mean_rank_ms) if self.mean_rank_ms > 0 else 1.0

    def _sum(self, names: tuple[str, ...]) -> NDArray[np.float64]:
        return np.asarray(self.phases_ms[[PHASES.index(name) for name in names]].sum(axis=0))


class Estimator(Protocol):
    """Anything that tells what a step costs under a plan, without running it."""

    def estimate(self, problem: PlanningProblem, plan: ShardingPlan) -> PlanCost:
        """The cost of a plan that places the problem's tables."""
        ...


class AdditiveEstimator(Estimator, Protocol):
    """An estimator whose phases depend on sums over the shards of a rank, so that searches can update them.

    `loads` are K additive figures of each shard; their sums over ranks [..., W, K] give the phases. The first
    `planner.cost.loads.NUM_TRAFFIC` of them are what a shard adds besides its lookups.
    """

    def shard_loads(self, problem: PlanningProblem, shards: ShardArrays) -> NDArray[np.float64]:
        """Additive figures [S, K] of shards >= 0; of the rank only its device kind and node size may matter."""
        ...

    def phases_ms(self, problem: PlanningProblem, loads: NDArray[np.float64]) -> NDArray[np.float64]:
        """Phases [..., P, W] of summed loads [..., W, K]; leading dimensions are a batch."""
        ...

    def lookup_ms(
        self, problem: PlanningProblem, loads: NDArray[np.float64], ranks: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Milliseconds [2, ...] in embedding kernels, forward and backward, of loads [..., K] on ranks [...]."""
        ...

    def join_ms(
        self, problem: PlanningProblem, traffic: NDArray[np.float64], lookup_ms: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Phases [..., P, W] of traffic [..., W, NUM_TRAFFIC] and lookup times [2, ..., W]."""
        ...

    def linear_bounds(self, problem: PlanningProblem) -> tuple["LinearBound", ...]:
        """Linear functions of the loads that never exceed the phases of any plan, for proofs."""
        ...


@dataclass(frozen=True, eq=False)
class LinearBound:
    """A proof that a phase costs at least so much, linear in loads.

    For every plan and phase p: max over ranks of the phase >= constant_ms[p] + of_total[p] . (sum of all
    loads), and >= constant_ms[p] + of_shard[p] . (loads of any shards that are on one rank). And the step is at
    least step_factor x the sum over phases of what is proven so.

    Attributes:
        of_total: float64 [P, K], milliseconds per unit of load, summed over ranks.
        of_shard: float64 [P, K], milliseconds per unit of load of one shard, >= 0; of all shards of a rank as well.
        constant_ms: float64 [P].
        step_factor: At least 1.
    """

    of_total: NDArray[np.float64]
    of_shard: NDArray[np.float64]
    constant_ms: NDArray[np.float64]
    step_factor: float = 1.0
