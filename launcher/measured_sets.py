"""The measured fused sets of profiles as arrays: in canaries, told apart, and compared where measured twice."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.canary import canaries_ms
from planner.lookups import LookupArrays, LookupSet
from planner.profile import DeviceProfile, Profile
from planner.topology import DeviceType

PARTS = ("forward", "backward", "total")
"""What is scored of a set: its two times, and their sum."""


@dataclass(frozen=True, eq=False)
class MeasuredSets:
    """N measurements of fused sets.

    Attributes:
        sets: [N], equal ones where a set was measured more than once.
        times_ms: float64 [N, 2], forward and backward.
        canary_ms: float64 [N], how slow the device was then, by `planner.cost.canary`.
    """

    sets: tuple[LookupSet, ...]
    times_ms: NDArray[np.float64]
    canary_ms: NDArray[np.float64]

    def __len__(self) -> int:
        """Number of measurements, N."""
        return len(self.sets)

    @property
    def lookups(self) -> LookupArrays:
        """The sets as arrays."""
        return LookupArrays.of(self.sets)

    @property
    def times(self) -> NDArray[np.float64]:
        """Forward and backward times [N, 2] in canaries."""
        return self.times_ms / self.canary_ms[:, None]

    @property
    def set_ids(self) -> NDArray[np.int64]:
        """A number [N] for each set, the same for equal ones."""
        known: dict[LookupSet, int] = {}
        return np.array([known.setdefault(each, len(known)) for each in self.sets], dtype=np.int64)

    def take(self, at: NDArray[np.int64]) -> "MeasuredSets":
        """Only the measurements at these positions."""
        return MeasuredSets(tuple(self.sets[index] for index in at), self.times_ms[at], self.canary_ms[at])

    def without(self, sets: Iterable[LookupSet]) -> "MeasuredSets":
        """Only the measurements of other sets than these."""
        unwanted = set(sets)
        return self.take(np.array([i for i, each in enumerate(self.sets) if each not in unwanted], dtype=np.int64))


def collect_sets(devices: Sequence[DeviceProfile]) -> MeasuredSets:
    """All measured sets of some devices, one device after another."""
    measured = [each for device in devices for each in device.lookups]
    return MeasuredSets(
        sets=tuple(each.lookups for each in measured),
        times_ms=np.array([(each.forward.median_ms, each.backward.median_ms) for each in measured]).reshape(-1, 2),
        canary_ms=np.concatenate([canaries_ms(device.lookups) for device in devices]),
    )


def device_types(profile: Profile) -> set[DeviceType]:
    """The types of the devices that a profile measured."""
    return {device.type for device in profile.topology.devices}


def split_sets(sets: MeasuredSets, held_out_share: float, seed: int) -> tuple[MeasuredSets, MeasuredSets]:
    """Two parts at random; all measurements of one set are in the same part."""
    ids = sets.set_ids
    order = np.random.default_rng(seed).permutation(ids.max() + 1)
    held_out = np.isin(ids, order[: round(held_out_share * len(order))])
    return sets.take(np.flatnonzero(~held_out)), sets.take(np.flatnonzero(held_out))


def with_total(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Times [N, 3] of `PARTS`, of forward and backward times [N, 2]."""
    return np.column_stack([times, times.sum(axis=1)])


def noise_floor(sets: MeasuredSets) -> dict[str, float] | None:
    """Mean absolute relative error, by part, when a set's time is predicted by another measurement of it.

    Times are in canaries, as those that models are scored by. Every set that was measured more than once counts
    alike, with all ordered pairs of its measurements. A perfect model errs by less, since only one of the two
    measurements is noise then: about 1 / sqrt(2) of this. None where no set was measured twice.
    """
    ids, times = sets.set_ids, with_total(sets.times)
    errors = [_pair_errors(times[ids == repeated]) for repeated in np.flatnonzero(np.bincount(ids) > 1)]
    return dict(zip(PARTS, np.mean(errors, axis=0).tolist(), strict=True)) if errors else None


def _pair_errors(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean |a / b - 1| over ordered pairs of measurements [M, P], for each part [P]."""
    num_pairs = len(times) * (len(times) - 1)
    return np.asarray(np.abs(times[:, None] / times[None] - 1).sum(axis=(0, 1)) / num_pairs)
