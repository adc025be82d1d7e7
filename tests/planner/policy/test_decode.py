"""The policy as a strategy: legal plans, the same for the same seed, under constraints, or an honest error."""

from collections.abc import Callable
from pathlib import Path

import pytest

from planner.check import check
from planner.cost.analytic import AnalyticEstimator
from planner.errors import InfeasibleError, PlanningError
from planner.policy.decode import PolicyStrategy
from planner.policy.network import SEES_ALL, PolicyNetwork
from planner.policy.weights_file import SHIPPED, TrainedPolicy
from planner.problem import PlanningProblem, TableConstraint
from planner.search.heuristics import GreedyRule, dim_score, lookup_score, size_lookup_score, size_score
from planner.sharding import ShardingType
from planner.tables import OptimizerKind, Workload
from planner.topology import Topology

GIB = 1 << 30


@pytest.fixture
def problem(mlperf: Workload, make_topology: Callable[..., Topology]) -> PlanningProblem:
    """The 26 tables of MLPerf on two nodes of four."""
    return PlanningProblem(mlperf, make_topology(num_nodes=2, per_node=4))


def test_shipped_weights_beat_every_greedy_rule(problem: PlanningProblem) -> None:
    estimator = AnalyticEstimator()
    plan = PolicyStrategy(estimator).plan(problem)
    check(plan, problem)
    rules = [GreedyRule(score).plan(problem) for score in (size_score, dim_score, lookup_score, size_lookup_score)]
    best = min(estimator.estimate(problem, rule).step_ms for rule in rules)
    assert estimator.estimate(problem, plan).step_ms < best


def test_samples_are_distinct_legal_and_the_best_comes_first(problem: PlanningProblem) -> None:
    estimator = AnalyticEstimator()
    plans = PolicyStrategy(estimator, num_samples=12, seed=4).candidates(problem)
    steps = [estimator.estimate(problem, plan).step_ms for plan in plans]
    assert len(set(plans)) == len(plans) > 1
    assert steps == sorted(steps)
    for plan in plans:
        check(plan, problem)
    greedy = estimator.estimate(problem, PolicyStrategy(estimator).plan(problem)).step_ms
    assert steps[0] <= greedy * (1 + 1e-9)
    assert PolicyStrategy(estimator, num_samples=12, seed=4).plan(problem) == plans[0]


def test_constraints_are_kept(problem: PlanningProblem) -> None:
    constraints = (
        TableConstraint(("cat_0", "cat_9"), ranks=(1, 2), together=True),
        TableConstraint(("cat_2*",), sharding_types=(ShardingType.TABLE_WISE, ShardingType.COLUMN_WISE)),
        TableConstraint(("cat_1",), sharding_types=(ShardingType.DATA_PARALLEL,)),
    )
    bound = PlanningProblem(problem.workload, problem.topology, constraints)
    for plan in PolicyStrategy(AnalyticEstimator(), num_samples=4).candidates(bound):
        check(plan, bound)


def test_a_table_that_strands_is_placed_first_in_another_round(
    make_topology: Callable[..., Topology], make_workload: Callable[..., Workload]
) -> None:
    """Dear small tables come first by cost, and would leave no rank with room for the large cheap one."""
    small = [(10_000, 64, 50.0)] * 4
    workload = make_workload(*small, (38_000, 64, 0.1), optimizer=OptimizerKind.SGD, batch_size=1)
    whole = (TableConstraint(("*",), sharding_types=(ShardingType.TABLE_WISE,)),)
    problem = PlanningProblem(workload, make_topology(per_node=2, hbm_bytes=40_300 * 64 * 4), whole)
    check(PolicyStrategy(AnalyticEstimator()).plan(problem), problem)


def test_where_nothing_fits_the_shortfall_is_told(
    make_topology: Callable[..., Topology], make_workload: Callable[..., Workload]
) -> None:
    workload = make_workload(*[(4_000, 64, 1.0)] * 3, optimizer=OptimizerKind.SGD, batch_size=1)
    whole = (TableConstraint(("*",), sharding_types=(ShardingType.TABLE_WISE,)),)
    problem = PlanningProblem(workload, make_topology(per_node=2, hbm_bytes=int(1.6 * 4_000 * 64 * 4)), whole)
    with pytest.raises(InfeasibleError, match="misses") as caught:
        PolicyStrategy(AnalyticEstimator(), num_samples=3).plan(problem)
    assert caught.value.shortfall_bytes > 0


def test_one_rank_and_unequal_nodes_are_served(
    make_topology: Callable[..., Topology], make_workload: Callable[..., Workload]
) -> None:
    workload = make_workload((1_000, 64, 2.0), (50, 16, 1.0))
    for topology in (make_topology(per_node=1), make_topology(num_nodes=2, per_node=3, num_ranks=5)):
        problem = PlanningProblem(workload, topology)
        check(PolicyStrategy(AnalyticEstimator(), num_samples=3).plan(problem), problem)


def test_weights_come_back_as_they_were_saved(
    tmp_path: Path, untrained: PolicyNetwork, problem: PlanningProblem
) -> None:
    path = tmp_path / "policy.npz"
    TrainedPolicy(untrained, SEES_ALL, {"seed": 5}).save(path)
    again = TrainedPolicy.load(path)
    assert again.card == {"seed": 5}
    for name, tensor in untrained.state_dict().items():
        assert tensor.equal(again.network.state_dict()[name])
    check(PolicyStrategy(AnalyticEstimator(), weights=path).plan(problem), problem)


def test_other_files_are_refused(tmp_path: Path, problem: PlanningProblem) -> None:
    path = tmp_path / "policy.npz"
    path.write_bytes(SHIPPED.read_bytes()[:1000])
    with pytest.raises(PlanningError, match="pretrain policy") as caught:
        PolicyStrategy(AnalyticEstimator(), weights=path).plan(problem)
    assert caught.value.reason == "weights"
