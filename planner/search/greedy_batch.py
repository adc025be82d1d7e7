"""Greedy placement of many form vectors at once: what a beam over options asks of each of its candidates."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.loads import NUM_TRAFFIC
from planner.memory import capacity_bytes
from planner.search.assignment import Assignment
from planner.search.catalogue import NOTHING, Catalogue, Form
from planner.search.objective import Rates, step_ms


@dataclass(frozen=True, eq=False)
class Forms:
    """B choices of a form for each of U units.

    Attributes:
        form: int64 [B, U], `Form`.
        num_cuts: int64 [B, U], pieces of free units, at most their granules; 1 is whole.
    """

    form: NDArray[np.int64]
    num_cuts: NDArray[np.int64]

    def __len__(self) -> int:
        """B."""
        return len(self.form)

    def take(self, at: NDArray[np.int64]) -> "Forms":
        """The choices at these positions."""
        return Forms(self.form[at], self.num_cuts[at])

    @classmethod
    def of(cls, assignment: Assignment) -> "Forms":
        """The one choice that an assignment has made."""
        return cls(assignment.form[None].copy(), np.maximum((assignment.granules > 0).sum(axis=1), 1)[None])


def joined(parts: Sequence[Forms]) -> Forms:
    """The choices of all parts."""
    return Forms(np.concatenate([part.form for part in parts]), np.concatenate([part.num_cuts for part in parts]))


def first_forms(catalogue: Catalogue) -> Forms:
    """Each unit whole, or in the first form that it may take."""
    is_free = catalogue.may_be_whole | catalogue.may_cut
    form = np.where(is_free, Form.FREE, (catalogue.fixed[:, :, 0] != NOTHING).argmax(axis=1))
    return Forms(form[None], np.ones_like(form)[None])


def uniform_forms(catalogue: Catalogue) -> Forms:
    """All units in one form, as far as they may be: whole, cut as often as they can be, or in one on given ranks.

    Where latencies are what a step is made of, each further type in use costs more than it saves.
    """
    first = first_forms(catalogue)
    most_cuts = np.minimum(catalogue.num_granules, catalogue.may_move.sum(axis=1))
    most_cuts = np.where(catalogue.may_cut & (first.form[0] == Form.FREE), most_cuts, 1)
    found = [first, Forms(first.form, most_cuts[None])]
    for form in range(Form.ROWS, min(catalogue.fixed.shape[1], Form.NODE + 1)):
        may = catalogue.fixed[:, form, 0] != NOTHING
        if may.any():
            found.append(Forms(np.where(may, form, first.form), first.num_cuts))
    return joined(found)


@dataclass(frozen=True, eq=False)
class Placed:
    """B placements.

    Attributes:
        granules: int64 [B, U, W].
        over_bytes: int64 [B], bytes over memory.
        step_ms: float64 [B], the estimated step.
    """

    granules: NDArray[np.int64]
    over_bytes: NDArray[np.int64]
    step_ms: NDArray[np.float64]

    @property
    def order(self) -> NDArray[np.int64]:
        """Positions [B], the best first."""
        return np.lexsort((self.step_ms, self.over_bytes))


def place_forms(catalogue: Catalogue, rates: Rates, forms: Forms) -> Placed:
    """Pieces of free units by descending time, each to the rank that then has the least to do and has room.

    Where no rank has room, the one that is short of the least takes it: such placements score worse, not nothing.
    Source: Graham 1969, Bounds on multiprocessing timing anomalies; fixed forms are in place beforehand.
    """
    placing = _Placing(catalogue, rates, forms)
    for unit, size in _pieces(catalogue, rates, forms):
        placing.put(unit, size)
    phases_ms = catalogue.estimator.phases_ms(catalogue.problem, placing.loads)
    over = np.maximum(-placing.free_bytes, 0).sum(axis=1)
    return Placed(placing.granules, over, step_ms(phases_ms))


def own_ms(
    catalogue: Catalogue, rates: Rates, loads: NDArray[np.float64], ranks: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Milliseconds [...] of lookups and transfers of loads [..., K] on ranks [...], transfers by their rates."""
    lookup_ms = catalogue.estimator.lookup_ms(catalogue.problem, loads, ranks).sum(axis=0)
    return np.asarray(lookup_ms + loads[..., :NUM_TRAFFIC] @ rates.traffic.sum(axis=0))


