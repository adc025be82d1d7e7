"""Units whose constraints are unlike those of their neighbours: nodes, ranks in any order, tables kept together."""

import tracemalloc

import numpy as np
import pytest

from planner.check import check
from planner.cost.analytic import AnalyticEstimator
from planner.errors import InfeasibleError
from planner.problem import PlanningProblem, TableConstraint
from planner.search.assignment import Assignment
from planner.search.catalogue import Form, build_catalogue
from planner.search.longest_processing_time import LongestProcessingTime
from planner.search.moves import swaps
from planner.search.placement import build_units
from planner.search.price_forms import place_by_price
from planner.search.registry import SearchSettings, find_plan
from planner.sharding import ShardingType
from planner.tables import MemoryCount, OptimizerKind, TableSpec, Workload
from tests.planner.search.problems import draw_topology, plain_problem

ESTIMATOR = AnalyticEstimator()
STRATEGIES = ("portfolio", "longest_processing_time", "size_greedy", "exact")


def problem_of(
    *constraints: TableConstraint, rows: int = 1000, optimizer: OptimizerKind = OptimizerKind.ADAM
) -> PlanningProblem:
    """Three equal tables on two nodes of two ranks."""
    tables = tuple(TableSpec(f"table_{index}", rows, 64, (f"feature_{index}",), 3.0) for index in range(3))
    workload = Workload(tables, 256, optimizer, memory=MemoryCount.WEIGHTS)
    return PlanningProblem(workload, draw_topology(np.random.default_rng(0), 2, 2), constraints)


def check_plans(problem: PlanningProblem) -> None:
    for name in STRATEGIES:
        check(find_plan(problem, name, SearchSettings(ESTIMATOR, budget_s=2.0)).plan, problem)


def test_forms_by_price_stand_on_the_nodes_that_a_table_may_use() -> None:
    node_type = (ShardingType.TABLE_ROW_WISE,)
    problem = problem_of(
        TableConstraint(("*",), sharding_types=node_type),
        TableConstraint(("table_0", "table_1"), ranks=(2, 3)),
        rows=100_000,
    )
    catalogue = build_catalogue(problem, ESTIMATOR, build_units(problem))
    start = Assignment.of_plan(catalogue, LongestProcessingTime(ESTIMATOR).plan(problem))
    for found in place_by_price(catalogue, start):
        assert (found.form[:2] == Form.NODE + 1).all()
        check(found.to_plan(), problem)


def test_tables_kept_together_use_the_ranks_that_all_of_them_may() -> None:
    together = TableConstraint(("table_0", "table_1"), together=True)
    problem = problem_of(
        together, TableConstraint(("table_0",), ranks=(2, 1, 0)), TableConstraint(("table_1",), ranks=(0, 1))
    )
    assert {option.ranks for option in build_units(problem)[0].options} == {(0, 1)}
    check_plans(problem)
    check_plans(problem_of(together, TableConstraint(("table_1",), ranks=(3,))))


def test_tables_kept_together_with_no_rank_in_common_are_refused() -> None:
    problem = problem_of(
        TableConstraint(("table_0", "table_1"), together=True),
        TableConstraint(("table_0",), ranks=(0,)),
        TableConstraint(("table_1",), ranks=(1,)),
    )
    with pytest.raises(InfeasibleError, match="no legal sharding option"):
        find_plan(problem, "size_greedy")


def test_copies_lie_on_the_ranks_in_order_however_a_constraint_lists_them() -> None:
    copies = TableConstraint(("*",), ranks=(3, 1, 0, 2), sharding_types=(ShardingType.DATA_PARALLEL,))
    check_plans(problem_of(copies, optimizer=OptimizerKind.SGD))


def test_swaps_of_thousands_of_tables_take_little_memory() -> None:
    num_tables = 4000
    problem = plain_problem([(100, 4, 1.0)] * num_tables, 2, 1 << 30, ShardingType.TABLE_WISE)
    catalogue = build_catalogue(problem, ESTIMATOR, build_units(problem))
    granules = np.zeros((num_tables, 2), dtype=np.int64)
    granules[np.arange(num_tables), np.arange(num_tables) % 2] = 1
    assignment = Assignment.of_forms(catalogue, np.zeros(num_tables, dtype=np.int64), granules)
    tracemalloc.start()
    found = swaps(assignment, 0, np.arange(2), np.random.default_rng(0), most=100)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 100 << 20
    assert len(found.units) == 100
    assert (found.units[:, 0] % 2 == 0).all() and (found.units[:, 1] % 2 == 1).all()
