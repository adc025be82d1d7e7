"""The way from the present plan to a better one: which of its changes are worth the bytes that they move.

A search that forgets the present plan changes far more than it has to. Of the units that differ those are taken that
make `step x steps that remain + price of the bytes that move` the least:

- backward: all are changed; those that gain least per byte are put back, one after another, and where that sum is
  least the next round begins;
- forward: none is changed; the one that is worth most is, and so on.

Backward finds sets that help only together, such as swaps; forward finds the one table that matters among hundreds. All
tries of a round are priced in batches, by loads that are added. What does not fit into memory is no choice: not
afterwards, and not while old and new shards of what changes exist side by side.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.replan.interface import MovePrice
from planner.replan.priced_search import FAINT
from planner.search.assignment import Assignment
from planner.search.objective import Standing, smooth_ms, step_ms

RANKS_AT_A_TIME = 1 << 14
"""Ranks that are priced in one batch: tens of megabytes."""

LOG_POWER = 7
"""Of the smooth step that puts changes in an order: the step itself is seldom moved by a single one."""

PATIENCE = 8
"""Changes in a row that may be added before their sum is the least again: a rank that is relieved makes way for the
next, and several phases have to be relieved together."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Kept = NDArray[np.bool_]


class _Burden(NamedTuple):
    """What ranks carry, [..., W, K] and [..., W]: loads, bytes left, and bytes left while a migration goes on."""

    loads: Floats
    free_bytes: Ints
    room_bytes: Ints

    @classmethod
    def of(cls, parts: Iterable[NDArray[Any]]) -> "_Burden":
        return cls(*parts)

    def plus(self, other: "_Burden") -> "_Burden":
        return _Burden.of(left + right for left, right in zip(self, other, strict=True))

    def minus(self, other: "_Burden") -> "_Burden":
        return _Burden.of(left - right for left, right in zip(self, other, strict=True))

    def running(self) -> "_Burden":
        """Sums over the first axis, so far."""
        return _Burden.of(each.cumsum(axis=0) for each in self)

    def total(self) -> "_Burden":
        """The sum over the first axis."""
        return _Burden.of(each.sum(axis=0) for each in self)


