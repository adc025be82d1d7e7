"""Streaming sketches of one sparse feature: bounded memory, one pass, mergeable across ranks.

Every sketch is a frozen value: `add` and `merge` give a new one. Merging the sketches of two parts of the data
in any order gives the sketch of the whole: exactly so for `RowSample`, `PoolingCounts` and `ReuseCounts`, within
the stated error for `HeavyHitters`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import reduce

import numpy as np
import numpy.typing as npt

from dlrm.data.hashing import mix
from planner.access import Pooling
from planner.occupancy import REUSE_EDGES, reuse_bins

Ints = npt.NDArray[np.int64]

# 256 KiB a feature; a row that holds more than 1/16,384 of the ids is surely among the heavy hitters.
MOST_HEAVY = 16_384
# 128 KiB a feature; the number of distinct rows is then within 1.1 % (one standard deviation).
MOST_SAMPLED = 8_192
# Lengths up to this one are counted singly.
MOST_LENGTH = 2_047


@dataclass(frozen=True, eq=False)
class HeavyHitters:
    """Counts of the most frequent rows, those of a full summary too small by at most `max_undercount`.

    A row absent from it was seen at most `max_undercount` times, and that is at most the number of ids divided by
    (capacity + 1), in whatever order parts were added and merged.
    Source: Misra and Gries 1982; the merge of Agarwal et al. 2012, Mergeable summaries (PODS), section 3.

    Attributes:
        rows: int64 [K], distinct, ascending.
        counts: int64 [K].
        max_undercount: int64 [], 0 as long as no row had to be dropped.
    """

    rows: Ints
    counts: Ints
    max_undercount: Ints

    @classmethod
    def of(cls, rows: Ints, counts: Ints, max_undercount: int = 0, capacity: int = MOST_HEAVY) -> HeavyHitters:
        """The summary of distinct ascending rows [K] and their counts [K], of at most `capacity` rows."""
        taken = 0
        if len(rows) > capacity:
            place = len(counts) - capacity - 1
            taken = int(np.partition(counts, place)[place])
        is_kept = counts > taken
        return cls(rows[is_kept], counts[is_kept] - taken, np.asarray(max_undercount + taken))

    def merge(self, other: HeavyHitters, capacity: int = MOST_HEAVY) -> HeavyHitters:
        """The summary of both, of at most `capacity` rows."""
        rows, counts = _sum_by_key((self.rows, other.rows), (self.counts, other.counts))
        return HeavyHitters.of(rows, counts, int(self.max_undercount + other.max_undercount), capacity)


@dataclass(frozen=True, eq=False)
class RowSample:
    """A uniform sample of the distinct rows, with the exact count of each: the rows of smallest hash.

    While fewer rows than the capacity k were seen these are all of them. Else the number of distinct rows is
    estimated with a relative standard error of at most 1 / sqrt(k - 2).
    Source: Bar-Yossef et al. 2002; the unbiased estimator of Beyer et al. 2007 (SIGMOD), section 4; counts as in
    the bottom-k sketches of Cohen and Kaplan 2007 (PODC).

    Attributes:
        hashes: uint64 [K], ascending, one to one with rows.
        counts: int64 [K], exact: a row that is in the sample now was in it ever since it was first seen.
        chance: float64 [], of a row to be in the sample: its hash, as a share of all hash values, is below this.
            1 as long as no row had to be dropped.
    """

    hashes: npt.NDArray[np.uint64]
    counts: Ints
    chance: npt.NDArray[np.float64]

    @classmethod
    def of(cls, rows: Ints, counts: Ints, capacity: int = MOST_SAMPLED) -> RowSample:
        """The sample of distinct rows [K] with their counts [K], of at most `capacity` rows."""
        hashes = hash_rows(rows)
        order = np.argsort(hashes)
        return cls._below(hashes[order], counts[order], 1.0, capacity)

    def merge(self, other: RowSample, capacity: int = MOST_SAMPLED) -> RowSample:
        """The sample of both, of at most `capacity` rows; exact, in any order."""
        hashes, counts = _sum_by_key((self.hashes, other.hashes), (self.counts, other.counts))
        return RowSample._below(hashes, counts, float(min(self.chance, other.chance)), capacity)

    @classmethod
    def _below(cls, hashes: npt.NDArray[np.uint64], counts: Ints, chance: float, capacity: int) -> RowSample:
        """The rows of a chance that is at most the given one and leaves at most `capacity` of them."""
        places = hashes / 2.0**64
        if len(places) > capacity:
            chance = min(chance, places[capacity])
        is_kept = places < chance
        return cls(hashes[is_kept], counts[is_kept], np.asarray(chance))

    @property
    def num_distinct(self) -> float:
        """Distinct rows seen, estimated; exact while all of them are in the sample."""
        return len(self.hashes) / float(self.chance)


@dataclass(frozen=True, eq=False)
class PoolingCounts:
    """How many ids samples have: exact mean and largest; quantiles exact up to `MOST_LENGTH`, above it the largest.

    Attributes:
        samples: int64 [MOST_LENGTH + 2], samples with 0, 1, 2 ... ids; the last entry those with more.
        num_ids: int64 [], of all samples.
        largest: int64 [], most ids of a sample.
    """

    samples: Ints
    num_ids: Ints
    largest: Ints

    @classmethod
    def of(cls, lengths: Ints) -> PoolingCounts:
        """The counts of some samples' numbers of ids [B]."""
        samples = np.bincount(np.minimum(lengths, MOST_LENGTH + 1), minlength=MOST_LENGTH + 2)
        return cls(samples, np.asarray(lengths.sum()), np.asarray(lengths.max(initial=0)))

    def merge(self, other: PoolingCounts) -> PoolingCounts:
        """The counts of both."""
        largest = np.maximum(self.largest, other.largest)
        return PoolingCounts(self.samples + other.samples, self.num_ids + other.num_ids, np.asarray(largest))

    def pooling(self) -> Pooling:
        """Mean and quantiles; 0 without samples."""
        up_to, total = np.cumsum(self.samples), int(self.samples.sum())
        places = np.searchsorted(up_to, np.array([0.5, 0.9, 0.99]) * total)
        p50, p90, p99 = (float(place if place <= MOST_LENGTH else self.largest) for place in places)
        return Pooling(float(self.num_ids) / max(total, 1), p50, p90, p99, float(self.largest))


