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
    Unit,
    UnitOption,
    build_units,
    choose_ranks,
    no_room,
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
        loads = {unit.names: unit.options[0].slot_loads(problem, self.estimator).sum(axis=0) for unit in units}
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
    """A choice with the bytes [num_shards] and loads [num_shards, K] that it adds."""

    choice: Choice
    num_bytes: NDArray[np.int64]
    loads: NDArray[np.float64]


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
            np.add.at(after, np.asarray(candidate.choice.ranks), candidate.loads)
        best = int(self._levels_ms(loads, loads_after).argmin())
        self.loads = loads[best]
        self.free_bytes[np.asarray(candidates[best].choice.ranks)] -= candidates[best].num_bytes
        return candidates[best].choice

    def _candidates(self, unit: Unit, bytes_after: int) -> list[_Candidate]:
        """One candidate for each type and number of shards that fits now and leaves the bytes to come."""
        own_ms = self._own_ms(self.loads)
        found: dict[tuple[str, int], _Candidate] = {}
        options = unit.options
        if len(options) > 1:
            options = tuple(sorted(options, key=lambda option: 0.0 if option.is_free else _mean_at(own_ms, option)))
        for option in options:
            if (option.sharding_type, option.num_shards) in found:
                continue
            candidate = self._candidate(unit, option)
            if candidate is not None:
                found[option.sharding_type, option.num_shards] = candidate
        in_order = [found[key] for key in _keys(unit) if key in found]
        left = int(self.free_bytes.sum()) - bytes_after
        return [each for each in in_order if int(each.num_bytes.sum()) <= left] or in_order[:1]

    def _candidate(self, unit: Unit, option: UnitOption) -> _Candidate | None:
        num_bytes = option.slot_bytes(self.problem)
        if option.is_free:
            slot_loads = option.slot_loads(self.problem, self.estimator)
            key = self._own_ms(self.loads + slot_loads[0])
        else:
            key = np.zeros(len(self.free_bytes))
        ranks = choose_ranks(option, num_bytes, self.free_bytes, key)
        if ranks is None:
            return None
        loads = slot_loads if option.is_free else option.slot_loads(self.problem, self.estimator)
        return _Candidate(Choice(unit, option, ranks), num_bytes, loads)

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


def _keys(unit: Unit) -> list[tuple[str, int]]:
    """Types and numbers of shards of a unit's options, in order, once each."""
    return list(dict.fromkeys((option.sharding_type, option.num_shards) for option in unit.options))


def _mean_at(own_ms: NDArray[np.float64], option: UnitOption) -> float:
    return float(own_ms[np.asarray(option.ranks)].mean())


def _sums_after(values: NDArray[Number]) -> NDArray[Number]:
    """At each position the sum of all entries behind it along the first axis."""
    return np.asarray(np.cumsum(values[::-1], axis=0)[::-1] - values)
