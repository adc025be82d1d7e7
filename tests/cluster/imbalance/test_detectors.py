"""Detectors against plain loops, and what each finds and does not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from cluster.imbalance import shesd as module
from cluster.imbalance.cusum import CLIP, SLACK, change_point, cusum
from cluster.imbalance.detectors import DETECTORS
from cluster.imbalance.running import SPAN, persistent_level, running_median
from cluster.imbalance.shesd import critical_values, estimate_period, seasonal_part, shesd

NUM_STEPS = 192


def noise(seed: int, num_steps: int = NUM_STEPS, num_channels: int = 3) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(num_steps, num_channels))


@settings(deadline=None)
@given(seed=st.integers(0, 1000), num_steps=st.integers(1, 40))
def test_cusum_is_the_recursion(seed: int, num_steps: int) -> None:
    history = 3 * noise(seed, num_steps)
    total, expected = np.zeros(3), []
    for row in history:
        total = np.maximum(0, total + np.clip(row, -CLIP, CLIP) - SLACK)
        expected.append(total)
    assert cusum(history, num_steps) == pytest.approx(np.array(expected), abs=1e-9)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), num_steps=st.integers(1, 40))
def test_running_median_is_of_the_last_steps(seed: int, num_steps: int) -> None:
    history = noise(seed, num_steps)
    padded = np.concatenate([np.zeros((SPAN - 1, 3)), history])
    expected = [np.median(padded[step : step + SPAN], axis=0) for step in range(num_steps)]
    assert running_median(history, num_steps) == pytest.approx(np.array(expected))


@settings(deadline=None)
@given(seed=st.integers(0, 1000), of_last=st.integers(1, 6), data=st.data())
def test_persistent_level_is_reached_by_so_many(seed: int, of_last: int, data: st.DataObject) -> None:
    at_least = data.draw(st.integers(1, of_last))
    values = noise(seed, 20)
    levels = persistent_level(values, at_least, of_last)
    for step, level in enumerate(levels):
        assert (np.sum(values[step : step + of_last] >= level, axis=0) == at_least).all()


@settings(deadline=None)
@given(seed=st.integers(0, 200))
def test_shesd_is_the_test_of_the_paper_on_running_medians(seed: int) -> None:
    history = noise(seed, 60, 1)
    history[40:48] += 5
    values = running_median(history - seasonal_part(history), 60)[:, 0]
    left, ratios = list(range(60)), {}
    for index in range(int(module.MOST_ANOMALOUS * 60)):
        rest = values[left]
        median = np.sort(rest)[len(rest) // 2]
        mad = max(np.sort(np.abs(rest - median))[len(rest) // 2], module.LEAST_MAD)
        far = np.abs(rest - median)
        # Of equal distances the one above goes first.
        worst = max(range(len(rest)), key=lambda place: (far[place], rest[place]))
        n, i = 60, index + 1
        t = stats.t.ppf(1 - 0.05 / (2 * (n - i + 1)), n - i - 1)
        critical = t * (n - i) / np.sqrt((n - i - 1 + t**2) * (n - i + 1))
        ratios[left.pop(worst)] = (far[worst] / (1.4826 * mad) / critical, rest[worst] >= median)
    expected, largest = np.zeros(60), 0.0
    for place, (ratio, is_above) in reversed(ratios.items()):
        largest = max(largest, ratio)
        expected[place] = largest if is_above else 0.0
    assert np.sort(shesd(history, 60)[:, 0]) == pytest.approx(np.sort(expected))


def test_critical_values_fall_as_points_go() -> None:
    # Source: NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.5.17.3, the data of Rosner 1983.
    assert critical_values(54, 10)[[0, 9]] == pytest.approx([3.159, 3.085], abs=5e-4)


@pytest.mark.parametrize("period", [20, 50])
def test_a_season_is_found_and_taken_out(period: int) -> None:
    history = noise(0)
    history[::period, 1] += 8
    assert estimate_period(history) == period
    rest = history - seasonal_part(history)
    assert np.abs(rest[::period, 1]).mean() < 2


def test_noise_and_shifts_have_no_season_of_a_level() -> None:
    assert estimate_period(noise(1, num_channels=100)) is None
    history = noise(2)
    history[120:] += 4
    assert np.median((history - seasonal_part(history))[130:], axis=0) == pytest.approx(4, abs=1)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_scores_a_lasting_shift_and_nothing_else(name: str) -> None:
    history = noise(3)
    history[::50, 0] += 20
    history[160:, 1] += 6
    scores = DETECTORS[name].score(history, NUM_STEPS)
    assert scores.shape == history.shape
    assert (scores[-5:, 1] >= 1).all()
    assert (scores[100:, [0, 2]] < 1).all()


@settings(deadline=None)
@given(change=st.integers(5, 90), shift=st.floats(2, 6), seed=st.integers(0, 50))
def test_the_change_point_is_near_the_change(change: int, shift: float, seed: int) -> None:
    values = np.random.default_rng(seed).normal(0, 0.2, 100)
    values[change:] += shift
    assert abs(change_point(values, shift) - change) <= 1
