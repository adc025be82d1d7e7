"""Several things wrong with one fleet, at once or one after the other: each is told, at what it costs."""

import numpy as np
import pytest

from cluster.imbalance.verdict import Cause, Verdict
from cluster.imbalance.watcher import Watcher
from tests.cluster.imbalance.fleets import (
    COLLECTIVES,
    DENSE,
    FIRST_CHANGE,
    LOOKUPS,
    SETTINGS,
    column,
    make_rows,
    scale,
    shards_block,
    steps_block,
    watch,
)

ALL = slice(None)
AFTER = slice(FIRST_CHANGE - 1, None)
WORK = (*LOOKUPS, *DENSE)


@pytest.mark.parametrize(("names", "usual_ms"), [(WORK, 24.0), (LOOKUPS, 8.0), (DENSE, 16.0)])
def test_ranks_that_are_slow_together_cost_what_all_of_them_do(names: tuple[str, ...], usual_ms: float) -> None:
    rows = make_rows(180, 16)
    scale(rows, names, 1.3, slice(4, 8), AFTER)
    verdicts = watch(rows)
    assert sorted(each.rank for each in verdicts if each.rank is not None) == [4, 5, 6, 7]
    assert [each.severity_ms for each in verdicts] == pytest.approx([0.3 * usual_ms] * 4, rel=0.25)


def test_of_two_slow_ranks_the_lesser_costs_less() -> None:
    rows = make_rows(180, 8)
    scale(rows, WORK, 2.0, 1, AFTER)
    scale(rows, WORK, 1.3, 6, AFTER)
    severity_ms = {each.rank: each.severity_ms for each in watch(rows)}
    assert severity_ms == pytest.approx({1: 24.0, 6: 7.2}, rel=0.2)


def test_a_rank_that_had_too_much_from_the_first_step_and_then_gets_slow_is_told_twice() -> None:
    rows = make_rows(360, 4)
    scale(rows, LOOKUPS, 1.5, 2, ALL)
    scale(rows, WORK, 1.4, 2, slice(199, 300))
    of_plan, slow, over = watch(rows, expected_lookup_ms=np.full(4, 8.0))
    assert {each.rank for each in (of_plan, slow, over)} == {2}
    assert of_plan.since_step <= SETTINGS.warmup_steps + 1 and not of_plan.is_over
    assert abs(slow.since_step - 200) <= 3 and slow.severity_ms == pytest.approx(0.4 * 28, rel=0.2)
    assert over.is_over and over.since_step == slow.since_step


def slow_rank_and_link(link_step: int, num_steps: int) -> list[Verdict]:
    rows = make_rows(num_steps, 4)
    scale(rows, WORK, 1.3, 1, AFTER)
    for name in COLLECTIVES[:3]:
        column(rows, name)[link_step - 1 :] += 2.0
    return watch(rows)


def test_a_link_that_gets_slow_long_after_a_rank_is_told_too() -> None:
    of_rank, of_link = slow_rank_and_link(300, 400)
    assert (of_rank.cause, of_rank.rank) == (Cause.SLOW_DEVICE, 1)
    assert (of_link.cause, of_link.rank) == (Cause.SLOW_LINK, None)
    assert abs(of_link.since_step - 300) <= 3 and of_link.severity_ms == pytest.approx(6, rel=0.1)


def test_transfers_that_are_slow_since_a_rank_is_stay_its_fault_however_long() -> None:
    (verdict,) = slow_rank_and_link(FIRST_CHANGE, 900)
    assert (verdict.cause, verdict.rank) == (Cause.SLOW_DEVICE, 1)


@pytest.mark.parametrize("window_steps", [10, 150])
def test_a_hot_table_is_named_however_long_windows_are(window_steps: int) -> None:
    rows = make_rows(600, 3)
    scale(rows, LOOKUPS, 1.25, 1, slice(399, None))
    scale(rows, ("ids",), 1.3, 1, slice(399, None))
    steps, watcher, verdicts = steps_block(rows), Watcher(SETTINGS), []

    def sampled(step: int) -> list[float]:
        return [9e3] * 4 + [9e3 + 8000 * (step >= 400)] + [9e3] * 4

    for begin in range(0, 600, 30):
        part = slice(begin, begin + 30)
        verdicts += watcher.update(type(steps)("steps", steps.labels, steps.steps[part], steps.rows[part]))
        ends = [step for step in range(begin + 1, begin + 31) if step % window_steps == 0]
        verdicts += watcher.update(shards_block(ends, 3, sampled)) if ends else []
    (verdict,) = verdicts
    assert (verdict.cause, verdict.rank, verdict.tables) == (Cause.HOT_TABLE, 1, ("b1",))
