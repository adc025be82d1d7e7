"""Small changes of an assignment, as arrays: granules that change ranks, pieces that change places, other forms."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.search.assignment import Assignment
from planner.search.catalogue import NOTHING, Catalogue, Form

NO_UNIT = -1

MOST_PAIRS = 1 << 20
"""Pairs of pieces that are looked through for swaps; of more, as with thousands of tables on few ranks, a sample."""


class PairMoves(NamedTuple):
    """C changes of up to two units on two ranks each; the second unit is `NO_UNIT` where there is one.

    Attributes:
        units: int64 [C, 2].
        ranks: int64 [C, 2].
        granules: int64 [C, 2 units, 2 ranks], what lies there afterwards.
    """

    units: NDArray[np.int64]
    ranks: NDArray[np.int64]
    granules: NDArray[np.int64]

    def take(self, at: NDArray[np.int64]) -> "PairMoves":
        """The changes at these positions."""
        return PairMoves(self.units[at], self.ranks[at], self.granules[at])


def joined(parts: Sequence[PairMoves]) -> PairMoves:
    """All changes of several lists."""
    return PairMoves(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def shifts(assignment: Assignment, rank: int, targets: NDArray[np.int64]) -> PairMoves:
    """Granules of each free unit on a rank to each target: all (a move, a merge), a half or a quarter (a split)."""
    catalogue = assignment.catalogue
    units = np.flatnonzero(assignment.granules[:, rank] > 0)
    held = assignment.granules[units, rank]
    amounts = np.stack([held, held // 2, held // 4])
    is_part = np.array([False, True, True])[:, None]
    is_legal = (amounts > 0) & (~is_part | catalogue.may_cut[units])
    part, at = np.nonzero(is_legal)
    units, amounts = np.repeat(units[at], len(targets)), np.repeat(amounts[part, at], len(targets))
    to = np.tile(targets, len(at))
    is_allowed = catalogue.may_move[units, to] & (to != rank)
    units, amounts, to = units[is_allowed], amounts[is_allowed], to[is_allowed]
    left, there = assignment.granules[units, rank] - amounts, assignment.granules[units, to] + amounts
    return PairMoves(
        units=np.stack([units, np.full_like(units, NO_UNIT)], axis=1),
        ranks=np.stack([np.full_like(to, rank), to], axis=1),
        granules=np.stack([np.stack([left, there], axis=1), np.zeros((len(to), 2), dtype=np.int64)], axis=1),
    )


def swaps(
    assignment: Assignment, rank: int, targets: NDArray[np.int64], rng: np.random.Generator, most: int
) -> PairMoves:
    """Pieces of free units on a rank against pieces on the targets; of more than `most` a sample."""
    may_move = assignment.catalogue.may_move
    mine = np.flatnonzero(assignment.granules[:, rank] > 0)
    theirs, column = np.nonzero(assignment.granules[:, targets] > 0)
    num_pairs = len(mine) * len(theirs)
    pairs = np.arange(num_pairs) if num_pairs <= MOST_PAIRS else rng.integers(num_pairs, size=MOST_PAIRS)
    which, taken = np.divmod(pairs, max(1, len(theirs)))
    given, unit, to = mine[which], theirs[taken], targets[column[taken]]
    at = np.flatnonzero((to != rank) & (unit != given) & may_move[given, to] & may_move[unit, rank])
    if len(at) > most:
        at = rng.choice(at, most, replace=False)
    given, unit, to = given[at], unit[at], to[at]
    granules, nothing = assignment.granules, np.zeros_like(to)
    return PairMoves(
        units=np.stack([given, unit], axis=1),
        ranks=np.stack([np.full_like(to, rank), to], axis=1),
        granules=np.stack(
            [
                np.stack([nothing, granules[given, to] + granules[given, rank]], axis=1),
                np.stack([granules[unit, rank] + granules[unit, to], nothing], axis=1),
            ],
            axis=1,
        ),
    )


def row_changes(catalogue: Catalogue, assignment: Assignment, moves: PairMoves) -> tuple[NDArray[np.int64], ...]:
    """Rows of the catalogue [C, 2 units, 2 ranks] before and after."""
    is_unit = (moves.units != NO_UNIT)[:, :, None]
    before = np.where(is_unit, assignment.rows[moves.units[:, :, None], moves.ranks[:, None, :]], NOTHING)
    after = np.where(is_unit, catalogue.rows(moves.units[:, :, None], moves.granules), NOTHING)
    return before, after


class FormChange(NamedTuple):
    """A unit's other form; `granules` [W] of a free one."""

    unit: int
    form: int
    granules: NDArray[np.int64]


def form_changes(assignment: Assignment, unit: int, ranks: NDArray[np.int64], num_targets: int) -> list[FormChange]:
    """Every fixed form that a unit does not have, and free ones on the first of `ranks`.

    Args:
        assignment: Where it lies now.
        unit: Which one.
        ranks: All ranks, those with the least to do first.
        num_targets: On how many of these a unit is tried whole.
    """
    catalogue, nothing = assignment.catalogue, np.zeros(assignment.catalogue.world_size, dtype=np.int64)
    now = int(assignment.form[unit])
    found = [FormChange(unit, form, nothing) for form in catalogue.fixed_forms(unit) if form != now]
    allowed = ranks[catalogue.may_move[unit, ranks]]
    total = int(catalogue.num_granules[unit])
    if now != Form.FREE and (catalogue.may_be_whole[unit] or catalogue.may_cut[unit]):
        found += [_free(catalogue, unit, allowed[[at]]) for at in range(min(num_targets, len(allowed)))]
    if catalogue.may_cut[unit]:
        counts = [count for count in (2, 3, 4, 6, 8, 16, 32) if count <= min(total, len(allowed))]
        found += [_free(catalogue, unit, allowed[:count]) for count in counts]
    return found


def _free(catalogue: Catalogue, unit: int, ranks: NDArray[np.int64]) -> FormChange:
    return FormChange(unit, Form.FREE, spread(catalogue, unit, ranks))


def spread(catalogue: Catalogue, unit: int, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Granules [W] of a unit, spread over ranks as evenly as they go."""
    granules = np.zeros(catalogue.world_size, dtype=np.int64)
    size, rest = divmod(int(catalogue.num_granules[unit]), len(ranks))
    granules[ranks] = size
    granules[ranks[:rest]] += 1
    return granules
