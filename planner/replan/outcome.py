"""Whether a migration kept its promise, told from noise."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""

MEDIAN_ERROR = 1.2533
"""Error of a median over that of a mean, of normal values: sqrt(pi / 2)."""

WANDER = 0.02
"""Relative error of a level, however many steps: levels of ranks on shared machines wander by some percent over
hundreds of steps, which no median of a stretch averages out."""

SURE = 2.0
"""Errors that a step must be longer by to be a loss: one migration in forty that changed nothing would be rolled back,
and a roll-back is tried once."""


@dataclass(frozen=True)
class Outcome:
    """What became of a promise, in milliseconds a step.

    Attributes:
        promised_gain_ms: Predicted before the move.
        realised_gain_ms: Median step before less the median after; below 0 where steps got longer.
        error_ms: One standard error of that.
        is_loss: Whether steps are longer beyond noise.
    """

    promised_gain_ms: float
    realised_gain_ms: float
    error_ms: float
    is_loss: bool

    @property
    def message(self) -> str:
        """One line for people."""
        found = (
            f"{self.realised_gain_ms:.2f} +- {self.error_ms:.2f} ms a step gained, {self.promised_gain_ms:.2f} promised"
        )
        return f"a loss: {found}" if self.is_loss else found


def judge_move(before_ms: ArrayLike, after_ms: ArrayLike, promised_gain_ms: float) -> Outcome:
    """The outcome by step times before [n] and after [m] a move, its pause left out; medians, so spikes do not count.

    >>> judge_move([10.0, 10.1, 9.9, 30.0], [8.0, 8.1, 7.9, 8.0], promised_gain_ms=2.0).is_loss
    False

    Raises:
        ValueError: There are no steps before, or none after.
    """
    before, after = (np.asarray(each, dtype=np.float64) for each in (before_ms, after_ms))
    if not len(before) or not len(after):
        raise ValueError(f"steps to compare: found {len(before)} before the move and {len(after)} after, expected some")
    gain_ms = float(np.median(before) - np.median(after))
    error_ms = float(np.hypot(_median_error(before), _median_error(after)))
    return Outcome(promised_gain_ms, gain_ms, error_ms, gain_ms < -SURE * error_ms)


def _median_error(times_ms: NDArray[np.float64]) -> float:
    """One standard error of the median of times [n]."""
    middle = np.median(times_ms)
    sigma = MAD_TO_SIGMA * np.median(np.abs(times_ms - middle))
    return float(np.hypot(MEDIAN_ERROR * sigma / np.sqrt(len(times_ms)), WANDER * middle))
