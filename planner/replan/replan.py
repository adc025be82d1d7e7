"""Whether another plan is worth a migration now: residuals correct the model, a search starts at the present plan."""

import time
from collections.abc import Iterator

from planner.check import check
from planner.cost.estimator import AdditiveEstimator
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.replan.candidates import Rearrangement
from planner.replan.decide import decide
from planner.replan.interface import Decision, MovePrice, Observation, ReplanSettings
from planner.replan.residuals import learn_corrections
from planner.text import human_bytes
from planner.transfers import moved_bytes

LONGER, MOST_TRIES = 2.0, 24
"""Where no change pays over the steps that count, the cheapest that would is found by so many times more of them, so
often: up to ten million times more."""

TINY_MS = 1e-9
"""Of a step that did not grow, which keeps it out of divisions."""


def replan(
    problem: PlanningProblem,
    plan: ShardingPlan,
    estimator: AdditiveEstimator,
    seen: Observation,
    healthy: Observation | None,
    price: MovePrice,
    remaining_steps: int | None,
    lost_ms: float,
    settings: ReplanSettings,
) -> Decision:
    """The decision on a job out of balance: to another plan, or none with the reason.

    Args:
        problem: Tables as they were planned, devices, constraints.
        plan: The present one, legal.
        estimator: Uncorrected.
        seen: Of the job lately.
        healthy: Of the job before it lost its balance, under the same plan; None where it never was in balance.
        price: Of a migration.
        remaining_steps: Until the job ends; None where that is not known.
        lost_ms: What the lost balance has cost since it began; counts where the end is not known.
        settings: Of search and margin.

    Raises:
        ValueError: An observation is of another number of ranks.
        PlanningError: The plan is not one of the problem's.
    """
    began_s = time.monotonic()
    _check_ranks(problem, seen, healthy)
    now, corrected = learn_corrections(problem, plan, estimator, seen, healthy)
    step_ms = corrected.estimate(now, plan).step_ms
    num_steps = _steps_that_count(remaining_steps, lost_ms, seen, healthy)
    better = _find_better(Rearrangement(now, plan, corrected), price, num_steps, settings, began_s)
    if better is None:
        reason = f"no: no plan was found whose step is shorter than {step_ms:.2f} ms"
        return Decision(False, None, None, step_ms, 0.0, 0, 0.0, remaining_steps, reason)
    check(better, problem)
    expected = corrected.estimate(now, better)
    gain_ms = step_ms - expected.step_ms
    num_bytes = moved_bytes(plan, better, problem.workload)
    price_ms = float(price.pause_ms(num_bytes))
    # A plan that mends less than what grew would have saved less than what was lost.
    saved_ms = lost_ms * min(1.0, gain_ms / _grown_ms(seen, healthy))
    is_move, why = decide(gain_ms, step_ms, price_ms, remaining_steps, saved_ms, settings.margin)
    num_tables = sum(old != new for old, new in zip(plan.tables, better.tables, strict=True))
    reason = f"{why} ({num_tables} table{'' if num_tables == 1 else 's'}, {human_bytes(num_bytes)})"
    return Decision(is_move, better, expected, step_ms, gain_ms, num_bytes, price_ms, remaining_steps, reason)


def _find_better(
    search: Rearrangement, price: MovePrice, num_steps: float, settings: ReplanSettings, began_s: float
) -> ShardingPlan | None:
    """The plan with the least sum of steps and price, over more steps than asked for where nothing pays so soon."""
    candidates, ends_at = search.candidates(price, num_steps, settings, began_s), began_s + settings.budget_s
    horizons = list(_longer(num_steps)) if candidates else []
    for number, horizon in enumerate(horizons):
        # With no time for one after another, the longest tells whether anything is gained at all.
        is_last = number > 0 and time.monotonic() >= ends_at
        better = search.shortest_way(candidates, price, horizons[-1] if is_last else horizon, ends_at)
        if better is not None or is_last:
            return better
    return None


def _steps_that_count(
    remaining_steps: int | None, lost_ms: float, seen: Observation, healthy: Observation | None
) -> float:
    """The steps that remain; with an unknown end as many as there have been since the loss began."""
    if remaining_steps is not None:
        return max(1.0, float(remaining_steps))
    return max(1.0, lost_ms / _grown_ms(seen, healthy))


def _grown_ms(seen: Observation, healthy: Observation | None) -> float:
    """By how much a step is longer than it was; than of even ranks where none was ever seen healthy."""
    usual_ms = float(seen.phases_ms.mean(axis=1).sum()) if healthy is None else healthy.step_ms
    return max(seen.step_ms - usual_ms, TINY_MS)


def _longer(num_steps: float) -> Iterator[float]:
    return (num_steps * LONGER**power for power in range(MOST_TRIES))


def _check_ranks(problem: PlanningProblem, *observations: Observation | None) -> None:
    for each in observations:
        if each is not None and each.phases_ms.shape[1] != problem.topology.world_size:
            raise ValueError(
                f"observation: found {each.phases_ms.shape[1]} ranks, expected {problem.topology.world_size}"
            )
