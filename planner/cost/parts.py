"""The parts of a step's cost that can be exchanged: lookups, dense layers and the host's own time."""

from collections.abc import Sequence
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
        constant: [2] of a rank that looks anything up, forward and backward; below 0 for a tangent far out.
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
        self,
        problem: PlanningProblem,
        loads: NDArray[np.float64],
        num_kernels: NDArray[np.float64],
        ranks: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Milliseconds [2, ...] forward and backward of summed loads [..., K] in so many kernels [...].

        Args:
            problem: What is planned.
            loads: Of one rank each.
            num_kernels: Sharding types that the rank has shards of.
            ranks: Which ranks, of a shape that broadcasts to the others'.
        """
        ...

    def floors(self, problem: PlanningProblem, at: Sequence[NDArray[np.float64]] = ()) -> tuple[LookupFloor, ...]:
        """What these times cannot be below; each holds, the first for a single shard as well as it can.

        Args:
            problem: What is planned.
            at: Loads [K] of a rank; as many floors more, each with the slope that times have there.
        """
        ...


class DenseCost(Protocol):
    """Times of the layers outside the tables."""

    def times_ms(self, problem: PlanningProblem) -> NDArray[np.float64]:
        """Milliseconds [2, W] forward and backward of one step."""
        ...
