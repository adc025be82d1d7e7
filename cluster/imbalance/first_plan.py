"""A plan that is out of balance from its first step: no change will ever tell."""

import numpy as np
from numpy.typing import NDArray

from cluster.imbalance.baseline import Baseline, beyond_others
from cluster.imbalance.diagnosis import Finding
from cluster.imbalance.verdict import Cause, Verdict

BAND = 1.3
"""A rank stands out where it has so many times what was expected of it. Estimates of lookups are wrong by some 10 %,
of two ranks in opposite ways at worst; this leaves as much again."""


def judge_first_plan(baseline: Baseline, expected_lookup_ms: NDArray[np.float64] | None) -> list[Finding]:
    """Ranks that are slow from the first step, the one that costs most first.

    Lookups are held against `expected_lookup_ms` [W] as the others' are (only ratios between ranks matter), where a
    plan told what to expect. The dense part is held against the other ranks', since all do the same in it.
    """
    lookup_growth = np.zeros(len(baseline.ids))
    if expected_lookup_ms is not None:
        offset_ms = baseline.offset_ms
        ratio = (baseline.lookup_ms + offset_ms) / (np.asarray(expected_lookup_ms) + offset_ms)
        lookup_growth = _above_band(np.log(ratio))
    dense_growth = _above_band(np.log(baseline.dense_ms + baseline.offset_ms))
    severity_ms = _cost_ms(baseline.lookup_ms, lookup_growth) + _cost_ms(baseline.dense_ms, dense_growth)
    growth = np.maximum(lookup_growth, dense_growth)
    ranks = sorted(np.flatnonzero(growth).tolist(), key=lambda rank: -severity_ms[rank])
    return [
        Finding(
            Verdict(baseline.last_step, Cause.SLOW_DEVICE, rank, (), float(severity_ms[rank]), baseline.first_step),
            float(growth[rank]),
        )
        for rank in ranks
    ]


def _above_band(logarithms: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each rank [W] has beyond the others, 0 within the band."""
    beyond = beyond_others(logarithms[None])[0]
    return np.where(beyond >= np.log(BAND), beyond, 0.0)


def _cost_ms(times_ms: NDArray[np.float64], growth: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much [W] the slowest rank would be quicker, had one rank not grown so."""
    without_ms = np.tile(times_ms, (len(times_ms), 1))
    np.fill_diagonal(without_ms, times_ms * np.exp(-growth))
    return np.asarray(times_ms.max() - without_ms.max(axis=1))
