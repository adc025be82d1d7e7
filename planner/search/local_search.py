"""Local search: polishes any assignment by moves, swaps, splits, merges and changes of type."""

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.search.assignment import Assignment
from planner.search.catalogue import Catalogue, Form
from planner.search.moves import (
    NO_UNIT,
    FormChange,
    PairMoves,
    form_changes,
    joined,
    row_changes,
    shifts,
    spread,
    swaps,
)
from planner.search.objective import TINY_MS, Rates, Standing, feel_rates, step_ms
from planner.search.price_forms import Options, list_options, marginal_phases_ms

LOG_POWERS = (3, 5, 7)
"""p of the smooth step is 8, then 32, then 128: first the whole distribution is evened, then its top."""

EXPLORE_LOG_POWER = 5
"""The same after a kick: one descent, so that there is time for many."""

CONFIRMED = 6
"""Changes that look best and are priced exactly."""

MOST_SCREENED = 128
"""Changes that are screened with their lookups priced; of more, those that look best by prices alone."""

MOST_TARGETS, LEAST_TARGETS = 32, 12
"""Ranks that a piece is offered to, those with the least to do: fewer where many ranks are relieved together."""

MOST_SOURCES, LEAST_SOURCES = 8, 4
"""Ranks with the most to do that are tried before a search gives up, and how many are relieved together."""

RANKS_PER_SOURCE = 16
"""So many ranks for each that is relieved at the same time: on a large cluster many are as busy."""

MOST_BUNDLED = 256
"""Changes that are looked through for some that go together."""

FORM_TARGETS = 4
"""Ranks on which a unit that was cut by rows or copied is tried whole."""

MOST_SWAPS = 1500
"""Swaps that are looked at together; of more a sample."""

MOST_FORM_UNITS = 24
"""Units of a rank whose other forms are tried at a time, on a few ranks: each is priced on all of them."""

PATIENCE, KICKS_PER_UNIT = 40, 4
"""Kicks in a row that bring nothing, after which a search has found what it can; fewer where units are few."""

ACCEPTED, STRAYED = 0.002, 0.006
"""How much longer, relatively, a step may be to be kicked on from, and after which the best is returned to."""

LEAST_KICK_GAIN = 1e-4
"""Relative gain that a kick must bring to count as one that brought something."""

TOLERATED = 0.03
"""Of an average rank's work: how much dearer a form may be to be drawn for a kick e times less often."""

LEAST_WEIGHT = 1e-9
"""Of an option in such a draw, so that one remains where all are dear."""

MOST_KICKED = 2
"""Units that a kick changes."""

LEAST_GAIN = 1e-6
"""Relative gain below which a change is not worth its evaluation."""