@dataclass(frozen=True, eq=False)
class ReuseCounts:
    """Distinct rows of batches by how often a batch looks them up; exact.

    Attributes:
        num_batches: int64 [].
        rows: int64 [bins], summed over batches; bins as in `planner.lookups.NUM_REUSE_BINS`.
    """

    num_batches: Ints
    rows: Ints

    @classmethod
    def of(cls, counts: Ints) -> ReuseCounts:
        """The counts of one batch, from how often it looks up each of its distinct rows [K]."""
        return cls(np.array(1), np.bincount(reuse_bins(counts), minlength=len(REUSE_EDGES) + 1))

    def merge(self, other: ReuseCounts) -> ReuseCounts:
        """The counts of both."""
        return ReuseCounts(np.asarray(self.num_batches + other.num_batches), self.rows + other.rows)

    @property
    def distinct_rows(self) -> float:
        """Mean distinct rows of a batch."""
        return float(self.rows.sum()) / max(int(self.num_batches), 1)

    def shares(self) -> tuple[float, ...]:
        """Shares of the distinct rows in each bin; all 0 where there are no rows."""
        return tuple((self.rows / max(int(self.rows.sum()), 1)).tolist())


@dataclass(frozen=True, eq=False)
class FeatureSketch:
    """All that is kept of one feature's ids: under half a MiB, however many there were."""

    heavy: HeavyHitters
    sample: RowSample
    pooling: PoolingCounts
    reuse: ReuseCounts

    @classmethod
    def of(cls, ids: Ints, lengths: Ints) -> FeatureSketch:
        """The sketch of one global batch: its ids [V] and their number in each sample [B]."""
        rows, counts = np.unique(ids, return_counts=True)
        return cls(
            HeavyHitters.of(rows, counts), RowSample.of(rows, counts), PoolingCounts.of(lengths), ReuseCounts.of(counts)
        )

    def merge(self, other: FeatureSketch) -> FeatureSketch:
        """The sketch of both parts of the data."""
        return FeatureSketch(*(getattr(self, f.name).merge(getattr(other, f.name)) for f in fields(self)))

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """The sketch as named arrays, to be stored or sent to another rank."""
        return {
            f"{part.name}.{each.name}": np.asarray(getattr(getattr(self, part.name), each.name))
            for part in fields(self)
            for each in fields(getattr(self, part.name))
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> FeatureSketch:
        """What `to_arrays` gave."""
        parts = {"heavy": HeavyHitters, "sample": RowSample, "pooling": PoolingCounts, "reuse": ReuseCounts}
        return cls(
            **{
                name: kind(**{each.name: arrays[f"{name}.{each.name}"] for each in fields(kind)})
                for name, kind in parts.items()
            }
        )


def merge_sketches(parts: Iterable[Mapping[str, npt.NDArray[np.generic]]]) -> FeatureSketch:
    """One sketch of a feature from those of all ranks, one or more, each as `to_arrays` gave it."""
    return reduce(FeatureSketch.merge, map(FeatureSketch.from_arrays, parts))


def hash_rows(rows: Ints) -> npt.NDArray[np.uint64]:
    """Hashes [K] of rows [K], one to one."""
    return mix(rows.astype(np.uint64))


def _sum_by_key(keys: tuple[npt.NDArray[np.generic], ...], counts: tuple[Ints, ...]) -> tuple[npt.NDArray, Ints]:
    """Distinct keys, ascending, and the sums of their counts."""
    every, values = np.concatenate(keys), np.concatenate(counts)
    # Both parts are sorted, which a stable sort makes use of.
    order = np.argsort(every, kind="stable")
    every, values = every[order], values[order]
    starts = np.flatnonzero(np.concatenate([[True], every[1:] != every[:-1]])[: len(every)])
    return every[starts], np.add.reduceat(values, starts) if len(starts) else values
