"""The default strategy: several searches start, the best starts are polished, and the winner is named.

    rules ──▶ prices, longest-processing-time, policy, beam ──▶ local search on the best ──▶ kicks on the best of all
    a plan at once             other options                             of each kind

Whatever the budget cuts off, the best plan so far is handed out. A rule takes milliseconds, and forms by price are
asked for in any case, being most of the way. For 10,000 tables on 1,024 ranks both take seconds, which may exceed the
budget.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from planner.cost.estimator import AdditiveEstimator
from planner.errors import InfeasibleError
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.search.assignment import Assignment
from planner.search.beam import beam_search
from planner.search.catalogue import NOTHING, Catalogue, build_catalogue
from planner.search.greedy_batch import Forms, first_forms, placed_assignments, uniform_forms
from planner.search.heuristics import GreedyRule, dim_score, lookup_score, size_lookup_score, size_score
from planner.search.local_search import LocalSearch, exact_score
from planner.search.longest_processing_time import LongestProcessingTime
from planner.search.neuroshard import NeuroShardSearch
from planner.search.objective import feel_rates
from planner.search.placement import build_units, check_total
from planner.search.price_forms import SHARES, place_by_price

RULES = {
    "size_greedy": size_score,
    "dim_greedy": dim_score,
    "lookup_greedy": lookup_score,
    "size_lookup_greedy": size_lookup_score,
}
"""The greedy rules, the first of which gives the plan that there is in any case."""

BEAM_STARTS = 4
"""Contenders whose forms the beam begins with."""

START_SHARE, POLISH_SHARE = 0.3, 0.75
"""Of the budget until which starts are sought, and until which they are polished; kicks take the rest."""

WORTH = 1.3
"""Starts are polished that are at most so many times as long as the best of all."""

MOST_IN_TURN = 40_000
"""Tables x ranks up to which longest-processing-time takes part, which weighs every option of a table after another."""

MOST_IN_BEAM = 20_000
"""Tables x ranks up to which the beam and further makers take part: beyond, they have no time for their tries."""

MOST_OF_ONE = 3
"""Plans of one maker that are taken."""

MOST_PRICED = 500_000
"""Tables x ranks up to which forms by price are placed for all shares of a level; beyond, for one."""

LEAST_BUDGET_S = 0.1
"""With less, the rules' plans are all there is time for."""

MOST_HALVED = 2000
"""Tables x ranks up to which NeuroShard's search takes part: it tries every table's halves, whatever the time."""

Maker = Callable[[PlanningProblem], list[ShardingPlan]]
"""Gives further starts, the best first."""


@dataclass(frozen=True, eq=False)
class Contender:
    """A placement in the race.

    Attributes:
        name: Who found it.
        assignment: The placement.
        score: Bytes over memory, step in milliseconds.
    """

    name: str
    assignment: Assignment
    score: tuple[int, float]


@dataclass(frozen=True)
class Portfolio:
    """Finds a plan within a budget of seconds.

    Attributes:
        estimator: Prices plans.
        budget_s: Seconds to search; less is taken where nothing more is to be gained.
        seed: Of samples and kicks.
        makers: Further starts by name, such as the policy's.
    """

    estimator: AdditiveEstimator
    budget_s: float
    seed: int = 0
    makers: dict[str, Maker] = field(default_factory=dict)

    def plan(self, problem: PlanningProblem) -> ShardingPlan:
        """The best plan found; raises InfeasibleError."""
        return self.compete(problem).assignment.to_plan()

    def compete(self, problem: PlanningProblem) -> Contender:
        """The winner, whose name tells the way it was found; raises InfeasibleError where no plan fits."""
        race = _Race(self, problem)
        race.enter_all()
        race.polish()
        race.explore()
        winner = race.ranked[0]
        if winner.score[0]:
            raise race.failure or InfeasibleError(
                f"no plan was found within {self.budget_s:g} s: the closest exceeds memory by {winner.score[0]} bytes; "
                "give the search more time (planner.budget_s) or the devices more memory",
                shortfall_bytes=winner.score[0],
            )
        return winner