@dataclass
class LocalSearch:
    """Searches in the neighbourhood of assignments until a deadline.

    Attributes:
        catalogue: The forms.
        ends_at: `time.monotonic()` when to stop.
        rng: Samples swaps and kicks.
    """

    catalogue: Catalogue
    ends_at: float
    rng: np.random.Generator
    _rates: Rates = field(init=False)
    _row_ms: NDArray[np.float64] = field(init=False)

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.ends_at

    def polish(self, start: Assignment) -> Assignment:
        """A local optimum near an assignment, which stays as it is; never worse, overflow counted first."""
        self._look_around(start)
        found, best, best_score = start.copy(), start, exact_score(start)
        for log_power in LOG_POWERS:
            self._descend(found, log_power)
            found.sum_up()
            score = exact_score(found)
            if score < best_score:
                best, best_score = found.copy(), score
        return best

    def explore(self, start: Assignment) -> Assignment:
        """The best local optimum met by kicking an assignment again and again; ends after so many vain kicks.

        Source: Lourenco, Martin and Stuetzle 2003, Iterated local search; accepted is what is hardly worse.
        """
        best = now = start
        best_score = now_score = exact_score(start)
        vain, patience = 0, min(PATIENCE, KICKS_PER_UNIT * len(self.catalogue.units))
        self._look_around(start)
        options = list_options(self.catalogue, self._rates, start.loads.mean(axis=0))
        while vain < patience and not self.is_over:
            found = now.copy()
            self._kick(found, options)
            self._descend(found, EXPLORE_LOG_POWER)
            found.sum_up()
            score = exact_score(found)
            vain = 0 if score < (best_score[0], best_score[1] * (1 - LEAST_KICK_GAIN)) else vain + 1
            if score <= (now_score[0], now_score[1] * (1 + ACCEPTED)):
                now, now_score = found, score
            if score < best_score:
                best, best_score = found, score
            elif now_score > (best_score[0], best_score[1] * (1 + STRAYED)):
                now, now_score = best, best_score
        return best

    def _look_around(self, start: Assignment) -> None:
        """Takes rates and prices at a start's loads, for first looks at changes."""
        self._rates = feel_rates(self.catalogue.problem, self.catalogue.estimator, start.loads)
        self._row_ms = marginal_phases_ms(self.catalogue, self._rates, start.loads.mean(axis=0))

    def _kick(self, assignment: Assignment, options: Options) -> None:
        """Gives one or two units another form, one that is not much dearer, on ranks with little to do."""
        burden = self._stand(assignment, LOG_POWERS[0]).burden()
        for _ in range(self.rng.integers(1, MOST_KICKED + 1)):
            drawn = self._draw(assignment, options)
            if drawn is None:
                return
            unit, at = drawn
            form, cuts = int(options.form[at]), int(options.num_cuts[at])
            if form == Form.NODE:
                form = int(self.rng.choice([each for each in self.catalogue.fixed_forms(unit) if each >= Form.NODE]))
            granules = np.zeros(len(burden), dtype=np.int64)
            if form == Form.FREE:
                allowed = np.flatnonzero(self.catalogue.may_move[unit])
                noise = burden[allowed] * self.rng.uniform(size=len(allowed))
                granules = spread(self.catalogue, unit, allowed[np.argsort(noise, kind="stable")[:cuts]])
            assignment.place(unit, form, granules)

    def _draw(self, assignment: Assignment, options: Options) -> tuple[int, int] | None:
        """A unit and an option of it, the likelier the less dearer it is than what the unit has; or None."""
        every = np.arange(len(options.total_ms))
        is_free, cuts = assignment.form == Form.FREE, np.maximum((assignment.granules > 0).sum(axis=1), 1)
        is_now = np.minimum(assignment.form, Form.NODE)[:, None] == options.form
        is_now &= ~is_free[:, None] | (options.num_cuts == cuts[:, None])
        now_ms = np.where(is_now.any(axis=1), options.total_ms[every, is_now.argmax(axis=1)], 0.0)
        dearer = np.maximum(options.total_ms - now_ms[:, None], 0.0)
        level_ms = max(now_ms.sum() / self.catalogue.world_size, TINY_MS)
        # What lies on free ranks may be drawn as it is: it then goes to other ranks.
        is_other = np.isfinite(options.total_ms) & ~(is_now & ~is_free[:, None])
        weights = np.where(is_other, np.exp(-dearer / (TOLERATED * level_ms)) + LEAST_WEIGHT, 0.0)
        if not is_other.any():
            return None
        drawn = self.rng.choice(weights.size, p=(weights / weights.sum()).ravel())
        unit, at = divmod(int(drawn), weights.shape[1])
        return unit, at

    def _descend(self, assignment: Assignment, log_power: int) -> None:
        while not self.is_over:
            standing = self._stand(assignment, log_power)
            if not self._improve(assignment, standing):
                return

    def _improve(self, assignment: Assignment, standing: Standing) -> bool:
        order = np.argsort(-standing.burden(), kind="stable")
        size = int(np.clip(len(order) // RANKS_PER_SOURCE, LEAST_SOURCES, MOST_SOURCES))
        targets = order[::-1][: max(LEAST_TARGETS, MOST_TARGETS // size)]
        for first in range(0, min(MOST_SOURCES, len(order)), size):
            if self._relieve(assignment, standing, order[first : first + size], targets):
                return True
        return any(self._reform(assignment, standing, int(rank), order[::-1]) for rank in order[:2])

    def _relieve(
        self, assignment: Assignment, standing: Standing, sources: NDArray[np.int64], targets: NDArray[np.int64]
    ) -> bool:
        """Carries out the best moves, splits and merges off some ranks, or else the best swaps, if any help."""
        moves = joined([shifts(assignment, int(rank), targets) for rank in sources])
        if self._try_pairs(assignment, standing, moves):
            return True
        return self._try_pairs(
            assignment,
            standing,
            joined([swaps(assignment, int(rank), targets, self.rng, MOST_SWAPS // len(sources)) for rank in sources]),
        )

    def _try_pairs(self, assignment: Assignment, standing: Standing, moves: PairMoves) -> bool:
        prices = self.catalogue.prices
        if not len(moves.units):
            return False
        before, after = row_changes(self.catalogue, assignment, moves)
        if len(moves.units) > MOST_SCREENED:
            row_ms = self._row_ms[after] - self._row_ms[before]
            row_bytes = prices.num_bytes[after] - prices.num_bytes[before]
            over, rough = standing.guess(moves.ranks, row_ms.sum(axis=1), row_bytes.sum(axis=1))
            kept = np.lexsort((rough, over))[:MOST_SCREENED]
            moves, before, after = moves.take(kept), before[kept], after[kept]
        added = (prices.loads[after] - prices.loads[before]).sum(axis=1)
        added_bytes = (prices.num_bytes[after] - prices.num_bytes[before]).sum(axis=1)
        over, smooth = standing.screen(moves.ranks, added, added_bytes)
        now_over, now_ms = standing.score
        likely = np.flatnonzero((over < now_over) | ((over == now_over) & (smooth < now_ms * (1 - LEAST_GAIN))))
        if not len(likely):
            return False
        likely = likely[np.lexsort((smooth[likely], over[likely]))]
        bundles = [likely[[at]] for at in range(min(CONFIRMED, len(likely)))] + _bundles(moves, likely)
        loads = np.repeat(standing.loads[None], len(bundles), axis=0)
        free = np.repeat(standing.free_bytes[None], len(bundles), axis=0)
        for index, bundle in enumerate(bundles):
            loads[index, moves.ranks[bundle]] += added[bundle]
            free[index, moves.ranks[bundle]] -= added_bytes[bundle]
        winner = _winner(standing, loads, free)
        if winner is None:
            return False
        for at in bundles[winner]:
            _carry_out(assignment, moves, int(at))
        return True

    def _reform(self, assignment: Assignment, standing: Standing, rank: int, least_busy: NDArray[np.int64]) -> bool:
        """Carries out the best change of form among units on a rank, if one helps."""
        units = np.flatnonzero(assignment.rows[:, rank])
        most = max(1, MOST_FORM_UNITS // (1 + self.catalogue.world_size // RANKS_PER_SOURCE))
        if len(units) > most:
            units = self.rng.choice(units, most, replace=False)
        changes = [each for unit in units for each in form_changes(assignment, int(unit), least_busy, FORM_TARGETS)]
        if not changes:
            return False
        winner = _winner(standing, *self._after(assignment, standing, changes))
        if winner is None:
            return False
        assignment.place(*changes[winner])
        return True

    def _after(
        self, assignment: Assignment, standing: Standing, changes: list[FormChange]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Loads [C, W, K] and free bytes [C, W] after each change."""
        prices = self.catalogue.prices
        rows = np.stack([self.catalogue.form_rows(*change) for change in changes])
        before = assignment.rows[[change.unit for change in changes]]
        loads = standing.loads + prices.loads[rows] - prices.loads[before]
        return loads, standing.free_bytes - prices.num_bytes[rows] + prices.num_bytes[before]

    def _stand(self, assignment: Assignment, log_power: int) -> Standing:
        problem, estimator = self.catalogue.problem, self.catalogue.estimator
        return Standing.at(problem, estimator, self._rates, assignment.loads, assignment.free_bytes, log_power)


def exact_score(assignment: Assignment) -> tuple[int, float]:
    """Bytes over memory and the estimated step in milliseconds."""
    catalogue = assignment.catalogue
    phases_ms = catalogue.estimator.phases_ms(catalogue.problem, assignment.loads)
    return assignment.overflow_bytes, float(step_ms(phases_ms))


def _winner(standing: Standing, loads: NDArray[np.float64], free_bytes: NDArray[np.int64]) -> int | None:
    over, smooth = standing.confirm(loads, free_bytes)
    best = int(np.lexsort((smooth, over))[0])
    now_over, now_ms = standing.score
    helps = over[best] < now_over or (over[best] == now_over and smooth[best] < now_ms * (1 - LEAST_GAIN))
    return best if helps else None


def _bundles(moves: PairMoves, likely: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The first 2, 4, 8 ... of changes, best first, that have no rank and no unit in common."""
    chosen: list[int] = []
    taken: set[tuple[str, int]] = set()
    for at in likely[:MOST_BUNDLED]:
        concerned = {("rank", rank) for rank in moves.ranks[at].tolist()}
        concerned |= {("unit", unit) for unit in moves.units[at].tolist() if unit != NO_UNIT}
        if taken.isdisjoint(concerned):
            chosen.append(int(at))
            taken |= concerned
    sizes = {len(chosen), *(2**power for power in range(1, len(chosen).bit_length()))}
    return [np.array(chosen[:size]) for size in sorted(sizes) if size > 1]


def _carry_out(assignment: Assignment, moves: PairMoves, at: int) -> None:
    ranks = moves.ranks[at]
    for unit, granules in zip(moves.units[at], moves.granules[at], strict=True):
        if unit != NO_UNIT:
            changed = assignment.granules[unit].copy()
            changed[ranks] = granules
            assignment.place(int(unit), Form.FREE, changed)
