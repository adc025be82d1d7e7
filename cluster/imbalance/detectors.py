"""The detectors by name, each with the threshold at which all give equally few false alarms."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.imbalance.cusum import cusum
from cluster.imbalance.robust_z import robust_z
from cluster.imbalance.shesd import shesd


@dataclass(frozen=True)
class Detector:
    """A pure function on arrays and the level at which it alarms.

    Attributes:
        statistic: Of a history [S, C] of z-scores of single steps (C channels) and a number of newest steps gives a
            figure of each of these, [num_last, C].
        threshold: What the figure has to reach.
    """

    statistic: Callable[[NDArray[np.float64], int], NDArray[np.float64]]
    threshold: float

    def score(self, history: NDArray[np.float64], num_last: int) -> NDArray[np.float64]:
        """Scores [num_last, C] of the newest steps of a history [S, C]: at least 1 where the detector alarms."""
        return self.statistic(history, num_last) / self.threshold


DETECTORS = {
    "robust_z": Detector(robust_z, threshold=4.7),
    "cusum": Detector(cusum, threshold=9.4),
    "shesd": Detector(shesd, threshold=1.04),
}
"""Thresholds are the least at which `bench detect --calibrate` found no more than 0.25 false alarms in 10,000 steps: by
bisection over 150,000 made-up clean steps of 2, 8 and 64 ranks, of seeds that no comparison uses."""
