"""How often a row is hit when ids fall independently: chances of the bins of a reuse histogram, in numpy alone.

A row of chance p is hit Binomial(n, p) times by n ids. Chances of up to `NUM_EXACT` hits are summed exactly;
beyond them the distribution function comes from the Camp-Paulson approximation, whose error is below 0.001
there. Source: Johnson, Kemp and Kotz 2005, Univariate Discrete Distributions, section 3.6.1.
"""

import numpy as np
from numpy.typing import NDArray

REUSE_EDGES = 2.0 ** np.arange(16)
"""Upper ends of the bins of a reuse histogram but for the last, which has none: (0,1], (1,2], (2,4] ... > 32768.

Source: facebookresearch/dlrm_datasets, `2021/` statistics; see `planner.lookups.NUM_REUSE_BINS`.
"""

NUM_EXACT = 16
"""Hits whose chance is computed one by one; a power of two, so that it ends a bin."""

LEAST_FAR_HITS = 2.0
"""Mean hits from which more than `NUM_EXACT` are looked at: below, their chance is under 1e-10."""

MOST_CHANCE = 1.0 - 1e-12
"""A certain hit is counted as this chance, which keeps logarithms finite."""

CHUNK_ROWS = 16_384
"""Rows of different chance computed at once, which bounds the memory of the arrays."""

_LOG_FACTORIALS = np.cumsum(np.log(np.arange(1.0, NUM_EXACT + 1)))
_EXACT_STARTS = np.concatenate([[0], REUSE_EDGES[REUSE_EDGES < NUM_EXACT]]).astype(np.int64)
_FAR_EDGES = REUSE_EDGES[REUSE_EDGES > NUM_EXACT]


def reuse_bins(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bin [N] of a reuse histogram that each count [N] of 1 or more falls into.

    >>> reuse_bins(np.array([1, 2, 3, 4, 5, 40_000])).tolist()
    [0, 1, 2, 2, 3, 16]
    """
    return np.searchsorted(REUSE_EDGES, counts, side="left")


def hit_chance(chance: NDArray[np.float64], ids: NDArray[np.float64]) -> NDArray[np.float64]:
    """The chance [N] that a row is hit at all: 1 - (1 - chance)^ids, exact for the smallest chances too.

    A mean below one id hits no row more often than on average.
    """
    return np.minimum(-np.expm1(ids * np.log1p(-np.minimum(chance, MOST_CHANCE))), ids * chance)


def bin_chances(chance: NDArray[np.float64], ids: NDArray[np.float64]) -> NDArray[np.float64]:
    """The chances [N, bins] that the hits of a row fall into each bin; they sum to `hit_chance`.

    Args:
        chance: [N], of one id to hit the row, 0 to 1.
        ids: [N], ids that fall, 0 or more; need not be whole, since it may be a mean.
    """
    starts = range(0, len(chance), CHUNK_ROWS)
    parts = [_bin_chances(chance[at : at + CHUNK_ROWS], ids[at : at + CHUNK_ROWS]) for at in starts]
    return np.concatenate(parts) if parts else np.zeros((0, len(REUSE_EDGES) + 1))


def _bin_chances(chance: NDArray[np.float64], ids: NDArray[np.float64]) -> NDArray[np.float64]:
    chance = np.minimum(chance, MOST_CHANCE)
    hit = hit_chance(chance, ids)
    exact = _exact_chances(chance, ids)
    far = np.zeros((len(hit), len(_FAR_EDGES) + 1))
    at = np.flatnonzero(chance * ids > LEAST_FAR_HITS)
    far[at] = _far_chances(chance[at], ids[at], 1 - hit[at] + exact[at].sum(axis=1))
    bins = np.concatenate([np.add.reduceat(exact, _EXACT_STARTS, axis=1), far], axis=1)
    total = bins.sum(axis=1)
    # The two ways to compute meet within their error, and a mean number of ids is not whole: both are evened out here.
    return bins * np.divide(hit, total, out=np.zeros_like(hit), where=total > 0)[:, None]


def _exact_chances(chance: NDArray[np.float64], ids: NDArray[np.float64]) -> NDArray[np.float64]:
    """Chances [N, NUM_EXACT] of 1, 2 ... `NUM_EXACT` hits."""
    hits = np.arange(1.0, NUM_EXACT + 1)
    with np.errstate(divide="ignore"):
        ways = np.cumsum(np.log(np.maximum(ids[:, None] - (hits - 1), 0.0)), axis=1) - _LOG_FACTORIALS
        hit, missed = np.log(chance)[:, None], np.log1p(-chance)[:, None]
    return np.exp(ways + hits * hit + np.maximum(ids[:, None] - hits, 0.0) * missed)


def _far_chances(
    chance: NDArray[np.float64], ids: NDArray[np.float64], near: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Chances [N, bins beyond] of the bins beyond `NUM_EXACT` hits, given the chance [N] of no more than these."""
    up_to = [near, *(_distribution(chance, ids, edge) for edge in _FAR_EDGES), np.ones_like(near)]
    return np.maximum(np.diff(np.stack(up_to, axis=1), axis=1), 0.0)


def _distribution(chance: NDArray[np.float64], ids: NDArray[np.float64], hits: float) -> NDArray[np.float64]:
    """The chance [N] of at most `hits` hits, by Camp and Paulson."""
    left = np.maximum(ids - hits, 1e-9)
    odds = (hits + 1) * (1 - chance) / (chance * left)
    root = np.cbrt(odds)
    spread, other = 1 / (9 * (hits + 1)), 1 / (9 * left)
    deviate = ((1 - spread) * root - 1 + other) / np.sqrt(spread * root**2 + other)
    return np.where(ids > hits, _normal(deviate), 1.0)


def _normal(deviate: NDArray[np.float64]) -> NDArray[np.float64]:
    """The normal distribution function [N], to 1e-7. Source: Abramowitz and Stegun 1964, formula 26.2.17."""
    t = 1 / (1 + 0.2316419 * np.abs(deviate))
    series = 0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429)))
    upper = np.exp(-np.square(deviate) / 2) / np.sqrt(2 * np.pi) * t * series
    return np.where(deviate < 0, upper, 1 - upper)
