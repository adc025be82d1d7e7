"""Moves are decided by what they gain, and with an unknown end never cost more than twice the best in hindsight."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.replan import MovePrice
from planner.replan.decide import LEAST_GAIN, decide

STEP_MS = 10.0
GAINS = st.lists(st.one_of(st.just(0.0), st.floats(0.5, 20.0)), min_size=1, max_size=200)


def paid_ms(losses_ms: list[float], price_ms: float) -> float:
    """What a job pays that asks before every step: losses until it moves, and the price if it does."""
    lost_ms = 0.0
    for loss_ms in losses_ms:
        if decide(loss_ms, STEP_MS, price_ms, None, lost_ms, margin=1.2)[0]:
            return lost_ms + price_ms
        lost_ms += loss_ms
    return lost_ms


@given(losses_ms=GAINS, price_ms=st.floats(1.0, 1000.0))
def test_ski_rental_pays_at_most_twice_the_best_in_hindsight(losses_ms: list[float], price_ms: float) -> None:
    best_ms = min(sum(losses_ms), price_ms)
    # It moves with the first step after the price was lost: one step's loss is what polling costs.
    assert paid_ms(losses_ms, price_ms) <= 2 * best_ms + max(losses_ms)


def test_ski_rental_moves_in_a_drift_that_stays() -> None:
    assert paid_ms([5.0] * 10_000, price_ms=300.0) == pytest.approx(600.0)


@given(
    gain_ms=st.floats(0.0, 10.0),
    price_ms=st.floats(0.0, 1e4),
    remaining_steps=st.integers(0, 100_000),
    margin=st.floats(1.0, 3.0),
)
def test_a_known_end_weighs_gain_times_steps(
    gain_ms: float, price_ms: float, remaining_steps: int, margin: float
) -> None:
    is_move, reason = decide(gain_ms, STEP_MS, price_ms, remaining_steps, 1e9, margin)
    assert is_move == (gain_ms > LEAST_GAIN * STEP_MS and gain_ms * remaining_steps > margin * price_ms)
    assert reason.startswith("no") is not is_move
    assert f"{gain_ms:.2f} ms" in reason


def test_a_gain_within_noise_is_none_however_long_it_lasts() -> None:
    gain_ms = LEAST_GAIN * STEP_MS
    assert not decide(gain_ms, STEP_MS, 0.0, 10**9, 0.0, 1.0)[0]
    assert not decide(gain_ms, STEP_MS, 1.0, None, 1e9, 1.0)[0]


def test_prices_are_a_pause_and_bytes() -> None:
    price = MovePrice(fixed_ms=50.0, bytes_per_s=1e9)
    np.testing.assert_allclose(price.pause_ms(np.array([0, 10**8])), [50.0, 150.0])
