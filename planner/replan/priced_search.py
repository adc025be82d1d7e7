"""Search near the present plan that weighs every change against the bytes that it moves."""

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.loads import NUM_TRAFFIC
from planner.replan.interface import MovePrice
from planner.search.assignment import Assignment
from planner.search.catalogue import Catalogue, Form
from planner.search.local_search import LOG_POWERS
from planner.search.moves import NO_UNIT, FormChange, PairMoves, form_changes, joined, row_changes, shifts, swaps
from planner.search.objective import Rates, Standing

MOST_SOURCES, MOST_TARGETS = 4, 24
"""Ranks with the most to do that are relieved, and those with the least that pieces are offered to."""

MOST_SWAPS = 400
"""Swaps of each source that are looked at; of more a sample."""

MOST_CONFIRMED = 24
"""Changes that look best and are priced exactly."""

MOST_FORM_UNITS, FORM_TARGETS = 12, 2
"""Units of the busiest rank whose other forms are priced, those with most lookups, and ranks that each is tried on."""

FAINT = 0.0005
"""Share of a step that each change must gain besides its bytes: no estimate is exact enough to tell less, and every
table that moves is one more that may turn out otherwise than estimated."""

Floats = NDArray[np.float64]


class _Change(NamedTuple):
    """Changes of units, and what they are worth, in milliseconds over all steps."""

    forms: tuple[FormChange, ...]
    worth_ms: float


