"""What is usual: every rank's own work and the transfers, learned from a quiet stretch, and steps measured by it.

Drift of the whole fleet is no imbalance. So a rank's work is taken relative to its own baseline, as a logarithm, less
what the other ranks have in common at that step: their lower median. With two ranks that is the other one.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cluster.imbalance.best_of import BEST_OF, BestSteps
from cluster.imbalance.shesd import MAD_TO_SIGMA

Floats = NDArray[np.float64]

LEAST_SCALE = 0.06
"""Noise of a single step, relative, is taken to be no less. Timings of device clocks are quantised and bursty, and
ranks' levels wander against each other by some percent; on two shared CPU cores the scale is 0.06 to 0.09."""

LEAST_MIXED_SCALE = 0.1
"""The same of transfers, whose level wanders by 0.1 over some hundred steps on gloo, and of all work of a rank, whose
parts may change unequally on a whole fleet, by more where a rank has more of the one that does."""

OFFSET_SHARE = 0.02
"""Of a step's mean work, added to every time before its logarithm: a rank that looks up next to nothing may do so in
twice the time."""


@dataclass(frozen=True)
class Channels:
    """Where a signal stands among the C = 3 W + 2 channels that detectors see.

    Lookups of each rank, the dense part of each, all work of each, then transfers and the drift of the whole fleet.
    """

    num_ranks: int

    @property
    def count(self) -> int:
        """C."""
        return 3 * self.num_ranks + 2

    @property
    def transfer(self) -> int:
        """Of the transfers."""
        return 3 * self.num_ranks

    @property
    def drift(self) -> int:
        """Of the fleet's drift."""
        return 3 * self.num_ranks + 1

    def of_rank(self, rank: int) -> tuple[int, int, int]:
        """(lookups, dense part, all work)."""
        return rank, rank + self.num_ranks, rank + 2 * self.num_ranks

    def any_of_rank(self, is_on: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Of which ranks [W] any channel of work is on in `is_on` [C]."""
        return np.asarray(is_on[: self.transfer].reshape(3, self.num_ranks).any(axis=0))


@dataclass(frozen=True, eq=False)
class RelativeSteps:
    """S steps measured by a baseline.

    Attributes:
        steps: int64 [S].
        growth: [S, C], logarithm of each channel over its baseline, less what others have in common.
        ids: [S, W], the same of the ids that a rank looked up.
        lookup_ms: [S, W], in milliseconds.
        dense_ms: [S, W].
        work_ms: [S, W].
        transfer_ms: [S], of all collectives, at the baseline's bytes.
    """

    steps: NDArray[np.int64]
    growth: Floats
    ids: Floats
    lookup_ms: Floats
    dense_ms: Floats
    work_ms: Floats
    transfer_ms: Floats


@dataclass(frozen=True, eq=False)
class Baseline:
    """Medians of a quiet stretch.

    Attributes:
        first_step: Of the stretch.
        last_step: Of the stretch.
        lookup_ms: [W].
        dense_ms: [W].
        work_ms: [W].
        ids: [W].
        bytes: [X], of all ranks together.
        transfer_ms: Of all collectives of a step.
        offset_ms: Added to every time before its logarithm.
        centre: [C], median of the growth that is left.
        scale: [C], its noise in a single step: 1.4826 MAD of the best of some steps, times the square root of their
            number, since what follows takes the values of overlapping stretches as independent.
    """

    first_step: int
    last_step: int
    lookup_ms: Floats
    dense_ms: Floats
    work_ms: Floats
    ids: Floats
    bytes: Floats
    transfer_ms: float
    offset_ms: float
    centre: Floats
    scale: Floats

    def measure(self, signals: BestSteps) -> RelativeSteps:
        """Steps measured by this baseline."""
        transfer_ms = _transfer_ms(signals, self.bytes)
        work = self._log_ratio(signals.work_ms, self.work_ms)
        drift = lower_median(work)
        # A slow fleet exchanges slowly too. A fast one need not exchange faster.
        transfer = self._log_ratio(transfer_ms, self.transfer_ms) - np.maximum(drift, 0)
        growth = np.column_stack(
            (
                beyond_others(self._log_ratio(signals.lookup_ms, self.lookup_ms)),
                beyond_others(self._log_ratio(signals.dense_ms, self.dense_ms)),
                beyond_others(work),
                transfer,
                drift,
            )
        )
        ids = beyond_others(np.log1p(signals.ids) - np.log1p(self.ids))
        return RelativeSteps(
            signals.steps, growth, ids, signals.lookup_ms, signals.dense_ms, signals.work_ms, transfer_ms
        )

    def standardize(self, growth: Floats) -> Floats:
        """z-scores [S, C] of single steps."""
        return (growth - self.centre) / self.scale

    def _log_ratio(self, times_ms: Floats, usual_ms: Floats | float) -> Floats:
        return np.log((times_ms + self.offset_ms) / (usual_ms + self.offset_ms))


def learn_baseline(signals: BestSteps) -> Baseline:
    """The baseline of a stretch of steps of two or more ranks."""
    channels = Channels(signals.ids.shape[1])
    usual_bytes = np.median(signals.bytes, axis=0)
    rough = Baseline(
        first_step=int(signals.steps[0]),
        last_step=int(signals.steps[-1]),
        lookup_ms=np.median(signals.lookup_ms, axis=0),
        dense_ms=np.median(signals.dense_ms, axis=0),
        work_ms=np.median(signals.work_ms, axis=0),
        ids=np.median(signals.ids, axis=0),
        bytes=usual_bytes,
        transfer_ms=float(np.median(_transfer_ms(signals, usual_bytes))),
        offset_ms=OFFSET_SHARE * float(np.median(signals.work_ms.mean(axis=1))),
        centre=np.zeros(channels.count),
        scale=np.ones(channels.count),
    )
    growth = rough.measure(signals).growth
    centre = np.median(growth, axis=0)
    scale = math.sqrt(BEST_OF) * MAD_TO_SIGMA * np.median(np.abs(growth - centre), axis=0)
    # Ranks do the same kind of work: one that seems much quieter than most was lucky.
    of_ranks = scale[: channels.transfer].reshape(3, channels.num_ranks)
    np.maximum(of_ranks, np.median(of_ranks, axis=1, keepdims=True), out=of_ranks)
    least = np.full(channels.count, LEAST_SCALE)
    least[2 * channels.num_ranks :] = LEAST_MIXED_SCALE
    return replace(rough, centre=centre, scale=np.maximum(scale, least))


def lower_median(values: Floats) -> Floats:
    """The lower median over the last axis: of two the lower."""
    middle = (values.shape[-1] - 1) // 2
    return np.asarray(np.partition(values, middle, axis=-1)[..., middle])


def beyond_others(values: Floats) -> Floats:
    """`values` [S, W] less the lower median of the other ranks' at the same step; two or more ranks.

    >>> beyond_others(np.array([[1.0, 4.0, 2.0]])).tolist()
    [[-1.0, 3.0, 1.0]]
    """
    middle = (values.shape[1] - 2) // 2
    ordered = np.partition(values, (middle, middle + 1), axis=1)
    at, above = ordered[:, middle, None], ordered[:, middle + 1, None]
    # Without a rank at or below the middle, the next one is in its place.
    return values - np.where(values <= at, above, at)


def _transfer_ms(signals: BestSteps, usual_bytes: Floats) -> Floats:
    """Transfers [S] of a step. One of more bytes than usual counts as its time at the usual ones.

    One of fewer bytes counts as it is: most of it is latency where bytes are few.
    """
    ratio = signals.bytes / np.maximum(usual_bytes, 1)
    return np.asarray((signals.transfer_ms / np.maximum(ratio, 1)).sum(axis=1))
