"""Persistence and hysteresis, against a loop over steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cluster.imbalance.alarm import CALM, Alarm

PERSISTENCE, OF_LAST = 5, 6


def play(scores: NDArray[np.float64], present: NDArray[np.float64], cuts: list[int]) -> Alarm:
    alarm = Alarm(scores.shape[1], PERSISTENCE)
    steps = np.arange(1, len(scores) + 1)
    for part in np.split(np.arange(len(scores)), sorted(cuts)):
        if len(part):
            alarm.update(steps[part], scores[part], present[part])
    return alarm


@settings(deadline=None)
@given(seed=st.integers(0, 2000), cuts=st.lists(st.integers(1, 59), max_size=6))
def test_it_is_the_loop_over_steps_however_they_come(seed: int, cuts: list[int]) -> None:
    generator = np.random.default_rng(seed)
    # Long stretches above and below, so that channels go on and off.
    level = np.repeat(generator.choice([0.5, 1.2], (6, 4)), 10, axis=0)
    scores = level + generator.normal(0, 0.3, level.shape)
    present = level * CALM + generator.normal(0, 0.2, level.shape)
    alarm = play(scores, present, cuts)
    for channel in range(4):
        is_on, on_step = False, 0
        for step in range(1, 61):
            last = slice(max(0, step - OF_LAST), step)
            is_there = (present[last, channel] >= CALM).sum() >= PERSISTENCE
            rises = (scores[last, channel] >= 1).sum() >= PERSISTENCE and is_there
            if rises and not is_on:
                is_on, on_step = True, step
            is_on = is_on and is_there
        assert alarm.is_on[channel] == is_on
        if is_on:
            assert alarm.on_step[channel] == on_step


@pytest.mark.parametrize(("length", "is_on"), [(PERSISTENCE - 1, False), (PERSISTENCE, True)])
def test_what_is_shorter_than_the_persistence_is_no_alarm(length: int, is_on: bool) -> None:
    scores = np.zeros((length + 10, 1))
    scores[10:] = 5.0
    assert play(scores, scores, []).is_on[0] == is_on


def test_a_sum_that_stays_high_after_the_excess_is_gone_is_no_alarm() -> None:
    scores = np.full((30, 1), 5.0)
    present = np.full((30, 1), CALM)
    present[20:] = 0.0
    assert play(scores[:20], present[:20], []).is_on[0]
    assert not play(scores, present, []).is_on[0]
