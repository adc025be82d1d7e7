"""The best plan of a small problem, with a proof: a mixed-integer program for scipy's HiGHS."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import AdditiveEstimator
from planner.cost.loads import NUM_TRAFFIC, Load
from planner.cost.step import StepEstimator
from planner.errors import InfeasibleError, PlanningError
from planner.memory import capacity_bytes
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.search.exact_program import Layout, StepRows, presence_rows
from planner.search.placement import Choice, Unit, build_plan, build_units, check_total, price_options

MAX_PLACEMENTS = 2000
"""Ways to place all units, each counted for itself, beyond which the program is refused: it would take hours."""

TOLERANCE = 1e-5
"""The plan's step may exceed the proven optimum by this share: HiGHS lets inequalities be off by 1e-6 units."""

INFEASIBLE, OPTIMAL = 2, 0
"""Codes of `scipy.optimize.milp`."""


@dataclass(frozen=True)
class ExactSearch:
    """The shortest step over all options that searches are offered (`PlanningProblem.options`) and all their ranks.

    Placements are 0-1 choices. Lookups that are not linear are approximated from below by tangents, at first those of
    the average rank; each solution adds the tangents at its own loads, until its step is what the program promised.
    Source: Duran and Grossmann 1986, An outer-approximation algorithm for a class of mixed-integer nonlinear programs.

    Attributes:
        estimator: Prices plans; a `StepEstimator`, whose planes and tangents the program is made of.
        budget_s: Seconds after which it gives up.
    """

    estimator: AdditiveEstimator
    budget_s: float

    def plan(self, problem: PlanningProblem) -> ShardingPlan:
        """The best plan.

        Raises:
            InfeasibleError: There is none among these options.
            PlanningError: The problem is too large, the estimator is of another kind, or the budget is spent (reason
                `strategy`).
        """
        if not isinstance(self.estimator, StepEstimator):
            raise PlanningError(
                f"exact: the estimator is a {type(self.estimator).__name__}, expected a StepEstimator; use another "
                "strategy",
                reason="strategy",
            )
        units = build_units(problem)
        check_total(problem, units)
        choices = _enumerate_choices(units)
        program = _Program(problem, self.estimator, units, choices)
        deadline = time.perf_counter() + self.budget_s
        best_ms, best_plan = np.inf, None
        while True:
            chosen, promised_ms = program.solve(deadline - time.perf_counter())
            plan = build_plan(problem, [choices[index] for index in chosen])
            step_ms = self.estimator.estimate(problem, plan).step_ms
            if best_plan is None or step_ms < best_ms:
                best_ms, best_plan = step_ms, plan
            if best_ms <= promised_ms * (1 + TOLERANCE):
                return best_plan
            program.touch(chosen)


def _enumerate_choices(units: tuple[Unit, ...]) -> list[Choice]:
    """All placements of all units; raises PlanningError where they are more than `MAX_PLACEMENTS`."""
    found: list[Choice] = []
    for unit in units:
        for choice in _unit_choices(unit):
            found.append(choice)
            if len(found) > MAX_PLACEMENTS:
                raise PlanningError(
                    f"exact: the tables have more than {MAX_PLACEMENTS:,} placements (of {len(units)} units, counted "
                    f"up to {unit.label}), expected fewer; use the portfolio, or constrain types and ranks",
                    reason="strategy",
                )
    return found


def _unit_choices(unit: Unit) -> Iterator[Choice]:
    for option in unit.options:
        if option.is_free:
            yield from (Choice(unit, option, ranks) for ranks in combinations(option.ranks, option.num_shards))
        else:
            yield Choice(unit, option, option.ranks)


