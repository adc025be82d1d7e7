"""A proven lower bound of the step time of every legal plan."""

import numpy as np

from planner.cost.estimator import AdditiveEstimator
from planner.problem import PlanningProblem
from planner.search.bound_forms import form_bound_ms
from planner.search.bound_levels import level_bound_ms
from planner.search.bound_prices import Pricing


def lower_bound_ms(problem: PlanningProblem, estimator: AdditiveEstimator) -> float:
    """Milliseconds that no plan which `check` accepts can beat under an additive estimator.

    The better of two bounds, each with its proof in its module: `bound_forms`, which takes next to no time, and
    `bound_levels`, a search over linear programs, for problems that are not too large for it. In both a shard counts
    as if on the device kind and node where it is cheapest, and constraints on ranks are left out, which only makes
    minima smaller. Forms that the constraints on types rule out, or with a shard that exceeds the memory of every
    device, belong to no legal plan and are left out.

    Returns:
        The bound, 0 or more; infinite where a table has no form that fits, so that no plan is legal.
    """
    bounds = estimator.linear_bounds(problem)
    pricing = Pricing(problem, estimator, bounds)
    phases_ms = form_bound_ms(pricing)
    if 0.0 < phases_ms < np.inf:
        phases_ms = max(phases_ms, level_bound_ms(pricing, phases_ms))
    return min(bound.step_factor for bound in bounds) * phases_ms
