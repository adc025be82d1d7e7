"""The portfolio hands out the best that its searches find, says which, and fails with a reason."""

from collections.abc import Callable

import numpy as np
import pytest

from planner.check import check
from planner.cost.analytic import AnalyticEstimator
from planner.errors import InfeasibleError
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.search.portfolio import RULES, Portfolio
from planner.search.registry import SearchSettings, find_plan
from planner.sharding import ShardingType
from planner.tables import Workload
from planner.topology import Topology
from tests.planner.search.problems import draw_problem, plain_problem

ESTIMATOR = AnalyticEstimator()


@pytest.mark.parametrize("seed", range(4))
def test_it_beats_what_it_starts_from_and_names_the_way(seed: int) -> None:
    problem = draw_problem(seed, num_tables=20)
    result = find_plan(problem, "portfolio", SearchSettings(ESTIMATOR, budget_s=2.0))
    others = [find_plan(problem, name).cost.step_ms for name in (*RULES, "longest_processing_time")]
    assert result.strategy == "portfolio" and result.winner.endswith("local search")
    assert result.cost.step_ms < min(others)


def test_any_budget_gives_a_plan(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    workload = make_workload(*[(1000 * (index + 1), 32, 2.0 + index) for index in range(60)])
    problem = PlanningProblem(workload, make_topology(2, 4))
    result = find_plan(problem, "portfolio", SearchSettings(ESTIMATOR, budget_s=1e-6))
    assert result.winner == "size_greedy"


def test_the_same_seed_gives_the_same_plan() -> None:
    problem = draw_problem(1, num_tables=8)
    first, second = (find_plan(problem, "portfolio", SearchSettings(ESTIMATOR, 60.0, 5)).plan for _ in range(2))
    assert first == second


def test_further_starts_take_part() -> None:
    problem = draw_problem(2)
    asked = []

    def maker(problem: PlanningProblem) -> list[ShardingPlan]:
        asked.append(problem)
        return [find_plan(problem, "random").plan]

    Portfolio(ESTIMATOR, 5.0, makers={"further": maker}).compete(problem)
    assert asked == [problem]


def test_whole_tables_that_fit_in_one_packing_only_are_packed() -> None:
    """No rule finds the packing: sizes 7 3, 6 4, 5 2 2 1 on three devices of 10."""
    sizes = [7, 6, 5, 4, 3, 2, 2, 1]
    problem = plain_problem(
        [(1000 * size, 32, 60.0 / size) for size in sizes], 3, 10 * 128_000, ShardingType.TABLE_WISE
    )
    check(find_plan(problem, "portfolio", SearchSettings(ESTIMATOR, budget_s=2.0)).plan, problem)


def test_what_cannot_fit_is_refused_with_the_bytes() -> None:
    problem = plain_problem([(1000, 32, 2.0)] * 5, 2, 2 * 128_000, ShardingType.TABLE_WISE)
    with pytest.raises(InfeasibleError) as error:
        find_plan(problem, "portfolio", SearchSettings(ESTIMATOR, budget_s=1.0))
    assert error.value.shortfall_bytes == 128_000


def test_seventeen_thirds_do_not_fit_in_pairs() -> None:
    """Memory suffices in total, but no packing of whole tables exists."""
    problem = plain_problem([(1000, 32, 2.0)] * 5, 3, int(1.7 * 128_000), ShardingType.TABLE_WISE)
    with pytest.raises(InfeasibleError):
        find_plan(problem, "portfolio", SearchSettings(ESTIMATOR, budget_s=1.0))
    assert np.isfinite(find_plan(plain_problem([(1000, 32, 2.0)] * 3, 3, 130_000), "portfolio").cost.step_ms)


def test_small_problems_are_solved_to_the_proven_optimum() -> None:
    rng = np.random.default_rng(0)
    num_best = 0
    for _ in range(12):
        shapes = [
            (int(10 ** rng.uniform(2, 5)), int(rng.choice([4, 16, 32, 64])), float(np.exp(rng.uniform(0, 4))))
            for _ in range(rng.integers(2, 6))
        ]
        num_ranks = int(rng.integers(2, 4))
        total_bytes = sum(rows * cols * 4 for rows, cols, _ in shapes)
        problem = plain_problem(shapes, num_ranks, int(total_bytes * rng.uniform(0.6, 2.0)) // num_ranks * 2)
        exact = find_plan(problem, "exact", SearchSettings(ESTIMATOR, 60.0))
        found = find_plan(problem, "portfolio", SearchSettings(ESTIMATOR, 3.0))
        assert exact.lower_bound_ms <= min(exact.cost.step_ms, found.cost.step_ms) * (1 + 1e-9)
        num_best += found.cost.step_ms <= exact.cost.step_ms * (1 + 1e-4)
    assert num_best >= 11
