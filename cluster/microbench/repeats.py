"""How often something is timed: limits, and when a median can be trusted. Knows no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.profile import Timing

Z_95 = 1.96
"""Two-sided 95 % of the standard normal distribution."""

LEAST_FOR_INTERVAL = 6
"""The extremes of 5 values enclose the median with 93.8 % only, those of 6 with 96.9 %."""


@dataclass(frozen=True)
class Limits:
    """When repeating ends.

    Attributes:
        confidence: Half-width of the median's 95 % interval over the median at which it is exact enough.
        num_warmups: Repeats that do not count.
        min_repeats: Repeats that count, at least.
        max_repeats: At most.
        seconds: No repeat starts later than this after the first, `min_repeats` excepted.
    """

    confidence: float = 0.03
    num_warmups: int = 2
    min_repeats: int = LEAST_FOR_INTERVAL
    max_repeats: int = 50
    seconds: float = 1.0


def summarize(values: Sequence[float]) -> Timing:
    """Median and inter-quartile range of at least one value."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return Timing(float(median), float(high - low), len(values))


def median_half_width(values: Sequence[float]) -> float:
    """Half-width of `median_interval` over the median; infinite below 6 values."""
    if len(values) < LEAST_FOR_INTERVAL:
        return math.inf
    low, high = median_interval(values)
    median = float(np.median(values))
    return (high - low) / 2 / median if median > 0 else math.inf


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The median's 95 % confidence interval, between two order statistics whatever the distribution.

    Source: Le Boudec, Performance Evaluation of Computer and Communication Systems, 2010, theorem 2.1 and its
    approximation for large n: ranks floor(n/2 - 0.98 sqrt(n)) and ceil(n/2 + 1 + 0.98 sqrt(n)).
    """
    count = len(values)
    ordered, margin = sorted(values), Z_95 / 2 * math.sqrt(count)
    low = max(1, math.floor(count / 2 - margin))
    high = min(count, math.ceil(count / 2 + 1 + margin))
    return ordered[low - 1], ordered[high - 1]
