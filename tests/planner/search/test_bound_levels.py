"""The bound by levels is held against plans, and is worth more than the bound by forms where few shards fill a rank."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.analytic import AnalyticEstimator
from planner.cost.dense import DenseModel
from planner.cost.estimator import AdditiveEstimator
from planner.cost.learned import LearnedLookups
from planner.cost.pretrained import load_host, load_pretrained
from planner.cost.step import StepEstimator
from planner.errors import InfeasibleError, PlanningError
from planner.problem import PlanningProblem
from planner.search import bound_levels
from planner.search.bound import lower_bound_ms
from planner.search.bound_forms import form_bound_ms
from planner.search.bound_levels import level_bound_ms
from planner.search.bound_prices import Pricing
from planner.search.exact import ExactSearch
from planner.search.heuristics import RandomPlacement
from planner.search.longest_processing_time import LongestProcessingTime
from planner.tables import Workload
from planner.topology import DeviceType, Topology


def _learned(num_ranks: int) -> StepEstimator:
    model, host = load_pretrained(DeviceType.CPU), load_host(DeviceType.CPU)
    assert model is not None and host is not None
    dense = DenseModel(np.zeros((2, 4)), np.ones(1))
    return StepEstimator(LearnedLookups(model, np.linspace(2.0, 3.0, num_ranks)), dense, host=host)


def _by_levels_ms(problem: PlanningProblem, estimator: AdditiveEstimator) -> tuple[float, float]:
    pricing = Pricing(problem, estimator, estimator.linear_bounds(problem))
    form_ms = form_bound_ms(pricing)
    return form_ms, level_bound_ms(pricing, form_ms)


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.integers(8, 400_000), st.sampled_from([4, 16, 64, 128]), st.floats(0.1, 80.0)),
        min_size=3,
        max_size=12,
    ),
    nodes=st.sampled_from([(1, 4), (2, 2), (2, 4)]),
    is_learned=st.booleans(),
    is_uneven=st.booleans(),
    fill=st.sampled_from([0.3, 0.8]),
)
def test_no_legal_plan_is_below_the_bound(
    make_workload: Callable[..., Workload],
    make_topology: Callable[..., Topology],
    shapes: list[tuple[int, int, float]],
    nodes: tuple[int, int],
    is_learned: bool,
    is_uneven: bool,
    fill: float,
) -> None:
    num_ranks = nodes[0] * nodes[1]
    weights = sum(4 * rows * cols for rows, cols, _ in shapes)
    hbm_bytes = int(weights / num_ranks / fill) + (64 << 20)
    speeds = tuple(np.linspace(3e11, 1e12, num_ranks)) if is_uneven else ()
    topology = make_topology(*nodes, speeds=speeds, hbm_bytes=hbm_bytes)
    problem = PlanningProblem(make_workload(*shapes, batch_size=256), topology)
    estimator = _learned(num_ranks) if is_learned else AnalyticEstimator()
    bound_ms = lower_bound_ms(problem, estimator)
    assert bound_ms > 0
    for strategy in (LongestProcessingTime(estimator), *(RandomPlacement(seed) for seed in range(5))):
        try:
            plan = strategy.plan(problem)
        except InfeasibleError:
            continue
        assert bound_ms <= estimator.estimate(problem, plan).step_ms * (1 + 1e-9)


def test_few_large_tables_are_known_to_leave_ranks_idle(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    """A table as dear as all ranks' average together: it is split, and no other forms are as cheap as averages say."""
    uneven = make_workload((100_000, 64, 50.0), *[(100_000, 4, 1.0)] * 3, batch_size=4096)
    problem, estimator = PlanningProblem(uneven, make_topology(1, 4)), AnalyticEstimator()
    best_ms = estimator.estimate(problem, ExactSearch(estimator, 60.0).plan(problem)).step_ms
    form_ms, level_ms = _by_levels_ms(problem, estimator)
    assert form_ms < 0.9 * level_ms
    assert level_ms <= best_ms * (1 + 1e-9)


def test_boxes_raise_the_bound(
    mlperf: Workload, make_topology: Callable[..., Topology], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, estimator = PlanningProblem(mlperf, make_topology(1, 16)), AnalyticEstimator()
    _, searched_ms = _by_levels_ms(problem, estimator)
    monkeypatch.setattr(bound_levels, "MOST_BOXES", 1)
    _, at_once_ms = _by_levels_ms(problem, estimator)
    assert 0 < at_once_ms < searched_ms


def test_a_solver_that_fails_proves_nothing_wrong(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Multipliers far from the best still give a bound, only a worse one."""
    import scipy.optimize

    problem = PlanningProblem(make_workload((100_000, 64, 50.0), (900, 16, 9.0), batch_size=512), make_topology(1, 3))
    estimator, solve = AnalyticEstimator(), scipy.optimize.linprog
    plan = ExactSearch(estimator, 60.0).plan(problem)
    best_ms = estimator.estimate(problem, plan).step_ms
    rng = np.random.default_rng(0)

    def shaken(*args: object, **kwargs: object) -> object:
        found = solve(*args, **kwargs)
        for part in (found.ineqlin, found.eqlin):
            part.marginals = part.marginals * rng.uniform(0.0, 3.0, len(part.marginals))
        return found

    monkeypatch.setattr(scipy.optimize, "linprog", shaken)
    for _ in range(5):
        assert _by_levels_ms(problem, estimator)[1] <= best_ms * (1 + 1e-9)


def test_problems_beyond_the_program_are_left_to_the_forms(
    mlperf: Workload, make_topology: Callable[..., Topology], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, estimator = PlanningProblem(mlperf, make_topology(1, 8)), AnalyticEstimator()
    monkeypatch.setattr(bound_levels, "MAX_COLUMNS", 10)
    form_ms, level_ms = _by_levels_ms(problem, estimator)
    assert level_ms == 0.0 and lower_bound_ms(problem, estimator) == pytest.approx(form_ms)
    with pytest.raises(PlanningError):
        ExactSearch(estimator, 1.0).plan(problem)
