"""When scores become an alarm, and when it is over: persistence and hysteresis for every channel."""

import math

import numpy as np
from numpy.typing import NDArray

from cluster.imbalance.running import persistent_level

SPARE_SHARE = 0.2
"""So many steps more may pass until enough of them alarm: a step may be short by chance. A burst that is shorter than
the persistence stays so all the same."""

CALM = 0.8
"""An alarm is over when the running median of z-scores stays below this many scales of noise, and does not begin
below. It is well under where detectors alarm, so that noise around one level does not switch it on and off."""


class Alarm:
    """The state of C channels.

    It goes on where `persistence_steps` of little more than so many scores are at least 1 and the excess is still
    there; it goes off where the excess is not. A sum over the past, such as CUSUM's, may stay high when all is over:
    so the excess itself, `present`, decides the end.

    Attributes:
        is_on: bool [C].
        on_step: int64 [C], the step at which each went on last.
        level: [C], what so many of the last scores reach.
    """

    def __init__(self, num_channels: int, persistence_steps: int) -> None:
        """All channels are off."""
        self._at_least = persistence_steps
        self._of_last = persistence_steps + math.floor(SPARE_SHARE * persistence_steps)
        self._scores = np.zeros((self._of_last - 1, num_channels))
        self._present = np.zeros((self._of_last - 1, num_channels))
        self.is_on = np.zeros(num_channels, dtype=bool)
        self.on_step = np.zeros(num_channels, dtype=np.int64)
        self.level = np.zeros(num_channels)

    def update(self, steps: NDArray[np.int64], scores: NDArray[np.float64], present: NDArray[np.float64]) -> None:
        """Take S >= 1 steps: scores [S, C] and running medians of z-scores [S, C]."""
        level, self._scores = self._levels(self._scores, scores)
        excess, self._present = self._levels(self._present, present)
        rises = (level >= 1) & (excess >= CALM)
        self._switch(steps, rises, excess < CALM)
        self.level = level[-1]

    def _levels(
        self, before: NDArray[np.float64], values: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Persistent levels of every step, and the values that the next call needs."""
        joined = np.concatenate([before, values])
        return persistent_level(joined, self._at_least, self._of_last), joined[len(values) :]

    def _switch(self, steps: NDArray[np.int64], rises: NDArray[np.bool_], falls: NDArray[np.bool_]) -> None:
        """Go through the steps at once: a channel is as its last event left it, and went on when it first rose then."""
        number = np.arange(1, len(steps) + 1)[:, None]
        last_fall = np.where(falls, number, 0).max(axis=0)
        since_fall = rises & (number > last_fall)
        was_on = self.is_on & (last_fall == 0)
        goes_on = since_fall.any(axis=0) & ~was_on
        self.on_step[goes_on] = steps[since_fall.argmax(axis=0)[goes_on]]
        self.is_on = was_on | goes_on
