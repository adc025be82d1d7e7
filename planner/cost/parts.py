"""The parts of a step's cost that can be exchanged: lookups, dense layers and the host's own time."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from planner.problem import PlanningProblem
from planner.shards import ShardArrays


@dataclass(frozen=True, eq=False)
class LookupFloor:
    """A linear function of the loads that no lookup is below: rate_q x (constant + price . loads), times >= 0.

    Attributes:
        constant: [2] of a rank that looks anything up, forward and backward.
        price: [2, K] of loads.
        rate_ms: [2, W] milliseconds a unit on each rank.
    """

    constant: NDArray[np.float64]
    price: NDArray[np.float64]
    rate_ms: NDArray[np.float64]


class LookupCost(Protocol):
    """Times of embedding kernels from sums over the shards of a rank."""

    def shard_loads(self, problem: PlanningProblem, shards: ShardArrays) -> NDArray[np.float64]:
        """Additive figures [S, K] of shards, >= 0."""
        ...

    def times_ms(
        self, problem: PlanningProblem, loads: NDArray[np.float64], num_kernels: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Milliseconds [2, ..., W] forward and backward of summed loads [..., W, K] in so many kernels [..., W]."""
        ...

    def floor(self, problem: PlanningProblem) -> LookupFloor:
        """What these times cannot be below."""
        ...


class DenseCost(Protocol):
    """Times of the layers outside the tables."""

    def times_ms(self, problem: PlanningProblem) -> NDArray[np.float64]:
        """Milliseconds [2, W] forward and backward of one step."""
        ...