class _Program:
    """The program of `exact_program`, with rows that grow from one solution to the next."""

    def __init__(
        self, problem: PlanningProblem, estimator: StepEstimator, units: tuple[Unit, ...], choices: list[Choice]
    ) -> None:
        self._problem, self._estimator = problem, estimator
        prices = price_options(problem, estimator, [choice.option for choice in choices])
        self._loads = _spread(choices, [price.loads for price in prices], problem.topology.world_size)
        num_bytes = _spread(choices, [price.num_bytes[:, None] for price in prices], problem.topology.world_size)[
            ..., 0
        ]
        self._step_rows = StepRows(problem, estimator, self._loads)
        self._layout = self._step_rows.layout
        members = [np.array([n for n, each in enumerate(choices) if each.unit is unit]) for unit in units]
        on_rank = self._loads[..., Load.FIRST_TYPE : NUM_TRAFFIC] > 0
        whole = [int(choices_of[0]) for choices_of in members]
        average = np.repeat(self._loads[whole].sum(axis=(0, 1))[None], problem.topology.world_size, axis=0)
        self._rows = [
            self._step_rows.fixed_rows(),
            self._step_rows.lookup_rows(average / problem.topology.world_size),
            presence_rows(self._layout, members, on_rank),
            _memory_rows(self._layout, num_bytes, capacity_bytes(problem)),
        ]
        self._members = members

    def touch(self, chosen: NDArray[np.int64]) -> None:
        """Makes the program exact at a solution."""
        self._rows.append(self._step_rows.lookup_rows(self._loads[chosen].sum(axis=0)))

    def solve(self, budget_s: float) -> tuple[NDArray[np.int64], float]:
        """The chosen placements, one a unit, and a step in milliseconds that no choice is below."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_matrix

        layout, rows = self._layout, np.concatenate(self._rows)
        costs = np.zeros(layout.constant)
        factor = 1.0 if self._estimator.host is None else 1.0 + self._estimator.host.waiting
        costs[layout.phases :] = factor
        is_binary = np.arange(layout.constant) < layout.phases
        placed = np.zeros((len(self._members), layout.constant))
        for unit, choices in enumerate(self._members):
            placed[unit, choices] = 1.0
        found = milp(
            costs,
            integrality=is_binary.astype(int),
            bounds=Bounds(np.zeros(layout.constant), np.where(is_binary, 1.0, np.inf)),
            constraints=[
                LinearConstraint(csr_matrix(rows[:, :-1]), -np.inf, -rows[:, -1]),
                LinearConstraint(csr_matrix(placed), 1.0, 1.0),
            ],
            options={"time_limit": max(budget_s, 0.0), "mip_rel_gap": TOLERANCE / 100},
        )
        self._check(found)
        chosen = [choices[int(found.x[choices].argmax())] for choices in self._members]
        return np.array(chosen), float(found.mip_dual_bound) * self._step_rows.unit_ms

    def _check(self, found: Any) -> None:
        if found.status == INFEASIBLE:
            raise InfeasibleError(
                "exact: no choice of ranks fits into the memory with tables whole, by rows, copied or in equal column "
                "shards; the portfolio also cuts columns unevenly",
                shortfall_bytes=0,
            )
        if found.status != OPTIMAL:
            raise PlanningError(
                f"exact: no proven optimum within the budget ({found.message}); raise planner.budget_s, or use the "
                "portfolio",
                reason="strategy",
            )


def _spread(choices: list[Choice], slots: list[NDArray[Any]], world_size: int) -> NDArray[np.float64]:
    """Figures [N, W, K] on each rank, from those of the shard positions [num_shards, K] of each choice."""
    spread = np.zeros((len(choices), world_size, slots[0].shape[1]))
    for row, choice, figures in zip(spread, choices, slots, strict=True):
        row[np.asarray(choice.ranks)] += figures
    return spread


def _memory_rows(layout: Layout, num_bytes: NDArray[np.float64], capacity: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rows [W]: what a rank holds, in shares of its capacity, is at most 1."""
    rows = np.zeros((layout.world_size, layout.constant + 1))
    unit = np.maximum(capacity, 1)[:, None]
    rows[:, : layout.num_choices] = num_bytes.T / unit
    rows[:, -1] = -1.0
    return rows
