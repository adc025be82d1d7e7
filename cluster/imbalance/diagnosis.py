"""Why a channel alarms, since when, and what it costs."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.imbalance.alarm import CALM
from cluster.imbalance.baseline import Baseline, Channels, RelativeSteps, lower_median
from cluster.imbalance.best_of import BEST_OF
from cluster.imbalance.cusum import change_point
from cluster.imbalance.running import SPAN
from cluster.imbalance.verdict import Cause, Verdict

EXPLAINED_BY_IDS = 0.5
"""Lookups that grew are a table's doing where ids explain at least half of their growth (as logarithms). Lookups grow
less than their ids where rows are in a cache, and a slow device leaves its ids as they are, so the middle is far from
both."""

LEAST_IDS_GROWTH = 0.05
"""And only where ids grew by 5 %: batches differ by less, and less would not alarm."""

SLOW_SENDER = 1.5
"""A link is told by a probe where sending takes so many times what it takes the others."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

HotTables = Callable[[int, int], tuple[str, ...]]
"""Of a rank and the step since which it is slow."""


@dataclass(frozen=True)
class Finding:
    """A verdict and how much the channel had grown, as a logarithm."""

    verdict: Verdict
    growth: float


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a diagnosis looks at.

    Attributes:
        baseline: What is usual.
        seen: The last steps, measured by it.
        after_step: What was found before ended then; a change that is looked for came later.
    """

    baseline: Baseline
    seen: RelativeSteps
    after_step: int

    @property
    def channels(self) -> Channels:
        """Where signals stand."""
        return Channels(len(self.baseline.ids))

    def begin(self, channel: int) -> int:
        """The index of the step since which a channel is estimated to be up."""
        first = min(int(np.searchsorted(self.seen.steps, self.after_step, side="right")), len(self.seen.steps) - 1)
        values = (self.seen.growth[:, channel] - self.baseline.centre[channel]) / self.baseline.scale[channel]
        return first + change_point(values[first:], max(float(np.median(values[-SPAN:])), CALM))

    def step(self, index: int) -> int:
        """The step that something began at which is seen from an index on: the best of some steps shows it later."""
        return int(self.seen.steps[max(0, index - BEST_OF + 1)])

    def growth(self, channel: int, begin: int) -> float:
        """By how much (a logarithm) a channel is up since a step."""
        return float(np.median(self.seen.growth[begin:, channel]) - self.baseline.centre[channel])

    def excess_ms(self, times_ms: Floats, rank: int, channel: int, begin: int, is_up: Bools) -> float:
        """By how much times [H, W] of `rank` exceed since a step the slowest one's had no rank grown that is up.

        `channel` is the rank's of these times; `is_up` [W] tells the ranks that alarm. They are mended together: of
        several slow ranks none would gain anything alone.
        """
        of_first = channel - rank
        ranks = slice(of_first, of_first + self.channels.num_ranks)
        growth = np.median(self.seen.growth[begin:, ranks], axis=0) - self.baseline.centre[ranks]
        now_ms = np.median(times_ms[begin:], axis=0)
        return float(mended_excess_ms(now_ms, growth * is_up, self.baseline.offset_ms)[rank])


def mended_excess_ms(times_ms: Floats, growth: Floats, offset_ms: float) -> Floats:
    """What each rank's time [W] has beyond the slowest one were all without their growth [W], a logarithm; at least 0.

    Without growth is what is not above 0. Logarithms were taken of times with `offset_ms` added.

    >>> mended_excess_ms(np.array([8.0, 16.0, 12.0]), np.log([1, 2, 1.5]), 0.0).round(3).tolist()
    [0.0, 8.0, 4.0]
    """
    mended_ms = (times_ms + offset_ms) * np.exp(-np.maximum(growth, 0.0)) - offset_ms
    return np.maximum(times_ms - mended_ms.max(), 0.0)


def diagnose_rank(evidence: Evidence, rank: int, step: int, is_on: Bools, hot_tables: HotTables) -> Finding:
    """Why the work of a rank is up; `is_on` [C] tells which channels alarm."""
    channels, seen = evidence.channels.of_rank(rank), evidence.seen
    lookup, dense, work = channels
    begin = evidence.begin(next(channel for channel in channels if is_on[channel]))
    since_step = evidence.step(begin)
    growth = {channel: evidence.growth(channel, begin) for channel in channels}
    is_up = evidence.channels.any_of_rank(is_on)
    lookup_ms = evidence.excess_ms(seen.lookup_ms, rank, lookup, begin, is_up)
    ids_growth = float(np.median(seen.ids[begin:, rank]))
    if not is_on[dense] and ids_growth >= max(EXPLAINED_BY_IDS * growth[lookup], LEAST_IDS_GROWTH):
        tables = hot_tables(rank, since_step)
        return Finding(Verdict(step, Cause.HOT_TABLE, rank, tables, lookup_ms, since_step), growth[lookup])
    parts_ms = lookup_ms * is_on[lookup] + evidence.excess_ms(seen.dense_ms, rank, dense, begin, is_up) * is_on[dense]
    work_ms = evidence.excess_ms(seen.work_ms, rank, work, begin, is_up) * is_on[work]
    severity_ms = float(max(parts_ms, work_ms))
    return Finding(Verdict(step, Cause.SLOW_DEVICE, rank, (), severity_ms, since_step), max(growth.values()))


def diagnose_fleet(evidence: Evidence, cause: Cause, step: int) -> Finding:
    """How much the transfers (SLOW_LINK) or the work of all ranks (GLOBAL_DRIFT) are up; who, a probe has to tell."""
    seen, channels = evidence.seen, evidence.channels
    is_link = cause is Cause.SLOW_LINK
    channel = channels.transfer if is_link else channels.drift
    begin = evidence.begin(channel)
    growth = evidence.growth(channel, begin)
    times_ms = seen.transfer_ms if is_link else seen.work_ms.max(axis=1)
    now_ms = float(np.median(times_ms[begin:]))
    severity_ms = max(0.0, now_ms * (1 - math.exp(-growth)))
    return Finding(Verdict(step, cause, None, (), severity_ms, evidence.step(begin)), growth)


def find_slow_sender(send_ms: Floats, usual_ms: Floats | None = None) -> int | None:
    """The rank whose sends [W, W] (row = sender, NaN where not probed) take much longer than the others', if one's do.

    A rank's figure is the median over its receivers, so one slow receiver slows no sender. With a probe `usual_ms`
    [W, W] of the healthy links every link counts as a multiple of what it took then: links between nodes are slower
    than those inside, which is nobody's fault. Raises ValueError where the two are of different ranks.
    """
    if usual_ms is None:
        return _slowest_sender(send_ms, np.nanmedian)
    if send_ms.shape != usual_ms.shape:
        raise ValueError(f"probe of links: found {send_ms.shape}, expected {usual_ms.shape} as of the healthy one")
    is_known = np.isfinite(usual_ms) & (usual_ms > 0)
    ratios = np.where(is_known, send_ms, np.nan) / np.where(is_known, usual_ms, 1.0)
    return _slowest_sender(ratios, _lower_nanmedian)


def _slowest_sender(figures: Floats, median: Callable[..., Floats]) -> int | None:
    """The row of `figures` [W, W] whose median is SLOW_SENDER times what the others' lower median is, if there is."""
    ranks = np.flatnonzero(np.isfinite(figures).any(axis=1))
    if len(ranks) < 2:
        return None
    medians = median(figures[ranks], axis=1)
    slowest = int(medians.argmax())
    others = float(lower_median(np.delete(medians, slowest)))
    return int(ranks[slowest]) if medians[slowest] >= SLOW_SENDER * others else None


def _lower_nanmedian(values: Floats, axis: int) -> Floats:
    """The lower median over an axis of what is not NaN: of two receivers the quicker one tells of the sender."""
    return np.asarray(np.nanquantile(values, 0.5, axis=axis, method="lower"))
