"""The best single change of a plan: one unit of tables moved, split, merged or given another form, priced exactly.

    plan ──▶ shifts of granules between two ranks ──▶ first look ──▶ exact step of the likeliest ──┐
      └────▶ other forms of a unit, on all its ranks ──────────────▶ exact step ──────────────────┴──▶ the best

On small problems every change is priced exactly. On large ones the limits below keep it to seconds: exact are the
shifts that look best, shifts go to the ranks with the least to do, and forms are tried of units on the busiest ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.check import check
from planner.cost.estimator import AdditiveEstimator
from planner.memory import shard_bytes
from planner.plan import ShardingPlan, TablePlacement
from planner.problem import PlanningProblem
from planner.search.assignment import Assignment
from planner.search.catalogue import Catalogue, Form, build_catalogue
from planner.search.local_search import LOG_POWERS
from planner.search.move_text import describe_change
from planner.search.moves import FormChange, PairMoves, form_changes, joined, row_changes, shifts, spread
from planner.search.objective import Standing, feel_rates, step_ms
from planner.search.placement import build_units
from planner.sharding import ShardingType
from planner.shards import plan_shards

LEAST_GAIN = 1e-4
"""Relative gain below which a change is not worth telling: no estimate is that exact."""

MOST_SCREENED = 1_000_000
"""Shifts that get a first look: all of 1,000 tables on 128 ranks."""

AMOUNTS = 3
"""Kinds of shifts of a piece to a rank: all of it, a half, a quarter."""

MOST_CONFIRMED = 4096
"""Shifts that are priced exactly, those that look best."""

MOST_FORM_PRICES = 1_000_000
"""Ranks that are priced for changes of form, all changes together."""

FORM_TARGETS = 16
"""Ranks on which a unit that was cut by rows or copied is tried whole, those with the least to do."""

RANKS_AT_A_TIME = 1 << 16
"""Ranks that are priced in one batch: megabytes, not gigabytes."""


@dataclass(frozen=True)
class Move:
    """One change of a plan.

    Attributes:
        tables: The tables that change, more than one only where they are kept together.
        change: What changes, to be read behind the tables' names: `from rank 1 to rank 0`.
        step_ms: Estimated step afterwards.
        gain_ms: How much shorter than before, > 0.
        plan: The plan afterwards, checked.
    """

    tables: tuple[str, ...]
    change: str
    step_ms: float
    gain_ms: float
    plan: ShardingPlan


def best_move(problem: PlanningProblem, plan: ShardingPlan, estimator: AdditiveEstimator) -> Move | None:
    """The single change that shortens a legal plan's step most and keeps memory; None where none found helps."""
    board = _Board.of_plan(problem, plan, estimator)
    found = [*_best_shift(board), *_best_form(board)]
    if not found:
        return None
    change = min(found, key=lambda each: each.step_ms).change
    now_ms = estimator.estimate(problem, plan).step_ms
    after = board.after(plan, change)
    then_ms = estimator.estimate(problem, after).step_ms
    if then_ms >= now_ms * (1 - LEAST_GAIN):
        return None
    check(after, problem)
    names = board.catalogue.units[change.unit].names
    placed = [{each.name: each for each in one.tables}[names[0]] for one in (plan, after)]
    return Move(names, describe_change(*placed), then_ms, now_ms - then_ms, after)


class _Priced(NamedTuple):
    """A change and the estimated step after it."""

    change: FormChange
    step_ms: float


