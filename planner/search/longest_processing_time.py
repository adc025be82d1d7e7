"""Longest-processing-time: the greedy strategy that goes by estimated cost and considers every option."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import AdditiveEstimator
from planner.cost.loads import NUM_TRAFFIC
from planner.memory import capacity_bytes
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.search.placement import (
    Choice,
    SlotPrices,
    Unit,
    build_units,
    choose_option,
    no_room,
    price_options,
    run_passes,
    smallest_bytes,
    sums_after,
)

CHUNK_SLOTS = 1 << 14
"""Shards that are priced at once."""


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
        firsts = price_options(problem, self.estimator, [unit.options[0] for unit in units])
        loads = {unit.names: price.loads.sum(axis=0) for unit, price in zip(units, firsts, strict=True)}
        per_load = np.max([bound.of_shard.sum(axis=0) for bound in self.estimator.linear_bounds(problem)], axis=0)
        units = tuple(sorted(units, key=lambda unit: -float(loads[unit.names] @ per_load)))

        def one_pass(order: Sequence[Unit]) -> list[Choice]:
            loads_after = sums_after(np.array([loads[unit.names] for unit in order]))
            bytes_after = sums_after(smallest_bytes(problem, order))
            placing = _Placing(problem, self.estimator, num_loads=loads_after.shape[1])
            priced = _priced(problem, self.estimator, order)
            return [
                placing.place(unit, prices, loads_after[index], int(bytes_after[index]))
                for index, (unit, prices) in enumerate(priced)
            ]

        return run_passes(problem, units, one_pass)


class _Candidates(NamedTuple):
    """C choices with what they add, and the lookups of all ranks afterwards.

    Attributes:
        choices: One for each type and number of shards.
        prices: Of each.
        lookup_ms: float64 [2, C, W].
    """

    choices: list[Choice]
    prices: list[SlotPrices]
    lookup_ms: NDArray[np.float64]


class _Placing:
    """Loads [W, K] and free bytes [W] while a pass places one unit after the other."""

    def __init__(self, problem: PlanningProblem, estimator: AdditiveEstimator, num_loads: int) -> None:
        self.problem = problem
        self.estimator = estimator
        self.free_bytes = capacity_bytes(problem)
        self.loads = np.zeros((problem.topology.world_size, num_loads))
        self.ranks = np.arange(problem.topology.world_size)
        self.lookup_ms = estimator.lookup_ms(problem, self.loads, self.ranks)
        kinds = [(device.kind, device.hbm_bytes_per_s) for device in problem.topology.devices]
        _, self.first_alike, self.kind = np.unique(
            [kinds.index(kind) for kind in kinds], return_index=True, return_inverse=True
        )

    def place(self, unit: Unit, prices: list[SlotPrices], loads_after: NDArray[np.float64], bytes_after: int) -> Choice:
        """Puts a unit where the predicted step is shortest.

        Args:
            unit: The unit.
            prices: Of the first option of each of its choices.
            loads_after: Loads [K] of the units that come after it.
            bytes_after: The least bytes that they take.

        Raises:
            NoRoomError: No option fits.
        """
        found = self._candidates(unit, prices, bytes_after)
        if not found.choices:
            raise no_room(self.problem, unit, self.free_bytes)
        loads = np.repeat(self.loads[None], len(found.choices), axis=0)
        for after, choice, price in zip(loads, found.choices, found.prices, strict=True):
            after[np.asarray(choice.ranks)] += price.loads
        best = int(self._levels_ms(loads, found.lookup_ms, loads_after).argmin())
        self.loads, self.lookup_ms = loads[best], found.lookup_ms[:, best]
        self.free_bytes[np.asarray(found.choices[best].ranks)] -= found.prices[best].num_bytes
        return found.choices[best]

    def _candidates(self, unit: Unit, prices: list[SlotPrices], bytes_after: int) -> _Candidates:
        """One candidate for each type and number of shards that fits now and leaves the bytes to come."""
        firsts = [options[0] for options in unit.choices]
        added = np.array([price.loads[0] if option.is_free else price.loads.mean(axis=0) for option, price in
                          zip(firsts, prices, strict=True)])  # fmt: skip
        lookup_ms = self.estimator.lookup_ms(self.problem, self.loads + added[:, None], self.ranks)
        keys = self._keys_ms(added, lookup_ms, np.array([option.is_free for option in firsts]))
        chosen = [
            choose_option(options, price.num_bytes, self.free_bytes, key)
            for options, price, key in zip(unit.choices, prices, keys, strict=True)
        ]
        left = int(self.free_bytes.sum()) - bytes_after
        fitting = [at for at, each in enumerate(chosen) if each is not None]
        kept = [at for at in fitting if int(prices[at].num_bytes.sum()) <= left] or fitting[:1]
        choices = [Choice(unit, *each) for each in (chosen[at] for at in kept) if each is not None]
        after_ms = np.repeat(self.lookup_ms[:, None], len(kept), axis=1)
        for index, (at, choice) in enumerate(zip(kept, choices, strict=True)):
            ranks = np.asarray(choice.ranks)
            after_ms[:, index, ranks] = lookup_ms[:, at, ranks]
        return _Candidates(choices, [prices[at] for at in kept], after_ms)

    def _keys_ms(
        self, added: NDArray[np.float64], lookup_ms: NDArray[np.float64], is_free: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Own work [C, W] by which ranks are chosen: with the shard for free options, without it for others."""
        lookup_ms = np.where(is_free[:, None], lookup_ms, self.lookup_ms[:, None])
        traffic = self.loads[:, :NUM_TRAFFIC] + np.where(is_free[:, None], added[:, :NUM_TRAFFIC], 0.0)[:, None]
        return np.asarray(self.estimator.join_ms(self.problem, traffic, lookup_ms).sum(axis=-2))

    def _levels_ms(
        self, loads: NDArray[np.float64], lookup_ms: NDArray[np.float64], loads_after: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The step [C] that candidate loads [C, W, K] lead to when the rest [K] spreads evenly."""
        even = (loads.sum(axis=1) + loads_after) / loads.shape[1]
        even_ms = self.estimator.lookup_ms(self.problem, even[:, None], self.first_alike[None])[..., self.kind]
        traffic = np.concatenate(
            [loads[..., :NUM_TRAFFIC], np.broadcast_to(even[:, None, :NUM_TRAFFIC], (*loads.shape[:2], NUM_TRAFFIC))]
        )
        both = self.estimator.join_ms(self.problem, traffic, np.concatenate([lookup_ms, even_ms], axis=1))
        slowest, level = np.split(both, 2)
        step_ms: NDArray[np.float64] = np.maximum(slowest.max(axis=-1), level.mean(axis=-1)).sum(axis=-1)
        return step_ms


def _priced(
    problem: PlanningProblem, estimator: AdditiveEstimator, units: Sequence[Unit]
) -> Iterator[tuple[Unit, list[SlotPrices]]]:
    """Units with the prices of their choices, many priced at once, since that takes hardly longer than one."""
    first = 0
    while first < len(units):
        last, num_slots = first, 0
        while last < len(units) and (last == first or num_slots < CHUNK_SLOTS):
            num_slots += sum(options[0].num_shards for options in units[last].choices)
            last += 1
        chunk = units[first:last]
        prices = price_options(problem, estimator, [options[0] for unit in chunk for options in unit.choices])
        for unit in chunk:
            yield unit, prices[: len(unit.choices)]
            del prices[: len(unit.choices)]
        first = last
