"""Longest-processing-time: the greedy strategy that goes by estimated cost and considers every option."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import AdditiveEstimator
from planner.memory import capacity_bytes
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.search.placement import (
    Choice,
    SlotPrices,
    Unit,
    UnitOption,
    build_units,
    choose_option,
    no_room,
    price_options,
    run_passes,
    smallest_bytes,
)

Number = TypeVar("Number", np.float64, np.int64)


@dataclass(frozen=True)
class LongestProcessingTime:
    """Units by descending estimated time; each takes the option and ranks that keep the step shortest.

    Source: Graham 1969, Bounds on multiprocessing timing anomalies, extended by options. The shards of an
    option go to the ranks with the least own work. An option is judged by the step that it leads to if the
    tables still to come spread evenly: per phase the larger of the slowest rank now and the mean over ranks
    of all work, placed and to come. So a table is split or replicated only where it would stick out above
    that level, or where it lowers the level. A split that takes more memory than the whole table is
    considered only while the tables to come still fit.

    Attributes:
        estimator: Tells what a shard adds.
    """

    estimator: AdditiveEstimator

    def plan(self, problem: PlanningProblem) -> ShardingPlan:
        """The plan of the rule; raises InfeasibleError."""
        units = build_units(problem)
        loads = {
            unit.names: price_options(problem, self.estimator, unit.options[:1])[0].loads.sum(axis=0) for unit in units
        }
        per_load = np.max([bound.of_shard.sum(axis=0) for bound in self.estimator.linear_bounds(problem)], axis=0)
        units = tuple(sorted(units, key=lambda unit: -float(loads[unit.names] @ per_load)))

        def one_pass(order: Sequence[Unit]) -> list[Choice]:
            loads_after = _sums_after(np.array([loads[unit.names] for unit in order]))
            bytes_after = _sums_after(smallest_bytes(problem, order))
            placing = _Placing(problem, self.estimator, num_loads=loads_after.shape[1])
            return [
                placing.place(unit, loads_after[index], int(bytes_after[index])) for index, unit in enumerate(order)
            ]

        return run_passes(problem, units, one_pass)


class _Candidate(NamedTuple):
    """A choice with what it adds to its ranks."""

    choice: Choice
    prices: SlotPrices


class _Placing:
    """Loads [W, K] and free bytes [W] while a pass places one unit after the other."""

    def __init__(self, problem: PlanningProblem, estimator: AdditiveEstimator, num_loads: int) -> None:
        self.problem = problem
        self.estimator = estimator
        self.free_bytes = capacity_bytes(problem)
        self.loads = np.zeros((problem.topology.world_size, num_loads))

    def place(self, unit: Unit, loads_after: NDArray[np.float64], bytes_after: int) -> Choice:
        """Puts a unit where the predicted step is shortest.

        Args:
            unit: The unit.
            loads_after: Loads [K] of the units that come after it.
            bytes_after: The least bytes that they take.

        Raises:
            NoRoomError: No option fits.
        """
        candidates = self._candidates(unit, bytes_after)
        if not candidates:
            raise no_room(self.problem, unit, self.free_bytes)
        loads = np.repeat(self.loads[None], len(candidates), axis=0)
        for after, candidate in zip(loads, candidates, strict=True):
            after[np.asarray(candidate.choice.ranks)] += candidate.prices.loads
        best = int(self._levels_ms(loads, loads_after).argmin())
        self.loads = loads[best]
        self.free_bytes[np.asarray(candidates[best].choice.ranks)] -= candidates[best].prices.num_bytes
        return candidates[best].choice

    def _candidates(self, unit: Unit, bytes_after: int) -> list[_Candidate]:
        """One candidate for each type and number of shards that fits now and leaves the bytes to come."""
        firsts = [options[0] for options in unit.choices]
        prices = price_options(self.problem, self.estimator, firsts)
        found = []
        for options, price, key in zip(unit.choices, prices, self._keys_ms(firsts, prices), strict=True):
            chosen = choose_option(options, price.num_bytes, self.free_bytes, key)
            if chosen is not None:
                found.append(_Candidate(Choice(unit, *chosen), price))
        left = int(self.free_bytes.sum()) - bytes_after
        return [each for each in found if int(each.prices.num_bytes.sum()) <= left] or found[:1]

    def _keys_ms(self, options: Sequence[UnitOption], prices: Sequence[SlotPrices]) -> NDArray[np.float64]:
        """Own work [C, W] by which ranks are chosen: with the shard for free options, without it for others."""
        none = np.zeros(self.loads.shape[1])
        added = [price.loads[0] if option.is_free else none for option, price in zip(options, prices, strict=True)]
        return self._own_ms(self.loads + np.array(added)[:, None])

    def _own_ms(self, loads: NDArray[np.float64]) -> NDArray[np.float64]:
        """Own work [..., W] of ranks with loads [..., W, K]."""
        return np.asarray(self.estimator.phases_ms(self.problem, loads).sum(axis=-2))

    def _levels_ms(self, loads: NDArray[np.float64], loads_after: NDArray[np.float64]) -> NDArray[np.float64]:
        """The step [C] that candidate loads [C, W, K] lead to when the rest [K] spreads evenly."""
        world_size = loads.shape[1]
        even = (loads.sum(axis=1, keepdims=True) + loads_after) / world_size
        both = np.concatenate([loads, np.broadcast_to(even, loads.shape)])
        slowest, level = np.split(self.estimator.phases_ms(self.problem, both), 2)
        step_ms: NDArray[np.float64] = np.maximum(slowest.max(axis=-1), level.mean(axis=-1)).sum(axis=-1)
        return step_ms


def _sums_after(values: NDArray[Number]) -> NDArray[Number]:
    """At each position the sum of all entries behind it along the first axis."""
    return np.asarray(np.cumsum(values[::-1], axis=0)[::-1] - values)
