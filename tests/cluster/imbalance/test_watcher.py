"""The watch on made-up fleets: what it tells, how often, and what it never tells."""

import json
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from cluster.imbalance.detectors import DETECTORS
from cluster.imbalance.settings import WatchSettings
from cluster.imbalance.verdict import Cause, Verdict
from cluster.imbalance.watcher import Watcher
from tests.cluster.imbalance.fleets import (
    COLLECTIVES,
    COLUMNS,
    DENSE,
    FIRST_CHANGE,
    LOOKUPS,
    SETTINGS,
    Rows,
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


def actionable(verdicts: list[Verdict]) -> list[Verdict]:
    return [each for each in verdicts if each.is_actionable]


@pytest.mark.parametrize("num_ranks", [2, 3, 64])
@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("names", [LOOKUPS, DENSE, WORK])
def test_a_rank_that_is_a_fifth_slower_is_found(num_ranks: int, detector: str, names: tuple[str, ...]) -> None:
    rows = make_rows(180, num_ranks)
    scale(rows, names, 1.2, 1, AFTER)
    settings = WatchSettings(detector, warmup_steps=5, baseline_steps=40)
    (verdict,) = actionable(watch(rows, settings))
    assert (verdict.cause, verdict.rank, verdict.tables) == (Cause.SLOW_DEVICE, 1, ())
    assert abs(verdict.since_step - FIRST_CHANGE) <= 3
    assert verdict.step >= FIRST_CHANGE
    # 8 ms of lookups, 16 ms of dense work. Among 64 ranks the slowest by chance is slower than most.
    assert verdict.severity_ms == pytest.approx(0.2 * 4 * len(names), rel=0.4)


def test_a_slow_rank_that_nobody_waits_for_costs_nothing() -> None:
    rows = make_rows(180, 4)
    scale(rows, LOOKUPS, 2.0, 0, ALL)
    scale(rows, LOOKUPS, 1.3, 2, AFTER)
    (verdict,) = watch(rows)
    assert verdict.rank == 2 and verdict.severity_ms == 0


@pytest.mark.parametrize("poll_steps", [1, 7, 64, 500])
def test_polls_of_any_length_lead_to_the_same_verdict(poll_steps: int) -> None:
    rows = make_rows(180, 4)
    scale(rows, WORK, 1.3, 3, AFTER)
    (verdict,), (usual,) = watch(rows, poll_steps=poll_steps), watch(rows)
    assert (verdict.step, verdict.cause, verdict.rank) == (usual.step, usual.cause, usual.rank)


def hot_rows() -> Rows:
    rows = make_rows(180, 3)
    scale(rows, LOOKUPS, 1.25, 1, AFTER)
    scale(rows, ("ids",), 1.3, 1, AFTER)
    return rows


def sampled(step: int) -> list[float]:
    """Of rank 0, 1 and 2; on rank 1 table b1 grows a lot, a1 a little."""
    more = step >= FIRST_CHANGE
    return [9e3, 9e3, 9e3, 9e3 + 300 * more, 9e3 + 8000 * more, 9e3, 9e3, 9e3, 9e3]


@pytest.mark.parametrize("are_shards_first", [True, False])
def test_a_hot_table_is_named(are_shards_first: bool) -> None:
    steps, watcher, verdicts = steps_block(hot_rows()), Watcher(SETTINGS), []
    for begin in range(0, 180, 30):
        part = slice(begin, begin + 30)
        blocks = [
            type(steps)("steps", steps.labels, steps.steps[part], steps.rows[part]),
            shards_block([begin + 10, begin + 20, begin + 30], 3, sampled),
        ]
        for block in reversed(blocks) if are_shards_first else blocks:
            verdicts += watcher.update(block)
    (verdict,) = verdicts
    assert (verdict.cause, verdict.rank, verdict.tables) == (Cause.HOT_TABLE, 1, ("b1",))


def test_a_hot_table_without_samples_has_no_name() -> None:
    (verdict,) = watch(hot_rows())
    assert (verdict.cause, verdict.rank, verdict.tables) == (Cause.HOT_TABLE, 1, ())


def test_a_hot_table_waits_for_the_sample_that_names_it() -> None:
    steps, watcher = steps_block(hot_rows()), Watcher(SETTINGS)
    assert watcher.update(shards_block([10, 20, 90], 3, sampled)) == []
    assert watcher.update(steps) == []
    (verdict,) = watcher.update(shards_block([150, 160], 3, sampled))
    assert verdict.tables == ("b1",)


def test_a_slow_link_is_found_and_a_probe_locates_it() -> None:
    rows = make_rows(180, 4)
    for name in COLLECTIVES[:3]:
        column(rows, name)[AFTER] += 2.0
    watcher = Watcher(SETTINGS)
    send_ms = np.full((4, 4), 0.2)
    send_ms[2] += 2.0
    np.fill_diagonal(send_ms, np.nan)
    assert watcher.locate(send_ms) is None
    (verdict,) = watcher.update(steps_block(rows))
    assert (verdict.cause, verdict.rank) == (Cause.SLOW_LINK, None)
    assert verdict.severity_ms == pytest.approx(6, rel=0.1)
    assert abs(verdict.since_step - FIRST_CHANGE) <= 3
    assert watcher.locate(np.full((4, 4), 0.2)) is None
    located = watcher.locate(send_ms)
    assert located is not None and (located.rank, located.severity_ms) == (2, verdict.severity_ms)
    assert watcher.locate(send_ms) is None
    (over,) = watcher.update(steps_block(make_rows(60, 4, seed=1), 181))
    assert (over.is_over, over.cause, over.rank) == (True, Cause.SLOW_LINK, 2)


def test_transfers_that_are_slow_with_a_rank_are_its_fault() -> None:
    rows = make_rows(180, 4)
    scale(rows, WORK, 1.6, 1, AFTER)
    scale(rows, COLLECTIVES, 1.5, ALL, AFTER)
    (verdict,) = watch(rows)
    assert (verdict.cause, verdict.rank) == (Cause.SLOW_DEVICE, 1)


@pytest.mark.parametrize("num_ranks", [2, 8])
@pytest.mark.parametrize("detector", DETECTORS)
def test_a_slowdown_of_the_whole_fleet_is_drift(num_ranks: int, detector: str) -> None:
    rows = make_rows(200, num_ranks)
    scale(rows, (*WORK, *COLLECTIVES), 1.4, ALL, AFTER)
    verdicts = watch(rows, WatchSettings(detector, warmup_steps=5, baseline_steps=40))
    assert [(each.cause, each.is_actionable, each.rank) for each in verdicts] == [(Cause.GLOBAL_DRIFT, False, None)]


def spikes(rows: Rows, ranks: int | slice) -> None:
    for begin in range(49, len(rows), 50):
        scale(rows, WORK, 8.0, ranks, slice(begin, begin + 3))


def bursts(rows: Rows, ranks: int | slice) -> None:
    for begin in range(60, len(rows), 40):
        scale(rows, WORK, 2.0, ranks, slice(begin, begin + SETTINGS.persistence_steps))


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("ranks", [1, ALL])
@pytest.mark.parametrize("plant", [spikes, bursts])
def test_long_steps_that_pass_never_fire(detector: str, ranks: int | slice, plant: object) -> None:
    rows = make_rows(600, 4)
    assert callable(plant)
    plant(rows, ranks)
    assert actionable(watch(rows, WatchSettings(detector, warmup_steps=5, baseline_steps=60))) == []


def episodes() -> Iterator[tuple[float, int]]:
    """(factor, steps) of rank 1, one after the other."""
    yield from [(1.0, 100), (1.2, 80), (1.8, 80), (1.0, 60), (1.3, 100)]


def test_a_finding_is_told_once_and_when_it_is_worse_and_when_it_is_over() -> None:
    rows, begin = make_rows(420, 3), 0
    for factor, length in episodes():
        scale(rows, WORK, factor, 1, slice(begin, begin + length))
        begin += length
    verdicts = watch(rows, poll_steps=10)
    assert [each.is_over for each in verdicts] == [False, False, True, False]
    assert {(each.cause, each.rank) for each in verdicts} == {(Cause.SLOW_DEVICE, 1)}
    first, worse, over, again = verdicts
    assert 100 < first.step < 130 and 180 < worse.step < 210 and 260 < over.step < 290
    assert worse.severity_ms > 2 * first.severity_ms and over.severity_ms == worse.severity_ms
    assert abs(worse.since_step - 181) <= 3 and abs(again.since_step - 321) <= 3
    assert again.step >= over.step + SETTINGS.cool_down_steps


def test_a_plan_that_is_out_of_balance_from_the_first_step_is_told() -> None:
    rows = make_rows(120, 4)
    scale(rows, LOOKUPS, 1.5, 2, ALL)
    even, as_measured = np.full(4, 6.0), np.array([6.0, 6.0, 9.0, 6.0])
    (verdict,) = watch(rows, expected_lookup_ms=even)
    assert (verdict.cause, verdict.rank, verdict.is_over) == (Cause.SLOW_DEVICE, 2, False)
    assert verdict.severity_ms == pytest.approx(4, rel=0.2)
    assert watch(rows, expected_lookup_ms=as_measured) == watch(rows) == []


def test_a_device_that_is_slow_from_the_first_step_is_told_without_a_promise() -> None:
    rows = make_rows(120, 4)
    scale(rows, WORK, 1.5, 3, ALL)
    (verdict,) = watch(rows)
    assert (verdict.cause, verdict.rank) == (Cause.SLOW_DEVICE, 3)


def test_after_a_reset_everything_is_learned_anew() -> None:
    rows = make_rows(180, 3)
    scale(rows, WORK, 1.4, 1, AFTER)
    watcher = Watcher(SETTINGS)
    assert len(watcher.update(steps_block(rows))) == 1
    watcher.reset()
    again = make_rows(180, 2, seed=1)
    scale(again, WORK, 1.2, 1, ALL)
    assert watcher.update(steps_block(again)) == []


def test_another_number_of_ranks_needs_a_reset() -> None:
    watcher = Watcher(SETTINGS)
    watcher.update(steps_block(make_rows(60, 3)))
    with pytest.raises(ValueError, match=r"other ranks or columns than before; reset\(\) begins a new plan"):
        watcher.update(steps_block(make_rows(10, 2), 61))


def test_one_rank_has_nobody_to_be_held_against() -> None:
    rows = make_rows(180, 1)
    scale(rows, WORK, 3.0, 0, AFTER)
    assert watch(rows) == []


def test_what_is_kept_does_not_grow() -> None:
    watcher, rows = Watcher(SETTINGS), make_rows(60, 8)

    def feed(polls: range) -> None:
        for poll in polls:
            watcher.update(shards_block([60 * poll + 60], 8, lambda _: [9e3] * 24))
            watcher.update(steps_block(rows, 60 * poll + 1))

    feed(range(20))
    tracemalloc.start()
    try:
        feed(range(20, 25))
        before, _ = tracemalloc.get_traced_memory()
        feed(range(25, 60))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 50_000


def test_a_verdict_is_a_record() -> None:
    verdict = Verdict(240, Cause.HOT_TABLE, 3, ("a", "b"), 1.25, 220)
    record = json.loads(json.dumps(verdict.to_record()))
    assert record == {
        "kind": "verdict",
        "step": 240,
        "cause": "hot_table",
        "rank": 3,
        "tables": ["a", "b"],
        "severity_ms": 1.25,
        "since_step": 220,
        "is_over": False,
        "message": "rank 3 looks up more than it did (a, b): 1.25 ms a step lost since step 220",
    }


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"detector": "robust"}, "detector: found 'robust', expected one of robust_z, cusum, shesd"),
        ({"baseline_steps": 3, "cool_down_steps": -1}, "baseline_steps: found 3.*cool_down_steps: found -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WatchSettings(**keys)


def test_missing_columns_are_told() -> None:
    block = steps_block(make_rows(5, 2)[..., :-3])
    with pytest.raises(ValueError, match="output_dist_backward_bytes, all_reduce_bytes"):
        Watcher(SETTINGS).update(type(block)("steps", {"columns": list(COLUMNS[:-3])}, block.steps, block.rows))