class _Race:
    """Contenders of one problem, and the clock."""

    def __init__(self, portfolio: Portfolio, problem: PlanningProblem) -> None:
        self.portfolio, self.problem = portfolio, problem
        self.began_s = time.monotonic()
        self.failure: InfeasibleError | None = None
        units = build_units(problem)
        check_total(problem, units)
        self.catalogue: Catalogue = build_catalogue(problem, portfolio.estimator, units)
        self.contenders: list[Contender] = []

    @property
    def ranked(self) -> list[Contender]:
        """All contenders, the best first."""
        return sorted(self.contenders, key=lambda each: each.score)

    def enter_all(self) -> None:
        """Starts of all strategies, as far as the time for them goes."""
        ends_at = self._deadline(START_SHARE)
        rules = list(RULES.items())[: None if self._size <= MOST_IN_BEAM else 1]
        self._enter_plans({name: _single(GreedyRule(score)) for name, score in rules}, ends_at)
        if not self.contenders:
            # Wherever they are short of the least: a start with a slope.
            self._enter_forms("whole", first_forms(self.catalogue))
        if self.portfolio.budget_s >= LEAST_BUDGET_S:
            shares = SHARES if self._size <= MOST_PRICED else SHARES[2:3]
            for found in place_by_price(self.catalogue, self.ranked[0].assignment, shares):
                self._enter("prices", found)
            if self._size <= MOST_IN_BEAM:
                self._enter_forms("uniform", uniform_forms(self.catalogue))
        if self._has_no_rows:
            # Halving columns is then what there is to do, and this search is made for it.
            self._enter_plans(self._halving(), np.inf)
        makers = self.portfolio.makers if self._size <= MOST_IN_BEAM else {}
        self._enter_plans(self._searches() | makers, ends_at)
        if time.monotonic() < ends_at and self._size <= MOST_IN_BEAM:
            starts = [each.assignment for each in self.ranked[:BEAM_STARTS]]
            for found in beam_search(self.catalogue, starts, ends_at):
                self._enter("beam", found)
        if not self._has_no_rows:
            self._enter_plans(self._halving(), ends_at)

    def polish(self) -> None:
        """Local search on the best starts."""
        least_s = (POLISH_SHARE - START_SHARE) / 2 * self.portfolio.budget_s
        ends_at = max(self._deadline(POLISH_SHARE), time.monotonic() + least_s)
        for start in _in_turn(self._worth_polishing()):
            if time.monotonic() < ends_at:
                search = LocalSearch(self.catalogue, ends_at, self._rng())
                self._enter(f"{start.name} + local search", search.polish(start.assignment))

    def explore(self) -> None:
        """Kicks on the best of all."""
        best, search = self.ranked[0], LocalSearch(self.catalogue, self._deadline(1.0), self._rng())
        found = search.explore(best.assignment)
        if found is not best.assignment:
            self._enter(f"{best.name.removesuffix(' + local search')} + local search", found)

    def _worth_polishing(self) -> list[Contender]:
        best = self.ranked[0].score
        limit = (best[0], best[1] * WORTH) if not best[0] else (np.inf, np.inf)
        return [each for each in self.ranked if each.score <= limit]

    def _searches(self) -> dict[str, Maker]:
        """Searches that take more than milliseconds, where the problem is not too large for them."""
        if self._size > MOST_IN_TURN:
            return {}
        return {"longest_processing_time": _single(LongestProcessingTime(self.portfolio.estimator))}

    def _halving(self) -> dict[str, Maker]:
        """NeuroShard's search, where the problem is small enough and such as it can express."""
        if self._size > MOST_HALVED or self._is_grouped:
            return {}
        return {"neuroshard": _single(NeuroShardSearch(self.portfolio.estimator))}

    def _enter_plans(self, makers: dict[str, Maker], ends_at: float) -> None:
        """The plans of makers that find one before the deadline; the first maker is always asked."""
        for name, maker in makers.items():
            if self.contenders and time.monotonic() >= ends_at:
                return
            try:
                for plan in maker(self.problem)[:MOST_OF_ONE]:
                    self._enter(name, Assignment.of_plan(self.catalogue, plan))
            except InfeasibleError as error:
                self.failure = self.failure or error

    def _enter(self, name: str, assignment: Assignment) -> None:
        self.contenders.append(Contender(name, assignment, exact_score(assignment)))

    def _enter_forms(self, name: str, forms: Forms) -> None:
        """Greedy placements of forms."""
        empty = np.zeros((self.catalogue.world_size, self.catalogue.prices.loads.shape[1]))
        loads = self.contenders[0].assignment.loads if self.contenders else empty
        rates = feel_rates(self.problem, self.portfolio.estimator, loads)
        for found in placed_assignments(self.catalogue, rates, forms):
            self._enter(name, found)

    @property
    def _size(self) -> int:
        return len(self.catalogue.units) * self.catalogue.world_size

    @property
    def _has_no_rows(self) -> bool:
        """Whether no table may be cut by rows or copied."""
        return not (self.catalogue.fixed != NOTHING).any()

    @property
    def _is_grouped(self) -> bool:
        """Whether tables are to be kept together or to be cut by rows, of which NeuroShard's search knows nothing."""
        catalogue = self.catalogue
        may_be_free = catalogue.may_be_whole | catalogue.may_cut
        return not may_be_free.all() or any(len(unit.names) > 1 for unit in catalogue.units)

    def _deadline(self, share: float) -> float:
        return self.began_s + share * self.portfolio.budget_s

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(self.portfolio.seed)


def _single(strategy: GreedyRule | LongestProcessingTime | NeuroShardSearch) -> Maker:
    return lambda problem: [strategy.plan(problem)]


def _in_turn(ranked: list[Contender]) -> list[Contender]:
    """The best of each name, then the second of each, and so on; one of those that score alike."""
    distinct = {contender.score: contender for contender in reversed(ranked)}
    place: Counter[str] = Counter()
    turns = []
    for contender in sorted(distinct.values(), key=lambda each: each.score):
        turns.append((place[contender.name], contender.score, contender))
        place[contender.name] += 1
    return [contender for _, _, contender in sorted(turns, key=lambda each: each[:2])]
