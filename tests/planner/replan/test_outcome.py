"""Promise and outcome are compared in the presence of noise and spikes."""

import numpy as np
import pytest

from planner.replan import judge_move


def steps(level_ms: float, seed: int, num_steps: int = 50) -> np.ndarray:
    """Steps with 5 % noise, one in ten of them three times as long."""
    rng = np.random.default_rng(seed)
    times_ms = level_ms * np.exp(0.05 * rng.standard_normal(num_steps))
    times_ms[::10] *= 3
    return times_ms


def test_a_gain_is_found_as_large_as_it_is() -> None:
    outcome = judge_move(steps(10.0, 0), steps(8.0, 1), promised_gain_ms=2.5)
    assert not outcome.is_loss
    assert outcome.promised_gain_ms == 2.5
    assert outcome.realised_gain_ms == pytest.approx(2.0, abs=0.3)
    assert "2.50 promised" in outcome.message


def test_a_move_that_changed_nothing_is_hardly_ever_a_loss() -> None:
    losses = [judge_move(steps(10.0, seed), steps(10.0, seed + 1000), 1.0).is_loss for seed in range(300)]
    assert sum(losses) <= 3


@pytest.mark.parametrize("num_steps", [5, 50])
def test_a_loss_is_one_beyond_noise(num_steps: int) -> None:
    losses = [judge_move(steps(10.0, seed, num_steps), steps(13.0, seed + 1000, num_steps), 1.0) for seed in range(50)]
    assert all(each.realised_gain_ms < 0 for each in losses)
    assert sum(each.is_loss for each in losses) >= 45


def test_a_level_that_wandered_by_a_percent_is_no_loss_however_long_it_was_measured() -> None:
    assert not judge_move(np.full(10_000, 10.0), np.full(10_000, 10.1), 1.0).is_loss


def test_no_steps_are_no_outcome() -> None:
    with pytest.raises(ValueError, match="found 0 before"):
        judge_move([], [1.0], 1.0)
