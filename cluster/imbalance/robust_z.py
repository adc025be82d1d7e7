"""Detector: how far the median of the last steps stands above the baseline."""

import math

import numpy as np
from numpy.typing import NDArray

from cluster.imbalance.running import SPAN, running_median

SPANS = (SPAN, 3 * SPAN)
"""Steps of the medians: the short one tells a large change soon, the long one a change of two scales of noise."""

WANDER = 0.25
"""By how much levels of ranks wander against each other, in scales of noise of a step: so much of a median's error
stays however many steps it is of. Medians of 50 steps of two gloo ranks scattered by 0.3 to 0.4, 0.2 of it chance."""


def robust_z(history: NDArray[np.float64], num_last: int) -> NDArray[np.float64]:
    """The larger z-score of two running medians of `history` [S, C] for the newest steps: [num_last, C].

    Values of the history are z-scores of single steps; `cluster.imbalance.baseline` took median and MAD of the
    baseline out. O(num_last C).

    Source: Iglewicz and Hoaglin 1993, "How to detect and handle outliers", the modified z-score; pi / 2 is the
    asymptotic variance of the median of normal values times their number, in variances.
    """
    scores = (
        running_median(history, num_last, span) / math.hypot(math.sqrt(math.pi / 2 / span), WANDER) for span in SPANS
    )
    return np.asarray(np.maximum(*scores))
