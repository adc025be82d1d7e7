"""Detector: seasonal hybrid ESD, generalised extreme Studentised deviates around median and MAD."""

import numpy as np
from numpy.typing import NDArray

from cluster.imbalance.running import MEDIAN_GAIN, running_median

ALPHA = 0.05
"""Source: Hochenbaum, Vallis, Kejariwal 2017 (arXiv 1704.07706), section 4."""

MOST_ANOMALOUS = 0.2
"""Share of the history that may be anomalous. The paper allows up to 0.49; a fifth of the watcher's history holds more
steps than an alarm takes to persist, and time grows with it."""

MAD_TO_SIGMA = 1.4826
"""The MAD of normal noise in standard deviations, inverted."""

LEAST_MAD = 1.0 / MEDIAN_GAIN / MAD_TO_SIGMA
"""The MAD is no less than the baseline's of running medians. Timings are quantised, and a quiet stretch
of them would make the next usual step an outlier."""

LEAST_PERIOD = 5
LEAST_PERIODS = 3
LEAST_CORRELATION = 0.4
"""A season has at least so many steps, is seen so often, and explains so much of a channel's variance. Noise of a
hundred channels and as many lags stays below 0.3 in 192 steps (four times 1 / sqrt(192))."""

AS_GOOD = 0.8
"""Peaks from this share of the highest one on count as equally high."""

SEASON_CLIP = 10.0
"""Seasons are told by z-scores up to here; one wild step shall not be a season."""


def shesd(history: NDArray[np.float64], num_last: int) -> NDArray[np.float64]:
    """How far above its critical value the test statistic of each new point of `history` [S, C] is: [num_last, C].

    The seasonal part goes first; then running medians are tested, since a shift of two scales of noise is no extreme
    value among single steps. R_i = max |x - median| / (1.4826 MAD) is compared with the critical value lambda_i and
    its point dropped, for i = 1, 2, ...; all points up to the last R_i > lambda_i are anomalies. So a point's ratio is
    the largest R_j / lambda_j of j >= i; 0 for points below the median and for those never dropped.
    O(k S C) with k = MOST_ANOMALOUS S.

    Source: Hochenbaum, Vallis, Kejariwal 2017 (arXiv 1704.07706), sections 3 and 4; Rosner 1983 for the critical
    values.
    """
    values = running_median(history - seasonal_part(history), len(history))
    order = np.argsort(values, axis=0)
    ordered = np.take_along_axis(values, order, axis=0)
    dropped, ratios = _drop_extremes(ordered)
    scores = np.zeros_like(values)
    np.put_along_axis(scores, np.take_along_axis(order, dropped, axis=0), ratios, axis=0)
    return scores[-num_last:]


def seasonal_part(history: NDArray[np.float64]) -> NDArray[np.float64]:
    """Medians of the phases of the period of `history` [S, C], repeated to [S, C]; 0 where it has no period.

    A phase's median is taken less the median of all, so a season has no level of its own.
    """
    period = estimate_period(history)
    if period is None:
        return np.zeros_like(history)
    num_steps, num_channels = history.shape
    num_periods = -(-num_steps // period)
    padded = np.full((num_periods * period, num_channels), np.nan)
    padded[:num_steps] = history
    phases = np.nanmedian(padded.reshape(num_periods, period, num_channels), axis=0)
    return np.asarray(np.tile(phases - np.median(history, axis=0), (num_periods, 1))[:num_steps])


def estimate_period(history: NDArray[np.float64]) -> int | None:
    """The lag in steps of the first high peak of the autocorrelation of any channel of `history` [S, C], or None."""
    num_steps = len(history)
    values = np.clip(history, -SEASON_CLIP, SEASON_CLIP)
    values = values - values.mean(axis=0)
    spectrum = np.fft.rfft(values, n=2 * num_steps, axis=0)
    lags = np.arange(num_steps // LEAST_PERIODS + 1)
    covariance = np.fft.irfft(np.abs(spectrum) ** 2, axis=0)[lags] / (num_steps - lags)[:, None]
    correlation = covariance / np.maximum(covariance[0], 1e-12)
    inner = correlation[1:-1]
    is_peak = (inner > correlation[:-2]) & (inner >= correlation[2:])
    heights = np.where(is_peak, inner, 0.0)[LEAST_PERIOD - 1 :].max(axis=1, initial=0.0)
    if not len(heights) or heights.max() < LEAST_CORRELATION:
        return None
    # Multiples of a period are as good; it is the first that will do.
    return int(np.argmax(heights >= AS_GOOD * heights.max())) + LEAST_PERIOD


def _drop_extremes(ordered: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows [k, C] of `ordered` [S, C] in the order of dropping, and their ratios [k, C]; 0 of those below the median.

    What is left is always a run of the ordered values: its median is in its middle, its extreme at one of its ends.
    """
    num_steps, num_channels = ordered.shape
    num_drops = int(MOST_ANOMALOUS * num_steps)
    first = np.zeros(num_channels, dtype=np.int64)
    dropped = np.zeros((num_drops, num_channels), dtype=np.int64)
    ratios, is_above = np.zeros(dropped.shape), np.zeros(dropped.shape, dtype=bool)
    critical = critical_values(num_steps, num_drops)
    for index in range(num_drops):
        num_left = num_steps - index
        left = np.take_along_axis(ordered, first + np.arange(num_left)[:, None], axis=0)
        median = left[num_left // 2]
        mad = np.partition(np.abs(left - median), num_left // 2, axis=0)[num_left // 2]
        above, below = left[-1] - median, median - left[0]
        is_above[index] = above >= below
        dropped[index] = np.where(is_above[index], first + num_left - 1, first)
        deviation = np.maximum(above, below) / (MAD_TO_SIGMA * np.maximum(mad, LEAST_MAD))
        ratios[index] = deviation / critical[index]
        first += ~is_above[index]
    ratios = np.maximum.accumulate(ratios[::-1], axis=0)[::-1]
    return dropped, np.where(is_above, ratios, 0.0)


def critical_values(num_points: int, num_drops: int) -> NDArray[np.float64]:
    """lambda_i [num_drops] of the generalised ESD test of `num_points` points.

    Source: Rosner 1983, "Percentage points for a generalized ESD many-outlier procedure", equation 2.5.
    """
    # Every command reads the names of the detectors; only a watch needs this, which takes a third of a second to load.
    from scipy.special import stdtrit

    number = np.arange(1, num_drops + 1)
    left = num_points - number
    quantile = stdtrit(left - 1, 1 - ALPHA / (2 * (left + 1)))
    return np.asarray(quantile * left / np.sqrt((left - 1 + quantile**2) * (left + 1)))
