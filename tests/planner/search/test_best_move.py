"""The best single change of a plan: as good as trying all of them, legal, and worth what it says."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.check import check
from planner.cost.analytic import AnalyticEstimator
from planner.errors import PlanningError
from planner.plan import ShardingPlan, TablePlacement
from planner.problem import PlanningProblem, TableConstraint
from planner.search.best_move import LEAST_GAIN, Move, best_move
from planner.search.move_text import describe_change
from planner.search.registry import SearchSettings, find_plan
from planner.sharding import Shard, ShardingType
from planner.tables import Workload
from planner.topology import Topology

ESTIMATOR = AnalyticEstimator()
TW, CW, RW, DP = (
    ShardingType.TABLE_WISE,
    ShardingType.COLUMN_WISE,
    ShardingType.ROW_WISE,
    ShardingType.DATA_PARALLEL,
)
SHAPES = ((4000, 64, 9.0), (900, 32, 30.0), (50_000, 16, 2.0), (120, 64, 1.0))
MakeWorkload, MakeTopology = Callable[..., Workload], Callable[..., Topology]


def step_ms(problem: PlanningProblem, plan: ShardingPlan) -> float:
    return ESTIMATOR.estimate(problem, plan).step_ms


def columns(name: str, rows: int, *parts: tuple[int, int]) -> TablePlacement:
    """A table in columns of (rank, width)."""
    starts = [sum(width for _, width in parts[:index]) for index in range(len(parts))]
    kind = TW if len(parts) == 1 else CW
    shards = [Shard(rank, 0, rows, start, width) for (rank, width), start in zip(parts, starts, strict=True)]
    return TablePlacement(name, kind, tuple(shards))


def legal_step_ms(problem: PlanningProblem, plan: ShardingPlan) -> float:
    try:
        check(plan, problem)
    except PlanningError:
        return float("inf")
    return step_ms(problem, plan)


def single_changes(problem: PlanningProblem, plan: ShardingPlan) -> Iterator[ShardingPlan]:
    """Every plan that places one table otherwise: whole anywhere, by rows, copied."""
    for index, table in enumerate(plan.tables):
        for option in problem.options(table.name):
            ranks = [(rank,) for rank in option.ranks] if option.is_free else [option.ranks]
            for each in ranks:
                placement = TablePlacement(table.name, option.sharding_type, option.shards(each))
                yield replace(plan, tables=(*plan.tables[:index], placement, *plan.tables[index + 1 :]))


def assert_is_worth_what_it_says(problem: PlanningProblem, plan: ShardingPlan, move: Move) -> None:
    check(move.plan, problem)
    assert step_ms(problem, move.plan) == move.step_ms
    assert step_ms(problem, plan) - move.step_ms == pytest.approx(move.gain_ms) and move.gain_ms > 0
    changed = {old.name for old, new in zip(plan.tables, move.plan.tables, strict=True) if old != new}
    assert changed and changed <= set(move.tables)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), room=st.sampled_from([1 << 34, 20 << 20]), num_nodes=st.sampled_from([1, 2]))
def test_no_other_single_change_is_better(
    make_workload: MakeWorkload, make_topology: MakeTopology, seed: int, room: int, num_nodes: int
) -> None:
    # Without column shards there are few enough changes to try them all.
    types = TableConstraint(("*",), sharding_types=tuple(each for each in ShardingType if each is not CW))
    problem = PlanningProblem(make_workload(*SHAPES), make_topology(num_nodes, 2, hbm_bytes=room), (types,))
    plan = find_plan(problem, "random", SearchSettings(ESTIMATOR, seed=seed)).plan
    best_ms = min(legal_step_ms(problem, each) for each in single_changes(problem, plan))
    move = best_move(problem, plan, ESTIMATOR)
    if move is None:
        assert best_ms >= step_ms(problem, plan) * (1 - LEAST_GAIN)
    else:
        assert_is_worth_what_it_says(problem, plan, move)
        assert move.step_ms == pytest.approx(best_ms, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(widths=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([4, 8, 16])), min_size=2, max_size=5))
def test_columns_cut_in_any_way_are_priced_as_they_lie(
    make_workload: MakeWorkload, make_topology: MakeTopology, widths: list[tuple[int, int]]
) -> None:
    total = sum(width for _, width in widths)
    problem = PlanningProblem(make_workload((5000, total, 8.0), (300, 32, 20.0)), make_topology(2, 2))
    plan = ShardingPlan(4, (columns("table_0", 5000, *widths), columns("table_1", 300, (0, 32))))
    move = best_move(problem, plan, ESTIMATOR)
    assert move is not None
    assert_is_worth_what_it_says(problem, plan, move)


def test_shards_of_a_table_on_one_rank_are_merged(make_workload: MakeWorkload, make_topology: MakeTopology) -> None:
    pinned = TableConstraint(("*",), sharding_types=(TW, CW), ranks=(0,))
    problem = PlanningProblem(make_workload((5000, 64, 8.0)), make_topology(1, 2), (pinned,))
    plan = ShardingPlan(2, (columns("table_0", 5000, (0, 32), (0, 32)),))
    move = best_move(problem, plan, ESTIMATOR)
    assert move is not None and move.change == "merged, 2 column shards to 1"
    assert_is_worth_what_it_says(problem, plan, move)
    assert best_move(problem, move.plan, ESTIMATOR) is None


def test_a_rank_without_room_is_left_alone(make_workload: MakeWorkload, make_topology: MakeTopology) -> None:
    whole = TableConstraint(("*",), sharding_types=(TW,))
    shapes = (10_000, 64, 20.0), (10_000, 64, 20.0), (40_000, 64, 1.0)
    workload = make_workload(*shapes, batch_size=16)
    plan = ShardingPlan(
        2, tuple(columns(f"table_{index}", shape[0], (rank, 64)) for index, (shape, rank) in
                 enumerate(zip(shapes, (0, 0, 1), strict=True)))
    )  # fmt: skip
    roomy = PlanningProblem(workload, make_topology(1, 2), (whole,))
    move = best_move(roomy, plan, ESTIMATOR)
    assert move is not None and move.change == "from rank 0 to rank 1"
    # Room for the large table alone.
    tight = replace(roomy, topology=make_topology(1, 2, hbm_bytes=11 << 20))
    check(plan, tight)
    assert best_move(tight, plan, ESTIMATOR) is None


def test_tables_kept_together_move_together(make_workload: MakeWorkload, make_topology: MakeTopology) -> None:
    together = TableConstraint(("table_0", "table_1"), together=True)
    whole = TableConstraint(("*",), sharding_types=(TW,))
    shapes = (5000, 64, 8.0), (5000, 64, 8.0), (5000, 64, 18.0)
    problem = PlanningProblem(make_workload(*shapes), make_topology(1, 2), (together, whole))
    plan = ShardingPlan(2, tuple(columns(f"table_{index}", 5000, (0, 64)) for index in range(3)))
    move = best_move(problem, plan, ESTIMATOR)
    assert move is not None and move.tables in (("table_0", "table_1"), ("table_2",))
    assert_is_worth_what_it_says(problem, plan, move)
    only_pair = replace(problem, constraints=(*problem.constraints, TableConstraint(("table_2",), ranks=(0,))))
    pair = best_move(only_pair, plan, ESTIMATOR)
    assert pair is not None and pair.tables == ("table_0", "table_1") and pair.change == "from rank 0 to rank 1"


def test_a_constraint_is_kept(make_workload: MakeWorkload, make_topology: MakeTopology) -> None:
    shapes = (5000, 64, 8.0), (5000, 64, 8.0)
    plan = ShardingPlan(2, tuple(columns(f"table_{index}", 5000, (0, 64)) for index in range(2)))
    pinned = (TableConstraint(("*",), ranks=(0,)), TableConstraint(("*",), sharding_types=(TW,)))
    problem = PlanningProblem(make_workload(*shapes), make_topology(1, 2), pinned)
    assert best_move(problem, plan, ESTIMATOR) is None
    assert best_move(replace(problem, constraints=()), plan, ESTIMATOR) is not None


def test_moves_repeated_end_where_none_helps(make_workload: MakeWorkload, make_topology: MakeTopology) -> None:
    shapes = tuple((rows, dim, 50.0) for rows, dim in product((2000, 9000), (16, 64, 32)))
    problem = PlanningProblem(make_workload(*shapes, batch_size=4096), make_topology(2, 2))
    plan = ShardingPlan(
        4, tuple(columns(f"table_{index}", rows, (0, dim)) for index, (rows, dim, _) in enumerate(shapes))
    )
    steps = [step_ms(problem, plan)]
    while (move := best_move(problem, plan, ESTIMATOR)) is not None:
        plan = move.plan
        steps.append(move.step_ms)
    assert len(steps) > 2 and steps == sorted(steps, reverse=True)


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (columns("a", 9, (1, 64)), columns("a", 9, (0, 64)), "from rank 1 to rank 0"),
        (columns("a", 9, (1, 64)), columns("a", 9, (0, 32), (1, 32)), "32 of 64 columns from rank 1 to rank 0"),
        (columns("a", 9, (0, 32), (1, 32)), columns("a", 9, (1, 64)), "32 of 64 columns from rank 0 to rank 1"),
        (
            columns("a", 9, (3, 64)),
            columns("a", 9, (0, 32), (1, 32)),
            "from table_wise on rank 3 to column_wise on ranks 0-1",
        ),
        (
            columns("a", 8, (1, 64)),
            TablePlacement("a", RW, tuple(Shard(rank, 4 * rank, 4, 0, 64) for rank in range(2))),
            "from table_wise on rank 1 to row_wise on ranks 0-1",
        ),
        (
            TablePlacement("a", DP, tuple(Shard(rank, 0, 8, 0, 64) for rank in (0, 1, 2, 5))),
            columns("a", 8, (1, 64)),
            "from data_parallel on ranks 0-2,5 to table_wise on rank 1",
        ),
    ],
)  # fmt: skip
def test_a_change_in_words(before: TablePlacement, after: TablePlacement, text: str) -> None:
    assert describe_change(before, after) == text