@dataclass(frozen=True, eq=False)
class PricedSearch:
    """Descends from the present placement by the change that gains most over the steps that count, less its bytes.

    Attributes:
        catalogue: The forms.
        rates: For a first look.
        table_bytes: float64 [U], of each unit's weights and optimizer state.
        price: Of bytes; the fixed part is paid once, whatever is changed.
        num_steps: Over which a step is paid.
        rng: Samples swaps.
        ends_at: `time.monotonic()` when to stop.
    """

    catalogue: Catalogue
    rates: Rates
    table_bytes: Floats
    price: MovePrice
    num_steps: float
    rng: np.random.Generator
    ends_at: float

    def descend(self, start: Assignment) -> Assignment:
        """Where no change is worth its bytes any more; `start` stays as it is."""
        found = start.copy()
        while time.monotonic() < self.ends_at:
            standing = self._stand(found)
            changes = [each for each in (self._best_pair(found, standing), self._best_form(found, standing)) if each]
            best = max(changes, key=lambda each: each.worth_ms, default=None)
            if best is None or best.worth_ms <= FAINT * standing.score[1] * self.num_steps:
                break
            for form in best.forms:
                found.place(*form)
        found.sum_up()
        return found

    def _best_pair(self, now: Assignment, standing: Standing) -> _Change | None:
        """The best move, split, merge or swap that takes something off one of the busiest ranks."""
        order = np.argsort(-standing.burden(), kind="stable")
        sources, targets = order[:MOST_SOURCES].tolist(), order[::-1][:MOST_TARGETS]
        moves = joined(
            [shifts(now, rank, targets) for rank in sources]
            + [swaps(now, rank, targets, self.rng, MOST_SWAPS) for rank in sources]
        )
        if not len(moves.units):
            return None
        prices, (before, after) = self.catalogue.prices, row_changes(self.catalogue, now, moves)
        added = (prices.loads[after] - prices.loads[before]).sum(axis=1)
        added_bytes = (prices.num_bytes[after] - prices.num_bytes[before]).sum(axis=1)
        bytes_ms = self._pair_bytes_ms(now, moves)
        over, smooth = standing.screen(moves.ranks, added, added_bytes)
        likely = np.lexsort((smooth * self.num_steps + bytes_ms, over))[:MOST_CONFIRMED]
        ranks, every = moves.ranks[likely], np.arange(len(likely))[:, None]
        loads = np.repeat(standing.loads[None], len(likely), axis=0)
        free_bytes = np.repeat(standing.free_bytes[None], len(likely), axis=0)
        loads[every, ranks] += added[likely]
        free_bytes[every, ranks] -= added_bytes[likely]
        worth_ms = self._worth_ms(standing, loads, free_bytes, bytes_ms[likely])
        best = int(worth_ms.argmax())
        return _Change(_forms(now, moves, int(likely[best])), float(worth_ms[best]))

    def _best_form(self, now: Assignment, standing: Standing) -> _Change | None:
        """The best other form of a unit on the busiest rank."""
        least_busy = np.argsort(standing.burden(), kind="stable")
        rows = now.rows[:, least_busy[-1]]
        lookups = self.catalogue.prices.loads[rows, NUM_TRAFFIC:].sum(axis=1)
        units = np.flatnonzero(rows)[np.argsort(-lookups[rows > 0], kind="stable")][:MOST_FORM_UNITS]
        changes = [each for unit in units for each in form_changes(now, int(unit), least_busy, FORM_TARGETS)]
        if not changes:
            return None
        prices, old = self.catalogue.prices, now.rows[[change.unit for change in changes]]
        new = np.stack([self.catalogue.form_rows(*change) for change in changes])
        loads = standing.loads + prices.loads[new] - prices.loads[old]
        free_bytes = standing.free_bytes - prices.num_bytes[new] + prices.num_bytes[old]
        worth_ms = self._worth_ms(standing, loads, free_bytes, self._form_bytes_ms(now, changes, new))
        best = int(worth_ms.argmax())
        return _Change((changes[best],), float(worth_ms[best]))

    def _worth_ms(self, standing: Standing, loads: Floats, free_bytes: NDArray[np.int64], bytes_ms: Floats) -> Floats:
        """What changes [C] to loads [C, W, K] and free bytes [C, W] gain less their price; none if memory is short."""
        over, smooth = standing.confirm(loads, free_bytes)
        now_over, now_ms = standing.score
        return np.where(over <= now_over, (now_ms - smooth) * self.num_steps - bytes_ms, -np.inf)

    def _pair_bytes_ms(self, now: Assignment, moves: PairMoves) -> Floats:
        """The time [C] that the granules take which ranks gain."""
        held = now.granules[moves.units[:, :, None], moves.ranks[:, None, :]]
        gained = np.where((moves.units == NO_UNIT)[:, :, None], 0, np.maximum(moves.granules - held, 0)).sum(axis=2)
        return self._bytes_ms((gained * self.table_bytes[moves.units] / self._granules[moves.units]).sum(axis=1))

    def _form_bytes_ms(self, now: Assignment, changes: list[FormChange], new: NDArray[np.int64]) -> Floats:
        """The time [C] that other forms take to be reached, new rows [C, W]; ranks that hold some of a unit keep it.

        Every rank needs an equal part of a table that is cut by rows, all of one that is copied, its granules else.
        """
        units = [change.unit for change in changes]
        is_copied = np.array([change.form == Form.COPIES for change in changes])
        is_free = np.array([change.form == Form.FREE for change in changes])
        columns = np.stack([change.granules for change in changes]) / self._granules[units][:, None]
        parts = (new > 0) / np.where(is_copied, 1, (new > 0).sum(axis=1))[:, None]
        needed = np.where(is_free[:, None], columns, parts)
        held = now.granules[units] / self._granules[units][:, None]
        return self._bytes_ms(np.maximum(needed - held, 0).sum(axis=1) * self.table_bytes[units])

    def _bytes_ms(self, moved_bytes: Floats) -> Floats:
        return self.price.pause_ms(moved_bytes) - self.price.fixed_ms

    @property
    def _granules(self) -> NDArray[np.int64]:
        return self.catalogue.num_granules

    def _stand(self, now: Assignment) -> Standing:
        problem, estimator = self.catalogue.problem, self.catalogue.estimator
        return Standing.at(problem, estimator, self.rates, now.loads, now.free_bytes, LOG_POWERS[-1])


def _forms(now: Assignment, moves: PairMoves, at: int) -> tuple[FormChange, ...]:
    """The units that a change concerns, with their granules afterwards."""
    forms = []
    for unit, granules in zip(moves.units[at].tolist(), moves.granules[at], strict=True):
        if unit != NO_UNIT:
            changed = now.granules[unit].copy()
            changed[moves.ranks[at]] = granules
            forms.append(FormChange(unit, Form.FREE, changed))
    return tuple(forms)
