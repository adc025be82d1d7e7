"""A plan that is out of balance from its first step: no change will ever tell."""

import math

import numpy as np
from numpy.typing import NDArray

from cluster.imbalance.baseline import Baseline, beyond_others
from cluster.imbalance.diagnosis import Finding, mended_excess_ms
from cluster.imbalance.verdict import Cause, Verdict

ESTIMATE_ERROR = 0.1
"""Standard deviation of estimates of lookups, as a logarithm: they are wrong by some 10 %."""

MARGIN = 1.5
"""So many standard deviations lie between the largest error to be expected of all ranks and the band: from 8 ranks on
an error exceeds it in less than one of a hundred plans. The band is a factor of 1.3 with two ranks, of 1.6 with 256."""

DENSE_BAND = 1.3
"""A rank stands out in the dense part where it takes so many times what it takes the others. Nothing is estimated
there; equal devices differ by some percent, under different loads of their hosts by more."""

LEAST_COST = 0.02
"""Of the slowest rank's own work. What costs less is not worth another plan, and a wrong estimate often costs nothing:
a rank that nobody waits for."""


def judge_first_plan(baseline: Baseline, expected_lookup_ms: NDArray[np.float64] | None) -> list[Finding]:
    """Ranks that are slow from the first step, the one that costs most first.

    Lookups are held against `expected_lookup_ms` [W] as the others' are (only ratios between ranks matter), where a
    plan told what to expect. The dense part is held against the other ranks', since all do the same in it. A rank costs
    what it has beyond the slowest one were all that stand out as quick as expected; one that costs little is not told.
    """
    offset_ms = baseline.offset_ms
    lookup_growth = np.zeros(len(baseline.ids))
    if expected_lookup_ms is not None:
        promised_ms = _at_measured_level(np.asarray(expected_lookup_ms, dtype=np.float64), baseline.lookup_ms)
        ratio = (baseline.lookup_ms + offset_ms) / (promised_ms + offset_ms)
        lookup_growth = _above_band(np.log(ratio), _estimate_band(len(ratio)))
    dense_growth = _above_band(np.log(baseline.dense_ms + offset_ms), math.log(DENSE_BAND))
    severity_ms = mended_excess_ms(baseline.lookup_ms, lookup_growth, offset_ms)
    severity_ms += mended_excess_ms(baseline.dense_ms, dense_growth, offset_ms)
    growth = np.maximum(lookup_growth, dense_growth)
    is_told = (growth > 0) & (severity_ms >= LEAST_COST * baseline.work_ms.max())
    ranks = sorted(np.flatnonzero(is_told).tolist(), key=lambda rank: -severity_ms[rank])
    return [
        Finding(
            Verdict(baseline.last_step, Cause.SLOW_DEVICE, rank, (), float(severity_ms[rank]), baseline.first_step),
            float(growth[rank]),
        )
        for rank in ranks
    ]


def _at_measured_level(expected_ms: NDArray[np.float64], measured_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """`expected_ms` [W] times the factor that makes its median over the ranks with lookups the measured one.

    A promise of no lookups at all is none: what was measured is then as expected.
    """
    has_lookups = expected_ms > 0
    if not has_lookups.any():
        return measured_ms
    return expected_ms * (np.median(measured_ms[has_lookups]) / np.median(expected_ms[has_lookups]))


def _estimate_band(num_ranks: int) -> float:
    """What the largest of the estimates' errors hardly exceeds, as a logarithm.

    Source: the largest of W normal errors grows as sigma sqrt(2 ln W), from the theory of extreme values.
    """
    return ESTIMATE_ERROR * (math.sqrt(2 * math.log(num_ranks)) + MARGIN)


def _above_band(logarithms: NDArray[np.float64], band: float) -> NDArray[np.float64]:
    """What each rank [W] has beyond the others, 0 within the band."""
    beyond = beyond_others(logarithms[None])[0]
    return np.where(beyond >= band, beyond, 0.0)
