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

HotTables = Callable[[int, int], tuple[str, ...]]


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

    def excess_ms(self, times_ms: NDArray[np.float64], rank: int, growth: float, begin: int) -> float:
        """By how much [H, W] of the slowest rank exceeds since a step what it were had `rank` not grown so."""
        now_ms = np.median(times_ms[begin:], axis=0)
        without_ms = now_ms.copy()
        offset_ms = self.baseline.offset_ms
        without_ms[rank] = (now_ms[rank] + offset_ms) * math.exp(-max(growth, 0.0)) - offset_ms
        return float(now_ms.max() - without_ms.max())


def diagnose_rank(evidence: Evidence, rank: int, step: int, is_on: NDArray[np.bool_], hot_tables: HotTables) -> Finding:
    """Why the work of a rank is up; `is_on` [C] tells which channels alarm."""
    channels, seen = evidence.channels.of_rank(rank), evidence.seen
    lookup, dense, work = channels
    begin = evidence.begin(next(channel for channel in channels if is_on[channel]))
    since_step = evidence.step(begin)
    growth = {channel: evidence.growth(channel, begin) for channel in channels}
    lookup_ms = evidence.excess_ms(seen.lookup_ms, rank, growth[lookup], begin)
    ids_growth = float(np.median(seen.ids[begin:, rank]))
    if not is_on[dense] and ids_growth >= max(EXPLAINED_BY_IDS * growth[lookup], LEAST_IDS_GROWTH):
        tables = hot_tables(rank, since_step + SPAN)
        return Finding(Verdict(step, Cause.HOT_TABLE, rank, tables, lookup_ms, since_step), growth[lookup])
    parts_ms = lookup_ms * is_on[lookup] + evidence.excess_ms(seen.dense_ms, rank, growth[dense], begin) * is_on[dense]
    work_ms = evidence.excess_ms(seen.work_ms, rank, growth[work], begin) * is_on[work]
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


def find_slow_sender(send_ms: NDArray[np.float64]) -> int | None:
    """The rank whose sends [W, W] (row = sender, NaN where not probed) take much longer than the others', if one's do.

    A rank's figure is the median over its receivers, so one slow receiver slows no sender.
    """
    is_probed = np.isfinite(send_ms).any(axis=1)
    if is_probed.sum() < 2:
        return None
    ranks = np.flatnonzero(is_probed)
    medians_ms = np.nanmedian(send_ms[ranks], axis=1)
    slowest = int(medians_ms.argmax())
    others_ms = float(lower_median(np.delete(medians_ms, slowest)))
    return int(ranks[slowest]) if medians_ms[slowest] >= SLOW_SENDER * others_ms else None
