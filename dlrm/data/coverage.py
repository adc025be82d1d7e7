"""From what was counted in a sample to how hot rows are: the coverage curve of a feature.

Counts of a sample exaggerate differences: of a million equally hot rows, each looked up once on average, a third
is never seen and a few are seen six times. Frequent rows are taken as counted. For rare ones the distribution of
their rates is estimated, so that it explains how many rows were seen 0, 1, 2 ... times.
Source: the nonparametric maximum likelihood estimate of a Poisson mixture by expectation maximisation, Simar 1976
(Annals of Statistics 4), on a grid of rates; the unseen rows as in Efron and Thisted 1976 (Biometrika 63).
"""

from collections.abc import Sequence
from math import lgamma

import numpy as np
import numpy.typing as npt

from dlrm.data.sketches import FeatureSketch, hash_rows
from planner.access import COVERAGE_ROWS

# Rows counted up to so often are rare: above it a count is within 25 % of the rate (one standard deviation).
MOST_RARE = 16
# Rates of rare rows, in looks a sample; 0 for rows that nobody asks for.
RATES = np.concatenate([[0.0], 2.0 ** np.arange(-5, 4.75, 0.5)])
# After these many steps distinct rows at half and at twice the sample's size moved by less than 0.1 % a hundred steps.
NUM_STEPS = 300

# Lookups of the sample that the end of a curve may leave out.
UNTOLD_LOOKUPS = 0.5

Floats = npt.NDArray[np.float64]


def estimate_coverage(sketches: Sequence[FeatureSketch], num_rows: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Rows in use [F], and the share of the lookups that fall on the `COVERAGE_ROWS` hottest rows [F, C].

    Args:
        sketches: of F features.
        num_rows: int64 [F], rows of their tables.
    """
    counted = [_count_rows(sketch) for sketch in sketches]
    rare = np.stack([_rare_rows(*rows, total) for rows, total in zip(counted, num_rows, strict=True)])
    curves = [
        _curve(counts[counts > MOST_RARE], weights[counts > MOST_RARE], rare_rows, int(total))
        for (counts, weights), rare_rows, total in zip(counted, _fit_rates(rare), num_rows, strict=True)
    ]
    return np.array([used for used, _ in curves]), np.stack([shares for _, shares in curves])


def _count_rows(sketch: FeatureSketch) -> tuple[Floats, Floats]:
    """How often rows were looked up and how many rows stand for each such count, both [K].

    The hottest rows come from the heavy hitters, as far as their undercount is half of a count at the most; all
    others from the sample of rows, each of which stands for 1 / chance rows.
    """
    heavy, sample = sketch.heavy, sketch.sample
    is_sure = heavy.counts >= 2 * heavy.max_undercount
    is_other = ~np.isin(sample.hashes, hash_rows(heavy.rows[is_sure]))
    hottest = heavy.counts[is_sure] + heavy.max_undercount
    counts = np.concatenate([hottest, sample.counts[is_other]]).astype(np.float64)
    weights = np.concatenate([np.ones(len(hottest)), np.full(is_other.sum(), 1 / sample.chance)])
    return counts, weights


def _rare_rows(counts: Floats, weights: Floats, num_rows: int) -> Floats:
    """Rows seen 0, 1 ... `MOST_RARE` times, [MOST_RARE + 1]."""
    is_rare = counts <= MOST_RARE
    rows = np.bincount(counts[is_rare].astype(np.int64), weights[is_rare], minlength=MOST_RARE + 1).astype(np.float64)
    rows[0] = max(num_rows - weights.sum(), 0.0)
    return rows


def _fit_rates(rare: Floats) -> Floats:
    """Rows of each of the `RATES`, [F, J], that explain rows seen 0, 1 ... times, [F, MOST_RARE + 1]."""
    seen = np.arange(MOST_RARE + 1)
    factorials = np.array([lgamma(count + 1) for count in seen])
    with np.errstate(divide="ignore", invalid="ignore"):
        log_rates = np.where(seen[:, None] > 0, seen[:, None] * np.log(RATES), 0.0)
    chances = np.exp(log_rates - RATES - factorials[:, None])
    # Rows seen more often are not among the rare ones: the chances are those of a row that was not.
    chances /= chances.sum(axis=0)
    rows = np.repeat(rare.sum(axis=1, keepdims=True) / len(RATES), len(RATES), axis=1)
    for _ in range(NUM_STEPS):
        expected = rows @ chances.T
        rows *= np.divide(rare, expected, out=np.zeros_like(rare), where=expected > 0) @ chances
    return rows


def _curve(counts: Floats, weights: Floats, rare_rows: Floats, num_rows: int) -> tuple[float, Floats]:
    """Rows in use, and the curve [C], of so many frequent rows of each count and so many rare ones of each of `RATES`.

    The curve ends where less than half a lookup of the sample is left: the fit leaves traces that nothing tells of.
    """
    rates, rows = np.concatenate([counts, RATES]), np.concatenate([weights, rare_rows])
    order = np.argsort(-rates)
    hottest = np.concatenate([[0.0], np.cumsum(rows[order])])
    lookups = np.concatenate([[0.0], np.cumsum((rates * rows)[order])])
    if lookups[-1] <= UNTOLD_LOOKUPS:
        return float(num_rows), np.minimum(COVERAGE_ROWS / num_rows, 1.0)
    told = lookups[-1] - UNTOLD_LOOKUPS
    # The estimate of the distinct rows may exceed the rows there are: the curve ends with the table at the latest.
    used = float(np.clip(np.interp(told, lookups, hottest), 1.0, num_rows))
    shares = np.minimum(np.interp(COVERAGE_ROWS, hottest, lookups) / told, 1.0)
    return used, np.where(used <= COVERAGE_ROWS, 1.0, shares)
