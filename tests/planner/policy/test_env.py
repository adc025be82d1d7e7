"""Episodes keep the books that the estimator and the memory model would keep of the plan."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.check import check
from planner.cost.analytic import AnalyticEstimator
from planner.errors import PlanningError
from planner.memory import capacity_bytes, rank_bytes, replicated_bytes
from planner.policy.env import Actions, Candidates, Episodes, Temper
from planner.policy.preparation import build_tasks
from planner.policy.tasks import Tasks
from planner.policy.training_tasks import TaskSource
from planner.problem import PlanningProblem, TableConstraint
from planner.sharding import ShardingType
from planner.tables import OptimizerKind, Workload
from planner.topology import Topology


def random_actions(rng: np.random.Generator, found: Candidates) -> Actions:
    """Legal options and ranks, all as likely."""
    option = np.where(found.is_legal, rng.random(found.is_legal.shape), -1.0).argmax(axis=1)
    may_draw = found.may_draw[np.arange(len(option)), option]
    return Actions(option, np.argsort(np.where(may_draw, rng.random(may_draw.shape), 2.0), axis=1))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_random_episodes_end_in_legal_plans_of_the_very_cost_and_memory(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tasks = TaskSource(ranks=(2, 4, 6), units=(3, 9)).draw(rng, lambda world_size, num_units: 2)
    episodes = Episodes(tasks, np.array([0, 1, 1]), Temper.draw(rng, 3))
    actions = []
    while not episodes.is_done:
        actions.append(random_actions(rng, episodes.candidates()))
        episodes.act(actions[-1])
    for episode in np.flatnonzero(episodes.is_alive):
        task = int(episodes.task[episode])
        problem = tasks.problems[task]
        options = np.array([each.option[episode] for each in actions])
        plan = tasks.build_plan(task, options, np.stack([each.draws[episode] for each in actions]))
        check(plan, problem)
        assert episodes.step_ms[episode] == pytest.approx(tasks.estimator.estimate(problem, plan).step_ms, rel=1e-5)
        used = np.array(rank_bytes(problem, plan)) - replicated_bytes(problem)
        np.testing.assert_array_equal(episodes.free_bytes[episode], capacity_bytes(problem) - used)


def test_the_step_to_expect_after_a_greedy_draw_is_what_the_ranks_then_take(two_tasks) -> None:
    """The last unit has nothing behind it, so its levels are final steps, or the even level above them."""
    episodes = Episodes(two_tasks, np.array([0, 1]), Temper.calm(2))
    while episodes.step < two_tasks.num_units - 1:
        episodes.act(episodes.candidates().greedy_actions())
    found = episodes.candidates()
    chosen = found.greedy_actions()
    expected = found.levels_ms[np.arange(2), chosen.option]
    even = found.even_ms[np.arange(2), chosen.option].sum(axis=-1)
    episodes.act(chosen)
    assert (expected >= episodes.step_ms - 1e-6).all()
    np.testing.assert_array_less(episodes.step_ms, expected + 1e-6)
    assert (np.isclose(expected, episodes.step_ms) | (expected <= np.maximum(even, episodes.step_ms) * 1.5)).all()


def test_options_that_leave_no_bytes_for_the_units_to_come_are_masked(
    make_topology: Callable[..., Topology], make_workload: Callable[..., Workload]
) -> None:
    """Copies of the first table would fit, and then nothing else would."""
    workload = make_workload((4_000, 64, 1.0), (4_000, 64, 1.0), optimizer=OptimizerKind.SGD, batch_size=1)
    table_bytes = 4_000 * 64 * 4
    problem = PlanningProblem(workload, make_topology(per_node=2, hbm_bytes=int(2.2 * table_bytes)))
    episodes = Episodes(build_tasks([problem], AnalyticEstimator()), np.zeros(1, dtype=np.int64), Temper.calm(1))
    found = episodes.candidates()
    copies = list(ShardingType).index(ShardingType.DATA_PARALLEL)
    assert not found.is_legal[0, found.options.type_code[0] == copies].any()
    assert found.is_legal[0].any()


def test_an_episode_without_room_dies_and_the_others_go_on(
    make_topology: Callable[..., Topology], make_workload: Callable[..., Workload]
) -> None:
    """Three tables that may not be split, two ranks with room for one and a half each."""
    workload = make_workload(*[(4_000, 64, 1.0)] * 3, optimizer=OptimizerKind.SGD, batch_size=1)
    whole = (TableConstraint(("*",), sharding_types=(ShardingType.TABLE_WISE,)),)
    tight = PlanningProblem(workload, make_topology(per_node=2, hbm_bytes=int(1.6 * 4_000 * 64 * 4)), whole)
    roomy = PlanningProblem(workload, make_topology(per_node=2, hbm_bytes=int(3.2 * 4_000 * 64 * 4)), whole)
    episodes = Episodes(build_tasks([tight, roomy], AnalyticEstimator()), np.array([0, 1]), Temper.calm(2))
    while not episodes.is_done:
        episodes.act(episodes.candidates().greedy_actions())
    assert episodes.num_placed.tolist() == [2, 3] and episodes.is_alive.tolist() == [False, True]
    assert not np.isnan(episodes.step_ms).any()


def test_tasks_on_different_devices_are_not_placed_side_by_side(
    make_topology: Callable[..., Topology], make_workload: Callable[..., Workload]
) -> None:
    workload = make_workload((100, 16, 1.0))
    fast, slow = (make_topology(per_node=2, speeds=(speed, speed)) for speed in (1e12, 5e11))
    with pytest.raises(PlanningError, match="devices"):
        build_tasks([PlanningProblem(workload, fast), PlanningProblem(workload, slow)], AnalyticEstimator())


def test_tasks_of_different_numbers_of_tables_are_not_placed_side_by_side(
    make_topology: Callable[..., Topology], make_workload: Callable[..., Workload]
) -> None:
    one, two = make_workload((100, 16, 1.0)), make_workload((100, 16, 1.0), (100, 16, 1.0))
    with pytest.raises(PlanningError, match="1 or 2 units") as caught:
        build_tasks([PlanningProblem(each, make_topology(per_node=2)) for each in (one, two)], AnalyticEstimator())
    assert caught.value.reason == "strategy"


def test_units_that_are_placed_first_take_all_that_is_known_of_them_along(two_tasks: Tasks) -> None:
    moved = two_tasks.placed_first([4, 2])
    order = [4, 2, 0, 1, 3, *range(5, two_tasks.num_units)]
    for task in range(2):
        assert moved.units[task] == tuple(two_tasks.units[task][index] for index in order)
    np.testing.assert_array_equal(moved.own_ms, two_tasks.own_ms[:, order])
    np.testing.assert_array_equal(moved.options.loads, two_tasks.options.loads[:, order])
    later = two_tasks.least_bytes[:, order][:, ::-1].cumsum(axis=1)[:, ::-1] - two_tasks.least_bytes[:, order]
    np.testing.assert_array_equal(moved.bytes_after, later)
