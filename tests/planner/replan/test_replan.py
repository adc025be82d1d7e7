"""A job out of balance gets a better plan where that pays, and none where it does not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.check import check
from planner.cost.loads import NUM_TRAFFIC
from planner.memory import capacity_bytes, replicated_bytes
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.replan import Decision, MovePrice, Observation, ReplanSettings, replan, transition_bytes
from planner.replan.corrected import EXCHANGE_ROWS, sent_bytes
from planner.search.portfolio import Portfolio
from planner.sharding import ShardingType
from planner.shards import plan_shards
from planner.transfers import moved_bytes
from tests.planner.replan.jobs import (
    ALL_STEPS,
    CHEAP,
    ESTIMATOR,
    GIB,
    LOOKUPS,
    SETTINGS,
    Trouble,
    make_problem,
    observe,
    true_step_ms,
    whole_on,
)
from tests.planner.search.problems import draw_problem

EIGHT = [(100_000, 64, 10.0)] * 8
EVEN = [0, 0, 1, 1, 2, 2, 3, 3]


def decide_on(
    problem: PlanningProblem,
    plan: ShardingPlan,
    trouble: Trouble,
    price: MovePrice = CHEAP,
    remaining_steps: int | None = ALL_STEPS,
    lost_ms: float = 0.0,
) -> Decision:
    seen, healthy = observe(problem, plan, trouble), observe(problem, plan)
    return replan(problem, plan, ESTIMATOR, seen, healthy, price, remaining_steps, lost_ms, SETTINGS)


def changed(old: ShardingPlan, new: ShardingPlan | None) -> list[str]:
    assert new is not None
    return [table.name for table, before in zip(new.tables, old.tables, strict=True) if table != before]


def test_a_slow_device_gets_less_work() -> None:
    problem = make_problem(EIGHT, 4)
    plan, trouble = whole_on(problem, EVEN), Trouble(slow={1: 1.6})
    decision = decide_on(problem, plan, trouble)
    assert decision.is_move and decision.plan is not None and decision.expected is not None
    before, after = (ESTIMATOR.estimate(problem, each).lookup_ms for each in (plan, decision.plan))
    assert after[1] < 0.85 * before[1]
    true_ms = true_step_ms(problem, decision.plan, trouble)
    assert decision.expected.step_ms == pytest.approx(true_ms, rel=0.05)
    assert decision.predicted_gain_ms == pytest.approx(true_step_ms(problem, plan, trouble) - true_ms, rel=0.15)


def test_one_table_moves_for_a_hot_one() -> None:
    shapes = [(100_000, 64, 10.0), *[(100_000, 64, 5.0)] * 6]
    problem = make_problem(shapes, 2, batch_size=65_536)
    plan, trouble = whole_on(problem, [0, 0, 0, 1, 1, 1, 1]), Trouble(hot={"table_0": 2.0})
    decision = decide_on(problem, plan, trouble, MovePrice(100.0, 1e9), 10_000)
    assert decision.is_move
    assert len(changed(plan, decision.plan)) <= 2
    hot = make_problem([(100_000, 64, 20.0), *shapes[1:]], 2, batch_size=65_536)
    assert recovered(problem, plan, decision, trouble, hot) > 0.9


def test_a_table_that_is_too_hot_for_a_rank_is_split_or_replicated() -> None:
    problem = make_problem(EIGHT, 4)
    plan, trouble = whole_on(problem, EVEN), Trouble(hot={"table_2": 6.0})
    decision = decide_on(problem, plan, trouble)
    assert decision.is_move and decision.plan is not None
    assert decision.plan.tables[2].sharding_type is not ShardingType.TABLE_WISE
    hot = make_problem([(rows, cols, 60.0 if at == 2 else ids) for at, (rows, cols, ids) in enumerate(EIGHT)], 4)
    assert recovered(problem, plan, decision, trouble, hot) > 0.9


def recovered(
    problem: PlanningProblem, plan: ShardingPlan, decision: Decision, trouble: Trouble, hot: PlanningProblem
) -> float:
    """How much of the way it is to a plan that was made for the hot problem from the start."""
    oracle_ms = ESTIMATOR.estimate(hot, Portfolio(ESTIMATOR, 1.0).plan(hot)).step_ms
    now_ms, then_ms = (true_step_ms(problem, each, trouble) for each in (plan, decision.plan or plan))
    return (now_ms - then_ms) / (now_ms - oracle_ms)


def slow_sender(problem: PlanningProblem, plan: ShardingPlan, ms_per_byte: float, delay_ms: float) -> Decision:
    """The decision where rank 1 sends slowly, by the byte and by the message."""
    healthy = observe(problem, plan)
    shards = plan_shards(problem, plan)
    loads = np.zeros((problem.topology.world_size, NUM_TRAFFIC))
    np.add.at(loads, shards.rank, ESTIMATOR.shard_loads(problem, shards)[:, :NUM_TRAFFIC])
    phases_ms = healthy.phases_ms.copy()
    phases_ms[EXCHANGE_ROWS] += delay_ms + ms_per_byte * sent_bytes(problem, loads)[:, [1]]
    seen = Observation(phases_ms, healthy.table_ids, {}, slow_senders=(1,))
    return replan(problem, plan, ESTIMATOR, seen, healthy, CHEAP, ALL_STEPS, 0.0, SETTINGS)


def test_a_slow_sender_sends_fewer_bytes() -> None:
    problem = make_problem([(100_000, 64, 4.0)] * 16, 8)
    plan = whole_on(problem, [at % 8 for at in range(16)])
    decision = slow_sender(problem, plan, ms_per_byte=1e-7, delay_ms=0.0)
    assert decision.is_move and decision.plan is not None
    before, after = (
        sum(shard.num_cols for table in each.tables for shard in table.shards if shard.rank == 1)
        for each in (plan, decision.plan)
    )
    assert after < before


def test_messages_that_are_late_whatever_their_size_move_nothing() -> None:
    problem = make_problem([(100_000, 64, 4.0)] * 16, 8)
    plan = whole_on(problem, [at % 8 for at in range(16)])
    assert not slow_sender(problem, plan, ms_per_byte=0.0, delay_ms=2.0).is_move


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_noise_moves_nothing(num_ranks: int) -> None:
    problem = make_problem([(100_000, 64, 10.0)] * 4 * num_ranks, num_ranks)
    plan = whole_on(problem, [at % num_ranks for at in range(4 * num_ranks)])
    rng, noise = np.random.default_rng(0), Trouble(noise=0.05)
    quick = ReplanSettings(margin=1.2, budget_s=0.05, seed=0)
    for draw in range(60):
        healthy = observe(problem, plan, noise, rng) if draw % 3 else None
        seen = observe(problem, plan, noise, rng)
        decision = replan(problem, plan, ESTIMATOR, seen, healthy, CHEAP, ALL_STEPS, 0.0, quick)
        assert not decision.is_move, decision.reason


def test_a_fleet_that_slows_down_alike_moves_nothing() -> None:
    problem = make_problem(EIGHT, 4)
    plan = whole_on(problem, EVEN)
    assert not decide_on(problem, plan, Trouble(slow=dict.fromkeys(range(4), 2.0))).is_move


def test_an_error_of_the_model_is_not_taken_for_a_change() -> None:
    problem = make_problem(EIGHT, 4)
    plan = whole_on(problem, EVEN)
    # The model is three times too quick for all lookups, as it was before.
    phases_ms = observe(problem, plan).phases_ms.copy()
    phases_ms[LOOKUPS] *= 3.0
    seen = Observation(phases_ms, observe(problem, plan).table_ids, {})
    decision = replan(problem, plan, ESTIMATOR, seen, seen, CHEAP, ALL_STEPS, 0.0, SETTINGS)
    assert not decision.is_move
    assert decision.step_ms == pytest.approx(seen.step_ms, rel=1e-6)


def test_a_drift_that_ends_before_its_price_is_earned_moves_nothing() -> None:
    problem = make_problem(EIGHT, 4)
    plan, trouble, price = whole_on(problem, EVEN), Trouble(slow={1: 1.6}), MovePrice(300.0, 1e9)
    long = decide_on(problem, plan, trouble, price, ALL_STEPS)
    assert long.is_move
    just_short = int(SETTINGS.margin * long.price_ms / long.predicted_gain_ms * 0.2)
    short = decide_on(problem, plan, trouble, price, just_short)
    assert not short.is_move
    assert short.plan is not None and short.predicted_gain_ms > 0 and short.price_ms >= price.fixed_ms
    assert f"{just_short:,} steps left" in short.reason and short.reason.startswith("no")


def test_an_unknown_end_waits_until_as_much_is_lost_as_the_move_costs() -> None:
    problem = make_problem(EIGHT, 4)
    plan, trouble, price = whole_on(problem, EVEN), Trouble(slow={1: 1.6}), MovePrice(300.0, 1e9)
    early = decide_on(problem, plan, trouble, price, None, lost_ms=100.0)
    late = decide_on(problem, plan, trouble, price, None, lost_ms=5000.0)
    assert not early.is_move and early.plan is not None and "not yet" in early.reason
    assert late.is_move


def test_a_huge_table_stays_where_a_small_one_does_the_job() -> None:
    # Both of rank 1's tables cost the same; one is 400 times as large.
    shapes = [(20_000, 64, 10.0), (20_000, 64, 10.0), (8_000_000, 64, 10.0), *[(20_000, 64, 5.0)] * 2]
    problem = make_problem(shapes, 2)
    plan, trouble = whole_on(problem, [0, 1, 1, 1, 1]), Trouble()
    seen = observe(problem, plan)
    for bytes_per_s, is_small_only in ((1e8, True), (1e15, False)):
        price = MovePrice(1.0, bytes_per_s)
        decision = replan(problem, plan, ESTIMATOR, seen, None, price, 100_000, 0.0, SETTINGS)
        assert decision.is_move
        assert decision.moved_bytes == moved_bytes(plan, decision.plan or plan, problem.workload)
        if is_small_only:
            assert "table_2" not in changed(plan, decision.plan)
    assert true_step_ms(problem, decision.plan or plan, trouble) < true_step_ms(problem, plan, trouble)


def test_old_and_new_shards_have_to_fit_side_by_side() -> None:
    # Each rank is nearly full of its own: tables could be exchanged only one after another.
    shapes = [(5_000_000, 64, 12.0), (5_000_000, 64, 2.0)] * 2
    roomy, tight = (make_problem(shapes, 2, hbm_bytes) for hbm_bytes in (80 * GIB, 3 * GIB))
    plan = whole_on(roomy, [0, 1, 0, 1])
    assert decide_on(roomy, plan, Trouble()).is_move
    decision = decide_on(tight, plan, Trouble())
    if decision.plan is not None:
        limit = capacity_bytes(tight) + replicated_bytes(tight)
        assert (transition_bytes(tight, plan, decision.plan) <= limit).all()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_what_is_decided_is_legal_and_what_it_says(seed: int) -> None:
    problem = draw_problem(seed)
    plan = Portfolio(ESTIMATOR, 0.1, seed).plan(problem)
    rng = np.random.default_rng(seed)
    names = rng.choice([table.name for table in problem.workload.tables], 2, replace=False).tolist()
    is_hot = seed % 2
    trouble = Trouble(hot={name: 5.0 for name in names}) if is_hot else Trouble(slow={int(rng.integers(4)): 2.0})
    quick = ReplanSettings(margin=1.2, budget_s=0.3, seed=seed)
    seen, healthy = observe(problem, plan, trouble), observe(problem, plan)
    decision = replan(problem, plan, ESTIMATOR, seen, healthy, CHEAP, ALL_STEPS, 0.0, quick)
    if decision.plan is None:
        assert not decision.is_move and decision.moved_bytes == 0
        return
    check(decision.plan, problem)
    assert decision.expected is not None
    assert decision.predicted_gain_ms == pytest.approx(decision.step_ms - decision.expected.step_ms)
    assert decision.price_ms == pytest.approx(float(CHEAP.pause_ms(decision.moved_bytes)))
    if decision.is_move:
        assert true_step_ms(problem, decision.plan, trouble) < true_step_ms(problem, plan, trouble)


def test_observations_of_other_ranks_are_refused() -> None:
    problem = make_problem(EIGHT, 4)
    other = make_problem(EIGHT, 2)
    seen = observe(other, whole_on(other, [0, 1] * 4))
    with pytest.raises(ValueError, match="found 2 ranks, expected 4"):
        replan(problem, whole_on(problem, EVEN), ESTIMATOR, seen, None, CHEAP, 10, 0.0, SETTINGS)
