"""New plans keep what ranks hold, and tell what they need while old and new shards both exist."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.check import check
from planner.memory import rank_bytes
from planner.plan import ShardingPlan, TablePlacement
from planner.replan import transition_bytes
from planner.replan.layout import least_moved, mixed
from planner.search.assignment import Assignment
from planner.search.catalogue import Form, build_catalogue
from planner.search.placement import build_units
from planner.sharding import Shard, ShardingType
from planner.transfers import moved_bytes
from tests.planner.replan.jobs import ESTIMATOR, make_problem, whole_on


def columns(ranks: list[int], widths: list[int], num_rows: int) -> TablePlacement:
    ends = np.cumsum(widths).tolist()
    shards = tuple(
        Shard(rank, 0, num_rows, end - width, width) for rank, end, width in zip(ranks, ends, widths, strict=True)
    )
    return TablePlacement("table_0", ShardingType.COLUMN_WISE, shards)


@settings(deadline=None)
@given(ranks=st.permutations(range(4)), moved=st.integers(0, 3))
def test_a_column_shard_that_moves_leaves_the_others_where_they_are(ranks: list[int], moved: int) -> None:
    problem = make_problem([(1000, 64, 5.0)], 8)
    plan = ShardingPlan(8, (columns(ranks, [16] * 4, 1000),))
    catalogue = build_catalogue(problem, ESTIMATOR, build_units(problem))
    goal = Assignment.of_plan(catalogue, plan)
    granules = goal.granules[0].copy()
    granules[[ranks[moved], 7]] = 0, granules[ranks[moved]]
    goal.place(0, Form.FREE, granules)
    found = least_moved(problem, plan, goal)
    check(found, problem)
    # The newcomer stands first or last, so shards beside the one that left are shifted at most by one place.
    naive = moved_bytes(plan, goal.to_plan(), problem.workload)
    assert moved_bytes(plan, found, problem.workload) <= naive
    if moved in (0, 3):
        assert moved_bytes(plan, found, problem.workload) == 1000 * (16 * 4 + 4)


def test_transition_counts_old_and_new_shards_of_what_changes() -> None:
    problem = make_problem([(1000, 64, 5.0), (2000, 64, 5.0), (3000, 64, 5.0)], 2)
    old, goal = whole_on(problem, [0, 1, 0]), whole_on(problem, [1, 0, 0])
    only_first = mixed(old, goal, {"table_0"})
    assert transition_bytes(problem, old, old).tolist() == rank_bytes(problem, old)
    needed, after = transition_bytes(problem, old, only_first), rank_bytes(problem, only_first)
    # The target holds what it held and the newcomer, as it does afterwards; the source holds on to all it had.
    assert needed[1] == after[1]
    assert needed[0] == rank_bytes(problem, old)[0]
    both = transition_bytes(problem, old, goal)
    assert (both > np.array(rank_bytes(problem, goal))).all()
