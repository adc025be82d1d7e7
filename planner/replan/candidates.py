"""Plans that may be better than the present one, each cut down to the changes that are worth their bytes."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.errors import InfeasibleError
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.replan.corrected import CorrectedEstimator
from planner.replan.interface import MovePrice, ReplanSettings
from planner.replan.layout import least_moved, mixed, table_bytes, whole_bytes
from planner.replan.priced_search import PricedSearch
from planner.replan.trail import Trail
from planner.search.assignment import Assignment
from planner.search.catalogue import Catalogue, build_catalogue
from planner.search.local_search import LOG_POWERS, LocalSearch, exact_score
from planner.search.objective import Standing, feel_rates
from planner.search.placement import build_units
from planner.search.portfolio import Portfolio

SHARES = (0.35, 0.5, 0.65)
"""Of the budget until which changes are sought that are worth their bytes one by one, all ranks are evened out whatever
it moves, and plans are sought that forget the present one; the rest is for the way back."""

LEAST_SHARE = 0.2
"""Of the budget that the first of these has in any case, also where pricing the present plan took longer."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """Another placement, and the plan that it would be.

    Attributes:
        assignment: The placement.
        plan: The same with columns in an order that moves least.
        moved_bytes: int64 [U], for each unit of the catalogue.
    """

    assignment: Assignment
    plan: ShardingPlan
    moved_bytes: NDArray[np.int64]


class Rearrangement:
    """The search for a better plan from the present one."""

    def __init__(self, problem: PlanningProblem, plan: ShardingPlan, estimator: CorrectedEstimator) -> None:
        """Prices the present plan.

        Args:
            problem: With the ids of now.
            plan: The present one.
            estimator: Corrected.
        """
        self.problem, self.plan, self.estimator = problem, plan, estimator
        self.catalogue: Catalogue = build_catalogue(problem, estimator, build_units(problem))
        self.start = Assignment.of_plan(self.catalogue, plan)
        rates = feel_rates(problem, estimator, self.start.loads)
        self.standing = Standing.at(problem, estimator, rates, self.start.loads, self.start.free_bytes, LOG_POWERS[-1])

    def candidates(
        self, price: MovePrice, num_steps: float, settings: ReplanSettings, began_s: float
    ) -> list[Candidate]:
        """Placements with a shorter step that exceed no memory more than the present one, in no order."""
        before = exact_score(self.start)
        found = ((each, exact_score(each)) for each in self._search(price, num_steps, settings, began_s))
        return [
            self._candidate(assignment) for assignment, score in found if score[0] <= before[0] and score[1] < before[1]
        ]

    def shortest_way(
        self, candidates: list[Candidate], price: MovePrice, num_steps: float, ends_at: float
    ) -> ShardingPlan | None:
        """The plan with the least `step x num_steps + price`; None where that is the present one."""
        best: tuple[float, ShardingPlan | None] = np.inf, None
        for candidate in candidates:
            units = np.flatnonzero((candidate.assignment.rows != self.start.rows).any(axis=1))
            moved_bytes = candidate.moved_bytes[units]
            trail = Trail(self.standing, self.start, candidate.assignment, units, moved_bytes, price, num_steps)
            value_ms, kept = trail.best(ends_at)
            if kept.any() and value_ms < min(best[0], trail.stay_ms):
                names = {name for unit in units[kept] for name in self.catalogue.units[unit].names}
                best = value_ms, mixed(self.plan, candidate.plan, names)
        return best[1]

    def _search(
        self, price: MovePrice, num_steps: float, settings: ReplanSettings, began_s: float
    ) -> Iterator[Assignment]:
        """What searches find: near the present placement, and far from it."""
        near_ends, polish_ends, ends = (began_s + share * settings.budget_s for share in SHARES)
        near_ends = max(near_ends, time.monotonic() + LEAST_SHARE * settings.budget_s)
        rng, table_bytes = np.random.default_rng(settings.seed), self._unit_bytes()
        near = PricedSearch(self.catalogue, self.standing.rates, table_bytes, price, num_steps, rng, near_ends)
        yield near.descend(self.start)
        yield LocalSearch(self.catalogue, polish_ends, rng).polish(self.start)
        left_s = ends - time.monotonic()
        if left_s <= 0:
            return
        try:
            found = Portfolio(self.estimator, left_s, settings.seed).compete(self.problem).assignment
        except InfeasibleError:
            return  # A search from nothing may miss what fits; the present plan does, and was searched from.
        yield Assignment.of_forms(self.catalogue, found.form, found.granules)

    def _unit_bytes(self) -> NDArray[np.float64]:
        """Weights and optimizer state of each unit [U]."""
        workload, tables = self.problem.workload, self.problem.tables
        return np.array(
            [sum(whole_bytes(workload, tables[name]) for name in unit.names) for unit in self.catalogue.units],
            dtype=np.float64,
        )

    def _candidate(self, assignment: Assignment) -> Candidate:
        plan = least_moved(self.problem, self.plan, assignment)
        before = {table.name: table for table in self.plan.tables}
        moved = np.zeros(len(self.catalogue.units), dtype=np.int64)
        after = {table.name: table for table in plan.tables}
        for at in np.flatnonzero((assignment.rows != self.start.rows).any(axis=1)):
            names = self.catalogue.units[at].names
            moved[at] = sum(table_bytes(self.problem.workload, before[name], after[name]) for name in names)
        return Candidate(assignment, plan, moved)