def placed_assignments(catalogue: Catalogue, rates: Rates, forms: Forms) -> list[Assignment]:
    """The placements of `place_forms` as assignments, in the order of the forms."""
    placed = place_forms(catalogue, rates, forms)
    return [
        Assignment.of_forms(catalogue, forms.form[at].copy(), placed.granules[at].copy()) for at in range(len(forms))
    ]


class _Placing:
    """B placements under way."""

    def __init__(self, catalogue: Catalogue, rates: Rates, forms: Forms) -> None:
        self.catalogue, self.rates = catalogue, rates
        world_size, prices = catalogue.world_size, catalogue.prices
        self.granules = np.zeros((*forms.form.shape, world_size), dtype=np.int64)
        self.loads = np.zeros((len(forms), world_size, prices.loads.shape[1]))
        self.free_bytes = np.repeat(capacity_bytes(catalogue.problem)[None], len(forms), axis=0)
        self.ranks, self.every = np.arange(world_size), np.arange(len(forms))
        for unit in np.flatnonzero((forms.form != Form.FREE).any(axis=0)):
            for form in np.unique(forms.form[:, unit]):
                if form != Form.FREE:
                    at, rows = forms.form[:, unit] == form, catalogue.fixed_rows(int(unit), int(form))
                    self.loads[at] += prices.loads[rows]
                    self.free_bytes[at] -= prices.num_bytes[rows]

    def put(self, unit: NDArray[np.int64], size: NDArray[np.int64]) -> None:
        """Places a piece of `size` granules [B] of a unit [B] in each; a size of 0 is none."""
        rows, prices = self.catalogue.rows(unit, size), self.catalogue.prices
        after = self.loads + prices.loads[rows][:, None]
        times_ms = own_ms(self.catalogue, self.rates, after, self.ranks)
        left = self.free_bytes - prices.num_bytes[rows][:, None]
        is_legal = self.catalogue.may_move[unit] & (self.granules[self.every, unit] == 0)
        key = np.where(left >= 0, times_ms, times_ms.max() - left.astype(np.float64))
        rank = np.where(is_legal, key, np.inf).argmin(axis=1)
        at = np.flatnonzero(size > 0)
        rank = rank[at]
        self.loads[at, rank] = after[at, rank]
        self.free_bytes[at, rank] = left[at, rank]
        self.granules[at, unit[at], rank] = size[at]


def _pieces(catalogue: Catalogue, rates: Rates, forms: Forms) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Units and sizes [B] of the pieces to place, one after the other, the dearest of each placement first."""
    times_ms = own_ms(catalogue, rates, catalogue.prices.loads, np.zeros(len(catalogue.prices.loads), dtype=np.int64))
    listed = []
    for form, num_cuts in zip(forms.form, forms.num_cuts, strict=True):
        units = np.flatnonzero(form == Form.FREE)
        unit = np.repeat(units, num_cuts[units])
        number = np.arange(len(unit)) - np.repeat(np.cumsum(num_cuts[units]) - num_cuts[units], num_cuts[units])
        size, rest = np.divmod(catalogue.num_granules[unit], num_cuts[unit])
        size = size + (number < rest)
        order = np.argsort(-times_ms[catalogue.rows(unit, size)], kind="stable")
        listed.append((unit[order], size[order]))
    most = max(len(unit) for unit, _ in listed)
    pieces = np.zeros((2, most, len(forms)), dtype=np.int64)
    for column, (unit, size) in enumerate(listed):
        pieces[0, : len(unit), column], pieces[1, : len(unit), column] = unit, size
    return list(zip(*pieces, strict=True))