class _Excess(NamedTuple):
    """What a unit takes [W, K], [W] beyond its rows of the catalogue, which knows one shard of a table a rank."""

    loads: NDArray[np.float64]
    num_bytes: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Board:
    """A plan as the searches see it, with what it costs; `excess` of units that the catalogue would cut otherwise."""

    catalogue: Catalogue
    assignment: Assignment
    standing: Standing
    excess: dict[int, _Excess]

    @classmethod
    def of_plan(cls, problem: PlanningProblem, plan: ShardingPlan, estimator: AdditiveEstimator) -> "_Board":
        """The board of a legal plan."""
        catalogue = build_catalogue(problem, estimator, build_units(problem))
        assignment = Assignment.of_plan(catalogue, plan)
        excess = dict(_find_excess(assignment, plan))
        loads, free_bytes = assignment.loads.copy(), assignment.free_bytes.copy()
        for unit in excess.values():
            loads += unit.loads
            free_bytes -= unit.num_bytes
        rates = feel_rates(problem, estimator, loads)
        standing = Standing.at(problem, estimator, rates, loads, free_bytes, LOG_POWERS[-1])
        return cls(catalogue, assignment, standing, excess)

    @property
    def least_busy(self) -> NDArray[np.int64]:
        """All ranks [W], those with the least to do first."""
        return np.argsort(self.standing.burden(), kind="stable")

    def price(self, loads: NDArray[np.float64]) -> NDArray[np.float64]:
        """Steps [C] of loads [C, W, K]; only ranks that changed are looked up again."""
        return step_ms(self.standing.phases_of(loads))

    def batches(self, num_changes: int) -> Iterator[slice]:
        """Slices of so many changes that are priced at a time."""
        size = max(1, RANKS_AT_A_TIME // self.catalogue.world_size)
        return (slice(first, first + size) for first in range(0, num_changes, size))

    def after(self, plan: ShardingPlan, change: FormChange) -> ShardingPlan:
        """The plan with one unit changed; all others stay as they are."""
        changed = self.assignment.copy()
        changed.place(*change)
        names = self.catalogue.units[change.unit].names
        new = {placement.name: placement for placement in changed.to_plan().tables if placement.name in names}
        return ShardingPlan(plan.world_size, tuple(new.get(each.name, each) for each in plan.tables))


def _find_excess(assignment: Assignment, plan: ShardingPlan) -> Iterator[tuple[int, _Excess]]:
    catalogue, placed = assignment.catalogue, {placement.name: placement for placement in plan.tables}
    prices, problem = catalogue.prices, catalogue.problem
    for index, unit in enumerate(catalogue.units):
        placements = tuple(placed[name] for name in unit.names)
        if all(_is_as_listed(assignment, index, placement) for placement in placements):
            continue
        shards = plan_shards(problem, ShardingPlan(plan.world_size, placements))
        excess = _Excess(-prices.loads[assignment.rows[index]], -prices.num_bytes[assignment.rows[index]])
        np.add.at(excess.loads, shards.rank, catalogue.estimator.shard_loads(problem, shards))
        np.add.at(excess.num_bytes, shards.rank, shard_bytes(problem, shards))
        yield index, excess


def _is_as_listed(assignment: Assignment, unit: int, placement: TablePlacement) -> bool:
    """Whether a table lies as the catalogue would put it: one shard a rank, of the granules that the unit has."""
    if assignment.form[unit] != Form.FREE:
        return True
    catalogue, granules = assignment.catalogue, assignment.granules[unit]
    table = catalogue.problem.tables[placement.name]
    is_whole = len(placement.shards) == 1 and catalogue.may_be_whole[unit]
    columns = np.zeros_like(granules)
    for shard in placement.shards:
        columns[shard.rank] += shard.num_cols
    return (
        len(set(placement.ranks)) == len(placement.ranks)
        and (placement.sharding_type is ShardingType.TABLE_WISE) == is_whole
        and bool((columns * catalogue.num_granules[unit] == granules * table.embedding_dim).all())
    )


def _best_shift(board: _Board) -> Iterator[_Priced]:
    """The best of all moves, splits and merges between two ranks, if there is any that keeps memory."""
    moves, added = _likely_shifts(board)
    if not len(moves.units):
        return
    steps = []
    for batch in board.batches(len(moves.units)):
        loads = np.repeat(board.standing.loads[None], len(moves.units[batch]), axis=0)
        loads[np.arange(len(loads))[:, None], moves.ranks[batch]] += added[batch]
        steps.append(board.price(loads))
    steps_ms = np.concatenate(steps)
    at = int(steps_ms.argmin())
    unit = int(moves.units[at, 0])
    granules = board.assignment.granules[unit].copy()
    granules[moves.ranks[at]] = moves.granules[at, 0]
    yield _Priced(FormChange(unit, Form.FREE, granules), float(steps_ms[at]))


def _likely_shifts(board: _Board) -> tuple[PairMoves, NDArray[np.float64]]:
    """At most `MOST_CONFIRMED` shifts [C] that keep memory and look best, and the loads [C, 2, K] that they add."""
    standing, prices, targets = board.standing, board.catalogue.prices, _targets(board)
    moves_of, added_of, looks_of = [], [], []
    for rank in range(board.catalogue.world_size):
        moves = shifts(board.assignment, rank, targets)
        moves = moves.take(np.flatnonzero(~np.isin(moves.units[:, 0], list(board.excess))))
        before, after = row_changes(board.catalogue, board.assignment, moves)
        added = (prices.loads[after] - prices.loads[before]).sum(axis=1)
        added_bytes = (prices.num_bytes[after] - prices.num_bytes[before]).sum(axis=1)
        overflow_bytes, look_ms = standing.screen(moves.ranks, added, added_bytes)
        fits = np.flatnonzero(overflow_bytes == 0)
        best = fits[np.argsort(look_ms[fits], kind="stable")[:MOST_CONFIRMED]]
        moves_of.append(moves.take(best))
        added_of.append(added[best])
        looks_of.append(look_ms[best])
    best = np.argsort(np.concatenate(looks_of), kind="stable")[:MOST_CONFIRMED]
    return joined(moves_of).take(best), np.concatenate(added_of)[best]


def _targets(board: _Board) -> NDArray[np.int64]:
    """The ranks that pieces are offered to: all, or of many those with the least to do."""
    num_pieces = AMOUNTS * int((board.assignment.granules > 0).sum())
    return board.least_busy[: max(1, MOST_SCREENED // max(1, num_pieces))]


def _best_form(board: _Board) -> Iterator[_Priced]:
    """The best change of form that keeps memory, if there is any."""
    most = MOST_FORM_PRICES // board.catalogue.world_size
    changes = list(islice(_forms(board), max(1, most)))
    for batch in board.batches(len(changes)):
        loads, free_bytes = _after(board, changes[batch])
        fits = np.flatnonzero((free_bytes >= 0).all(axis=-1))
        if len(fits):
            steps_ms = board.price(loads[fits])
            at = int(steps_ms.argmin())
            yield _Priced(changes[batch][fits[at]], float(steps_ms[at]))


def _forms(board: _Board) -> Iterator[FormChange]:
    """Other forms of every unit, those on the busiest ranks first."""
    assignment, ranks = board.assignment, board.least_busy
    burden = np.where(assignment.rows > 0, board.standing.burden(), 0.0).max(axis=1)
    for unit in np.argsort(-burden, kind="stable").tolist():
        yield from form_changes(assignment, unit, ranks, FORM_TARGETS)
        if unit in board.excess:
            yield from _as_listed(board, unit)


def _as_listed(board: _Board, unit: int) -> Iterator[FormChange]:
    """A unit that the catalogue would cut otherwise: its shards on a rank merged, and all of it on one rank."""
    catalogue, granules = board.catalogue, board.assignment.granules[unit]
    if granules.sum() == catalogue.num_granules[unit]:
        yield FormChange(unit, Form.FREE, granules)
    allowed = board.least_busy[catalogue.may_move[unit, board.least_busy]]
    for rank in allowed[:FORM_TARGETS]:
        yield FormChange(unit, Form.FREE, spread(catalogue, unit, np.array([rank])))


def _after(board: _Board, changes: Sequence[FormChange]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Loads [C, W, K] and free bytes [C, W] after each change."""
    catalogue, prices, standing = board.catalogue, board.catalogue.prices, board.standing
    rows = np.stack([catalogue.form_rows(*each) for each in changes])
    before = board.assignment.rows[[each.unit for each in changes]]
    loads = standing.loads + prices.loads[rows] - prices.loads[before]
    free_bytes = standing.free_bytes - prices.num_bytes[rows] + prices.num_bytes[before]
    for index, change in enumerate(changes):
        if change.unit in board.excess:
            loads[index] -= board.excess[change.unit].loads
            free_bytes[index] += board.excess[change.unit].num_bytes
    return loads, free_bytes
