"""A step in which every rank has the same loads: the level that ranks and options are held against."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import COMMS_PHASES, LOOKUP_PHASES, PHASES, AdditiveEstimator
from planner.cost.loads import NUM_TRAFFIC
from planner.problem import PlanningProblem

LEAST_MS = 1e-9
"""Keeps ratios finite where nothing costs anything."""

EXCHANGES = tuple(name for name in COMMS_PHASES if name != "all_reduce")
"""Phases that are all-to-alls."""


@dataclass(frozen=True, eq=False)
class EvenStep:
    """Prices even loads on one rank's device, where a rank is asked that stands for all.

    Attributes:
        problem: Devices, links, batch and dense part count, tables and memory do not.
        estimator: Gives the prices.
        rank: The rank that stands for all.
    """

    problem: PlanningProblem
    estimator: AdditiveEstimator
    rank: int

    def phases_ms(self, loads: NDArray[np.float64]) -> NDArray[np.float64]:
        """Phases [..., P], the mean of the ranks, if all have the same loads [..., K]."""
        lookup_ms = self.estimator.lookup_ms(self.problem, loads, np.array(self.rank))[..., None]
        shape = (*loads.shape[:-1], self.problem.topology.world_size)
        traffic = np.broadcast_to(loads[..., None, :NUM_TRAFFIC], (*shape, NUM_TRAFFIC))
        phases_ms = self.estimator.join_ms(self.problem, traffic, np.broadcast_to(lookup_ms, (2, *shape)))
        return np.asarray(phases_ms.mean(axis=-1))

    def added_ms(self, added: NDArray[np.float64], loads: NDArray[np.float64]) -> NDArray[np.float64]:
        """Milliseconds [...] that more loads [..., K] add to the step of loads [K]."""
        return np.asarray((self.phases_ms(loads + added) - self.phases_ms(loads)).sum(axis=-1))

    def level_ms(self, loads: NDArray[np.float64]) -> float:
        """Lookups and transfers of loads [K], at least `LEAST_MS`."""
        phases_ms = self.phases_ms(loads)
        return max(LEAST_MS, float(sum(phases_ms[PHASES.index(name)] for name in (*LOOKUP_PHASES, *EXCHANGES))))