@dataclass(frozen=True, eq=False)
class Trail:
    """All units that differ between two placements.

    Attributes:
        standing: Of the present placement.
        start: The present placement.
        goal: The other one.
        units: int64 [N], those that differ.
        moved_bytes: int64 [N], what moves for each.
        price: Of bytes.
        num_steps: Over which a step is paid.
    """

    standing: Standing
    start: Assignment
    goal: Assignment
    units: Ints
    moved_bytes: Ints
    price: MovePrice
    num_steps: float

    def best(self, ends_at: float) -> tuple[float, Kept]:
        """The least sum found, in ms, and which units [N] it changes; none where that is best."""
        return min(self._backward(ends_at), self._forward(ends_at), key=lambda each: each[0])

    @cached_property
    def stay_ms(self) -> float:
        """The sum where nothing changes."""
        return float(step_ms(self.standing.phases_ms)) * self.num_steps

    @property
    def _faint_ms(self) -> float:
        return FAINT * self.stay_ms

    def _backward(self, ends_at: float) -> tuple[float, Kept]:
        kept, value_ms = np.ones(len(self.units), dtype=bool), np.inf
        while kept.any():
            order = self._least_missed(kept)
            sums_ms = self._sums_without(kept, order)
            # Of equals the one with most put back.
            num_back = len(sums_ms) - 1 - int(sums_ms[::-1].argmin())
            value_ms = float(sums_ms[num_back])
            kept[order[:num_back]] = False
            if not num_back or time.monotonic() >= ends_at:
                break
        return value_ms, kept

    def _forward(self, ends_at: float) -> tuple[float, Kept]:
        kept = np.zeros(len(self.units), dtype=bool)
        best_ms, best, vain = self.stay_ms, kept.copy(), 0
        while not kept.all() and vain < PATIENCE and time.monotonic() < ends_at:
            at, value_ms = self._next(kept)
            kept[at] = True
            vain += 1
            if value_ms < best_ms:
                best_ms, best, vain = value_ms, kept.copy(), 0
        return best_ms, best

    def _next(self, kept: Kept) -> tuple[int, float]:
        """The change that is worth most on top of those that are kept, by the smooth step, and the sum with it."""
        at, now = np.flatnonzero(~kept), self._burden(kept)
        tries = [self._sums_ms(now.plus(change)) for change in self._changes(at)]
        exact_ms, smooth = (np.concatenate(each) for each in zip(*tries, strict=True))
        price_ms = self.price.pause_ms(self.moved_bytes[kept].sum() + self.moved_bytes[at])
        price_ms += (kept.sum() + 1) * self._faint_ms
        best = int((smooth + price_ms).argmin())
        return int(at[best]), float(exact_ms[best] + price_ms[best])

    def _least_missed(self, kept: Kept) -> Ints:
        """The changes that are kept, those first that gain least for the time that their bytes take to move."""
        at, now = np.flatnonzero(kept), self._burden(kept)
        without = np.concatenate([self._smooth_ms(now.minus(each)) for each in self._changes(at)])
        gain_ms = without - self._smooth_ms(_Burden.of(each[None] for each in now))
        saved_ms = self.price.pause_ms(self.moved_bytes[at]) - self.price.fixed_ms + self._faint_ms
        return at[np.argsort(gain_ms / saved_ms, kind="stable")]

    def _sums_without(self, kept: Kept, order: Ints) -> Floats:
        """The sums [1 + len(order)] with none, one, two ... of the changes in this order put back."""
        now = self._burden(kept)
        sums = [self._sums_ms(_Burden.of(each[None] for each in now))[0]]
        for change in self._changes(order):
            sums.append(self._sums_ms(now.minus(change.running()))[0])
            now = now.minus(change.total())
        moved = self.moved_bytes[kept].sum() - np.concatenate([[0], self.moved_bytes[order].cumsum()])
        num_left = kept.sum() - np.arange(len(order) + 1)
        price_ms = self.price.pause_ms(moved) + num_left * self._faint_ms
        return np.concatenate(sums) + np.where(num_left > 0, price_ms, 0.0)

    def _sums_ms(self, burden: _Burden) -> tuple[Floats, Floats]:
        """The sums [C] without the price, exact and smooth; infinite for what does not fit."""
        # What does not fit today, by ids that were not foreseen, is no reason against a move that leaves it as it is.
        least = np.minimum(self.start.free_bytes, 0)
        fits = ((burden.free_bytes >= least) & (burden.room_bytes >= least)).all(axis=-1)
        phases_ms = self.standing.phases_of(burden.loads)
        steps = step_ms(phases_ms), smooth_ms(phases_ms, LOG_POWER)
        exact_ms, smooth = (np.where(fits, each * self.num_steps, np.inf) for each in steps)
        return exact_ms, smooth

    def _smooth_ms(self, burden: _Burden) -> Floats:
        """Smooth steps [C] times their number, whether it fits or not."""
        return smooth_ms(self.standing.phases_of(burden.loads), LOG_POWER) * self.num_steps

    def _burden(self, kept: Kept) -> _Burden:
        """What ranks carry with these changes."""
        burden = _Burden(self.start.loads, self.start.free_bytes, self.start.free_bytes)
        for change in self._changes(np.flatnonzero(kept)):
            burden = burden.plus(change.total())
        return burden

    def _changes(self, at: Ints) -> Iterator[_Burden]:
        """What each of these changes [C] adds, some at a time."""
        prices = self.start.catalogue.prices
        size = max(1, RANKS_AT_A_TIME // self.start.rows.shape[1])
        for first in range(0, len(at), size):
            units = self.units[at[first : first + size]]
            old, new = self.start.rows[units], self.goal.rows[units]
            new_bytes = prices.num_bytes[new]
            yield _Burden(prices.loads[new] - prices.loads[old], prices.num_bytes[old] - new_bytes, -new_bytes)
