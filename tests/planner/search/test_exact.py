"""The exact solver is held against trying every plan that searches are offered."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.check import check
from planner.cost.analytic import AnalyticEstimator
from planner.cost.dense import DenseModel
from planner.cost.estimator import AdditiveEstimator
from planner.cost.learned import LearnedLookups
from planner.cost.pretrained import load_host, load_pretrained
from planner.cost.step import StepEstimator
from planner.errors import InfeasibleError, PlanningError
from planner.plan import ShardingPlan, TablePlacement
from planner.problem import PlanningProblem, TableConstraint
from planner.search.bound import lower_bound_ms
from planner.search.exact import ExactSearch
from planner.sharding import ShardingOption, ShardingType
from planner.tables import OptimizerKind, Workload
from planner.topology import DeviceType, Topology

MIB = 1 << 20
BUDGET_S = 300.0


def _placements(option: ShardingOption) -> list[TablePlacement]:
    chosen = itertools.combinations(option.ranks, option.num_shards) if option.is_free else [option.ranks]
    return [TablePlacement(option.table.name, option.sharding_type, option.shards(ranks)) for ranks in chosen]


def _brute_force_ms(problem: PlanningProblem, estimator: AdditiveEstimator) -> float:
    """The shortest step of all plans of the offered options; infinite where none is legal."""
    choices = [
        [placement for option in problem.options(table.name) for placement in _placements(option)]
        for table in problem.workload.tables
    ]
    best = np.inf
    for tables in itertools.product(*choices):
        plan = ShardingPlan(problem.topology.world_size, tables)
        try:
            check(plan, problem)
        except PlanningError:
            continue
        best = min(best, estimator.estimate(problem, plan).step_ms)
    return best


def _learned(num_ranks: int, with_host: bool) -> StepEstimator:
    model, host = load_pretrained(DeviceType.CPU), load_host(DeviceType.CPU)
    assert model is not None and host is not None
    canary_ms = np.linspace(2.0, 3.0, num_ranks)
    dense = DenseModel(np.zeros((2, 4)), np.ones(1))
    return StepEstimator(LearnedLookups(model, canary_ms), dense, host=host.scaled(1.0) if with_host else None)


@settings(max_examples=12, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.integers(3, 300_000), st.sampled_from([4, 32, 64]), st.floats(0.1, 60.0)), min_size=1, max_size=3
    ),
    nodes=st.sampled_from([(1, 2), (1, 3), (2, 1)]),
    estimator=st.sampled_from(["analytic", "learned", "calibrated"]),
    is_uneven=st.booleans(),
    optimizer=st.sampled_from([OptimizerKind.ROWWISE_ADAGRAD, OptimizerKind.ADAM]),
    dense_parameters=st.sampled_from([0, 100_000]),
    hbm_bytes=st.sampled_from([64 * MIB, 4096 * MIB]),
    constraint=st.sampled_from(
        [(), (TableConstraint(("table_0",), ranks=(1,)),), (TableConstraint(("*",), together=True),)]
    ),
)
def test_exact_is_the_best_of_all_offered_plans_and_the_bound_is_not_above_it(
    make_workload: Callable[..., Workload],
    make_topology: Callable[..., Topology],
    shapes: list[tuple[int, int, float]],
    nodes: tuple[int, int],
    estimator: str,
    is_uneven: bool,
    optimizer: OptimizerKind,
    dense_parameters: int,
    hbm_bytes: int,
    constraint: tuple[TableConstraint, ...],
) -> None:
    num_ranks = nodes[0] * nodes[1]
    speeds = (1e12, 3e11, 6e11)[:num_ranks] if is_uneven else ()
    topology = make_topology(*nodes, speeds=speeds, hbm_bytes=hbm_bytes)
    workload = make_workload(*shapes, optimizer=optimizer, batch_size=512, dense_parameters=dense_parameters)
    problem = PlanningProblem(workload, topology, constraint)
    prices = AnalyticEstimator() if estimator == "analytic" else _learned(num_ranks, estimator == "calibrated")
    best_ms = _brute_force_ms(problem, prices)
    if best_ms == np.inf:
        with pytest.raises(InfeasibleError):
            ExactSearch(prices, BUDGET_S).plan(problem)
        return
    plan = ExactSearch(prices, BUDGET_S).plan(problem)
    check(plan, problem)
    assert prices.estimate(problem, plan).step_ms == pytest.approx(best_ms, rel=1e-5)
    assert lower_bound_ms(problem, prices) <= best_ms * (1 + 1e-9)


def test_a_problem_with_two_ranks_a_node_is_solved_too(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    workload = make_workload((200_000, 32, 40.0), (100, 32, 2.0), batch_size=256)
    problem = PlanningProblem(workload, make_topology(2, 2))
    for prices in (AnalyticEstimator(), _learned(4, with_host=True)):
        plan = ExactSearch(prices, BUDGET_S).plan(problem)
        expected_ms = _brute_force_ms(problem, prices)
        assert prices.estimate(problem, plan).step_ms == pytest.approx(expected_ms, rel=1e-5)


def test_a_large_problem_is_refused_with_its_size(mlperf: Workload, make_topology: Callable[..., Topology]) -> None:
    with pytest.raises(PlanningError, match="more than 2,000 placements") as caught:
        ExactSearch(AnalyticEstimator(), BUDGET_S).plan(PlanningProblem(mlperf, make_topology(1, 16)))
    assert caught.value.reason == "strategy"


def test_a_spent_budget_is_told_and_gives_no_plan(mlperf: Workload, make_topology: Callable[..., Topology]) -> None:
    types = (TableConstraint(("*",), sharding_types=(ShardingType.TABLE_WISE,)),)
    problem = PlanningProblem(mlperf, make_topology(1, 8), types)
    with pytest.raises(PlanningError, match="no proven optimum within the budget") as caught:
        ExactSearch(AnalyticEstimator(), 0.0).plan(problem)
    assert caught.value.reason == "strategy"


def test_an_estimator_without_planes_is_refused(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    class _Other:
        """Not a `StepEstimator`."""

    problem = PlanningProblem(make_workload((100, 4, 1.0)), make_topology(1, 2))
    with pytest.raises(PlanningError, match="expected a StepEstimator"):
        ExactSearch(_Other(), BUDGET_S).plan(problem)  # type: ignore[arg-type]


def test_tight_memory_is_told_as_infeasible(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    whole = (TableConstraint(("*",), sharding_types=(ShardingType.TABLE_WISE,)),)
    workload = make_workload(*[(100_000, 32, 1.0)] * 3, batch_size=4)
    topology = make_topology(1, 2, hbm_bytes=100_000 * 4 * 33 * 3 // 2 + MIB)
    problem = PlanningProblem(workload, topology, whole)
    with pytest.raises(InfeasibleError):
        ExactSearch(AnalyticEstimator(), BUDGET_S).plan(problem)
    roomy = replace(problem, topology=make_topology(1, 2, hbm_bytes=100_000 * 4 * 33 * 2 + MIB))
    check(ExactSearch(AnalyticEstimator(), BUDGET_S).plan(roomy), roomy)
