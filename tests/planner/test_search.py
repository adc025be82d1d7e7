"""Strategies keep what they are told and do their rule."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from planner.cost.analytic import AnalyticEstimator
from planner.cost.estimator import PHASES
from planner.errors import InfeasibleError, PlanningError
from planner.memory import rank_bytes
from planner.problem import PlanningProblem, TableConstraint
from planner.search.registry import STRATEGIES, SearchSettings, appraise, find_plan, make_plan
from planner.sharding import ShardingType
from planner.tables import OptimizerKind, Workload
from planner.topology import Topology

OWN = [name for name in STRATEGIES if name not in ("torchrec", "neuroshard")]
QUICK = SearchSettings(budget_s=0.5)
MIB = 1 << 20


@pytest.mark.parametrize("name", OWN)
def test_every_strategy_plans_on_nodes_of_unequal_size(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology], name: str
) -> None:
    workload = make_workload((100_000, 4, 1.0), *[(1000, 32, 2.0)] * 6, batch_size=16)
    problem = PlanningProblem(workload, make_topology(2, 2, num_ranks=3, hbm_bytes=1_600_000))
    assert make_plan(problem, name, QUICK).plan.tables[0].sharding_type is ShardingType.ROW_WISE


class _SlowAllReduce(AnalyticEstimator):
    """An estimator of a cluster whose all-reduce is a million times slower."""

    def join_ms(
        self, problem: PlanningProblem, traffic: NDArray[np.float64], lookup_ms: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        phases_ms = super().join_ms(problem, traffic, lookup_ms)
        phases_ms[..., PHASES.index("all_reduce"), :] *= 1e6
        return phases_ms


def test_longest_processing_time_searches_with_the_estimator_it_is_given(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    problem = PlanningProblem(make_workload(*[(4, 128, 50.0)] * 3, batch_size=4096), make_topology(2, 1))
    usual = make_plan(problem, "longest_processing_time")
    slow = make_plan(problem, "longest_processing_time", SearchSettings(_SlowAllReduce()))
    assert ShardingType.DATA_PARALLEL in {table.sharding_type for table in usual.plan.tables}
    assert ShardingType.DATA_PARALLEL not in {table.sharding_type for table in slow.plan.tables}
    assert slow.cost.step_ms < appraise(problem, usual.plan, "usual", estimator=_SlowAllReduce()).cost.step_ms


@pytest.mark.parametrize("name", OWN)
def test_constraints_are_kept(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology], name: str
) -> None:
    constraints = (
        TableConstraint(("table_0",), ranks=(3,)),
        TableConstraint(("table_1",), sharding_types=(ShardingType.ROW_WISE,)),
        TableConstraint(("table_2", "table_3", "table_4"), together=True),
    )
    workload = make_workload(*[(1000 * (index + 1), 32, 2.0 + index) for index in range(8)])
    problem = PlanningProblem(workload, make_topology(2, 2), constraints)
    placed = {table.name: table for table in make_plan(problem, name, QUICK).plan.tables}
    assert set(placed["table_0"].ranks) == {3}
    assert placed["table_1"].sharding_type is ShardingType.ROW_WISE
    assert len({(placed[f"table_{index}"].ranks, placed[f"table_{index}"].sharding_type) for index in (2, 3, 4)}) == 1


@pytest.mark.parametrize("name", OWN)
def test_a_table_that_fits_on_no_rank_is_split(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology], name: str
) -> None:
    workload = make_workload((100_000, 64, 1.0), (100, 16, 1.0), batch_size=16)
    problem = PlanningProblem(workload, make_topology(1, 4, hbm_bytes=16 * MIB))
    plan = make_plan(problem, name, QUICK).plan
    assert len(plan.tables[0].shards) > 1
    assert max(rank_bytes(problem, plan)) <= 16 * MIB


def test_greedy_splits_by_the_fewest_columns_first(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    workload = make_workload((100_000, 64, 1.0), batch_size=16)
    problem = PlanningProblem(workload, make_topology(1, 4, hbm_bytes=16 * MIB))
    placement = make_plan(problem, "size_greedy").plan.tables[0]
    assert (placement.sharding_type, len(placement.shards)) == (ShardingType.COLUMN_WISE, 2)
    narrow = replace(problem, workload=make_workload((1_600_000, 4, 1.0), batch_size=16))
    assert make_plan(narrow, "size_greedy").plan.tables[0].sharding_type is ShardingType.TABLE_ROW_WISE


def test_a_table_stranded_by_the_rule_goes_first_in_the_next_pass(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    workload = make_workload((10_000, 64, 50.0), (10_000, 64, 50.0), (15_000, 64, 1.0), batch_size=4)
    whole = (TableConstraint(("*",), sharding_types=(ShardingType.TABLE_WISE,)),)
    hbm_bytes = 21 * 10_000 * 64 * 4 // 10
    problem = PlanningProblem(workload, make_topology(1, 2, hbm_bytes=hbm_bytes), whole)
    ranks = [table.ranks[0] for table in make_plan(problem, "lookup_greedy").plan.tables]
    assert ranks[0] == ranks[1] != ranks[2]


@pytest.mark.parametrize(
    ("name", "alone"), [("size_greedy", "table_0"), ("dim_greedy", "table_1"), ("lookup_greedy", "table_2")]
)
def test_each_rule_isolates_the_table_that_leads_its_score(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology], name: str, alone: str
) -> None:
    workload = make_workload((90_000, 16, 2.0), (500, 64, 1.0), (500, 16, 90.0))
    plan = make_plan(PlanningProblem(workload, make_topology(1, 2)), name).plan
    rank_of = {table.name: table.ranks[0] for table in plan.tables}
    others = {rank for table, rank in rank_of.items() if table != alone}
    assert others == {1 - rank_of[alone]}


def test_random_is_repeatable_and_different_from_the_rules(
    mlperf: Workload, make_topology: Callable[..., Topology]
) -> None:
    problem = PlanningProblem(mlperf, make_topology(1, 8))
    assert make_plan(problem, "random").plan == make_plan(problem, "random").plan
    assert make_plan(problem, "random").plan != make_plan(problem, "size_greedy").plan


def test_longest_processing_time_beats_every_rule_on_the_mlperf_tables(
    mlperf: Workload, make_topology: Callable[..., Topology]
) -> None:
    problem = PlanningProblem(mlperf, make_topology(1, 8))
    best = make_plan(problem, "longest_processing_time")
    assert best.gap < 0.35
    for name in ("size_greedy", "dim_greedy", "lookup_greedy", "size_lookup_greedy", "random"):
        assert best.cost.step_ms < make_plan(problem, name).cost.step_ms


def test_unknown_strategy_is_told_with_the_nearest(mlperf: Workload, make_topology: Callable[..., Topology]) -> None:
    with pytest.raises(PlanningError, match="did you mean 'size_greedy'"):
        make_plan(PlanningProblem(mlperf, make_topology(1, 8)), "size_greedi")


def test_a_thousand_tables_on_128_ranks(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    rng = np.random.default_rng(0)
    shapes = [
        (int(10 ** rng.uniform(2, 7)), int(rng.choice([16, 64, 128])), float(rng.uniform(1, 50))) for _ in range(1000)
    ]
    problem = PlanningProblem(make_workload(*shapes, optimizer=OptimizerKind.ADAM), make_topology(16, 8))
    result = make_plan(problem, "longest_processing_time")
    assert result.gap < make_plan(problem, "size_greedy").gap


def test_infeasible_is_an_error_with_the_shortfall(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    problem = PlanningProblem(make_workload((100_000, 64, 1.0)), make_topology(1, 1, hbm_bytes=16 * MIB))
    with pytest.raises(InfeasibleError) as error:
        find_plan(problem, "size_greedy")
    roomy = replace(problem, topology=make_topology(1, 1, hbm_bytes=16 * MIB + error.value.shortfall_bytes))
    make_plan(roomy, "size_greedy")
    short = replace(problem, topology=make_topology(1, 1, hbm_bytes=16 * MIB + error.value.shortfall_bytes - 1))
    with pytest.raises(InfeasibleError):
        find_plan(short, "size_greedy")
