"""The step that all greedy strategies share: put one unit of tables on the ranks that have room."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import AdditiveEstimator
from planner.errors import InfeasibleError
from planner.memory import capacity_bytes, replicated_bytes, shard_bytes, whole_table_bytes
from planner.plan import ShardingPlan, TablePlacement
from planner.problem import PlanningProblem
from planner.sharding import ShardingOption, ShardingType, enumerate_options
from planner.shards import option_shards
from planner.text import render_bytes

Number = TypeVar("Number", np.float64, np.int64)

SPLIT_ORDER = (
    ShardingType.TABLE_WISE,
    ShardingType.COLUMN_WISE,
    ShardingType.TABLE_ROW_WISE,
    ShardingType.ROW_WISE,
    ShardingType.DATA_PARALLEL,
)
"""In which order greedy rules try types: whole, then splits by the bytes they move, copies last."""

MAX_PASSES = 6
"""How many passes a greedy strategy takes, each with the unit that found no room put first."""


@dataclass(frozen=True)
class UnitOption:
    """One way to place a unit: the same kind of option for each of its tables.

    Attributes:
        parts: An option for each table, all of one shape.
    """

    parts: tuple[ShardingOption, ...]

    @property
    def sharding_type(self) -> ShardingType:
        """The type that all tables take."""
        return self.parts[0].sharding_type

    @property
    def num_shards(self) -> int:
        """Shards of each table."""
        return self.parts[0].num_shards

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks to choose from, or the ranks of the shards (see `ShardingOption.ranks`)."""
        return self.parts[0].ranks

    @property
    def is_free(self) -> bool:
        """Whether the search chooses the ranks."""
        return self.parts[0].is_free

    def slot_bytes(self, problem: PlanningProblem) -> NDArray[np.int64]:
        """Bytes [num_shards] of each shard position, summed over the tables."""
        sizes = shard_bytes(problem, option_shards(problem, self.parts))
        return np.asarray(sizes.reshape(len(self.parts), self.num_shards).sum(axis=0))


@dataclass(frozen=True)
class Unit:
    """Tables that are placed as one, and the ways to do it in `SPLIT_ORDER`, fewest shards first."""

    names: tuple[str, ...]
    options: tuple[UnitOption, ...]

    @cached_property
    def choices(self) -> tuple[tuple[UnitOption, ...], ...]:
        """The options grouped by type and number of shards, in order.

        The options of one group differ only in the node they stand on, and take the same bytes and loads, since
        nodes that they may stand on have equally many ranks.
        """
        groups: dict[tuple[ShardingType, int], list[UnitOption]] = {}
        for option in self.options:
            groups.setdefault((option.sharding_type, option.num_shards), []).append(option)
        return tuple(map(tuple, groups.values()))

    @property
    def label(self) -> str:
        """How messages call it."""
        rest = f" and {len(self.names) - 1} kept with it" if len(self.names) > 1 else ""
        return f"{self.names[0]!r}{rest}"


@dataclass(frozen=True)
class Choice:
    """A unit's option and the rank of each shard."""

    unit: Unit
    option: UnitOption
    ranks: tuple[int, ...]


class SlotPrices(NamedTuple):
    """What the shard positions of an option take, summed over the unit's tables.

    Attributes:
        num_bytes: int64 [num_shards].
        loads: float64 [num_shards, K].
    """

    num_bytes: NDArray[np.int64]
    loads: NDArray[np.float64]


class NoRoomError(Exception):
    """A pass found no room for a unit."""

    def __init__(self, unit: Unit, shortfall_bytes: int, rank: int) -> None:
        """Keeps the unit, the bytes missing for its best option and the rank where they are missing."""
        super().__init__(unit.label)
        self.unit = unit
        self.shortfall_bytes = shortfall_bytes
        self.rank = rank


def build_units(problem: PlanningProblem) -> tuple[Unit, ...]:
    """The problem's groups with their options.

    Raises:
        InfeasibleError: A group has no legal option at all.
    """
    return tuple(_build_unit(problem, group) for group in problem.groups)


def _build_unit(problem: PlanningProblem, names: tuple[str, ...]) -> Unit:
    by_shape = [
        {option.shape: option for option in _options(problem, name, unit_ranks(problem, names))} for name in names
    ]
    common = [shape for shape in by_shape[0] if all(shape in shapes for shapes in by_shape)]
    if not common:
        unit = Unit(names, ())
        raise InfeasibleError(
            f"table {unit.label} has no legal sharding option left under its constraints",
            shortfall_bytes=0,
            table=names[0],
        )
    options = [UnitOption(tuple(shapes[shape] for shapes in by_shape)) for shape in common]
    return Unit(
        names,
        tuple(sorted(options, key=lambda each: (SPLIT_ORDER.index(each.sharding_type), each.num_shards))),
    )


def unit_ranks(problem: PlanningProblem, names: Sequence[str]) -> tuple[int, ...]:
    """The ranks that all of some tables may use, ascending."""
    rules = [problem.rules[name].ranks for name in names]
    confined = [frozenset(ranks) for ranks in rules if ranks is not None]
    return tuple(sorted(frozenset.intersection(*confined))) if confined else problem.topology.ranks


def _options(problem: PlanningProblem, name: str, ranks: tuple[int, ...]) -> tuple[ShardingOption, ...]:
    """The options of a table on some ranks; none where there are none."""
    if not ranks:
        return ()
    optimizer, rule = problem.workload.optimizer, problem.rules[name]
    return enumerate_options(problem.tables[name], problem.topology, optimizer, ranks, rule.sharding_types)


def price_options(
    problem: PlanningProblem, estimator: AdditiveEstimator, options: Sequence[UnitOption]
) -> list[SlotPrices]:
    """The prices of options; together, since arrays of a few shards cost as much time as of many."""
    shards = option_shards(problem, [part for option in options for part in option.parts])
    num_bytes, loads = shard_bytes(problem, shards), estimator.shard_loads(problem, shards)
    prices, start = [], 0
    for option in options:
        shape, end = (len(option.parts), option.num_shards), start + len(option.parts) * option.num_shards
        prices.append(
            SlotPrices(
                num_bytes[start:end].reshape(shape).sum(axis=0), loads[start:end].reshape(*shape, -1).sum(axis=0)
            )
        )
        start = end
    return prices


def choose_option(
    options: Sequence[UnitOption],
    slot_bytes: NDArray[np.int64],
    free_bytes: NDArray[np.int64],
    key: NDArray[np.float64],
) -> tuple[UnitOption, tuple[int, ...]] | None:
    """Of one of `Unit.choices` the option and ranks that have room, of the smallest (mean) key [W]; or None."""
    if len(options) == 1:
        chosen = choose_ranks(options[0], slot_bytes, free_bytes, key)
        return None if chosen is None else (options[0], chosen)
    ranks = np.array([option.ranks for option in options])
    has_room = (slot_bytes <= free_bytes[ranks]).all(axis=1)
    best = options[int(np.where(has_room, key[ranks].mean(axis=1), np.inf).argmin())]
    return (best, best.ranks) if has_room.any() else None


def choose_ranks(
    option: UnitOption, slot_bytes: NDArray[np.int64], free_bytes: NDArray[np.int64], key: NDArray[np.float64]
) -> tuple[int, ...] | None:
    """The ranks for an option's shards: those of the smallest key [W] that have room, or None.

    Ties go to the lower rank. Shards of a free option are equally large and go to different ranks.
    """
    if not option.is_free:
        ranks = np.asarray(option.ranks)
        return option.ranks if bool((slot_bytes <= free_bytes[ranks]).all()) else None
    ranks = np.asarray(option.ranks)
    with_room = ranks[free_bytes[ranks] >= slot_bytes[0]]
    if len(with_room) < option.num_shards:
        return None
    order = np.argsort(key[with_room], kind="stable")[: option.num_shards]
    return tuple(int(rank) for rank in with_room[order])


def first_fit(problem: PlanningProblem, unit: Unit, free_bytes: NDArray[np.int64], key: NDArray[np.float64]) -> Choice:
    """The first of a unit's options that finds room, on the ranks of the smallest key [W].

    Among the nodes of table_row_wise the one whose ranks have the smallest mean key wins.

    Raises:
        NoRoomError: None of the options fits.
    """
    for options in unit.choices:
        found = choose_option(options, options[0].slot_bytes(problem), free_bytes, key)
        if found is not None:
            return Choice(unit, *found)
    raise no_room(problem, unit, free_bytes)


def no_room(problem: PlanningProblem, unit: Unit, free_bytes: NDArray[np.int64]) -> NoRoomError:
    """The error that tells by how many bytes the option closest to fitting misses, and on which rank."""
    misses = []
    for option in unit.options:
        needed, ranks = option.slot_bytes(problem), np.asarray(option.ranks)
        if option.is_free:
            ranks = ranks[np.argsort(-free_bytes[ranks], kind="stable")[: option.num_shards]]
        missing = needed - free_bytes[ranks]
        worst = int(missing.argmax())
        misses.append((int(missing[worst]), int(ranks[worst])))
    shortfall_bytes, rank = min(misses)
    return NoRoomError(unit, shortfall_bytes, rank)


def build_plan(problem: PlanningProblem, choices: Iterable[Choice]) -> ShardingPlan:
    """The plan of placed units, tables in the workload's order."""
    placements = [
        TablePlacement(part.table.name, part.sharding_type, part.shards(choice.ranks))
        for choice in choices
        for part in choice.option.parts
    ]
    placements.sort(key=lambda placement: problem.index_of[placement.name])
    return ShardingPlan(problem.topology.world_size, tuple(placements))


def run_passes(
    problem: PlanningProblem, units: Sequence[Unit], one_pass: Callable[[Sequence[Unit]], list[Choice]]
) -> ShardingPlan:
    """The plan of the first pass that finds room for all units.

    After a pass that strands a unit the next one starts with that unit, so that large tables which the
    rule's order leaves for late do not meet full devices.

    Args:
        problem: The problem.
        units: In the order of the strategy's rule.
        one_pass: Places units in the order given, or raises NoRoomError.

    Raises:
        InfeasibleError: `MAX_PASSES` passes found no room, or one unit was stranded although it came first.
    """
    check_total(problem, units)
    order = list(units)
    for attempt in range(MAX_PASSES):
        try:
            return build_plan(problem, one_pass(order))
        except NoRoomError as error:
            stranded, last = error, attempt == MAX_PASSES - 1
        if last or order[0] is stranded.unit:
            break
        order.remove(stranded.unit)
        order.insert(0, stranded.unit)
    raise InfeasibleError(
        f"table {stranded.unit.label} fits on no rank under any option it may take: the closest misses "
        f"{render_bytes(stranded.shortfall_bytes)} on rank {stranded.rank}",
        shortfall_bytes=stranded.shortfall_bytes,
        table=stranded.unit.names[0],
    )


def smallest_bytes(problem: PlanningProblem, units: Sequence[Unit]) -> NDArray[np.int64]:
    """Bytes [U] of each unit in the form that takes the least over all devices.

    Where a unit may not be whole (`whole_table_bytes`), its options are compared.
    """
    whole = whole_table_bytes(problem)

    def smallest(unit: Unit) -> int:
        if unit.options[0].sharding_type is ShardingType.TABLE_WISE:
            return sum(int(whole[problem.index_of[name]]) for name in unit.names)
        return min(int(options[0].slot_bytes(problem).sum()) for options in unit.choices)

    return np.array([smallest(unit) for unit in units], dtype=np.int64)


def check_total(problem: PlanningProblem, units: Sequence[Unit]) -> None:
    """Passes if the tables in their smallest form do not exceed all devices together.

    Raises:
        InfeasibleError: With the bytes that are missing in total.
    """
    capacity = capacity_bytes(problem)
    if (capacity < 0).any():
        rank = int(capacity.argmin())
        raise InfeasibleError(
            f"rank {rank} cannot hold even what every rank holds ({render_bytes(replicated_bytes(problem))}: "
            f"dense part, own batches and embeddings): {render_bytes(-int(capacity[rank]))} missing",
            shortfall_bytes=-int(capacity[rank]),
        )
    needed = int(smallest_bytes(problem, units).sum())
    available = int(capacity.sum())
    if needed > available:
        raise InfeasibleError(
            f"the tables need {render_bytes(needed)} at least, the {len(capacity)} devices have "
            f"{render_bytes(available)} for them: {render_bytes(needed - available)} missing",
            shortfall_bytes=needed - available,
        )


def sums_after(values: NDArray[Number], axis: int = 0) -> NDArray[Number]:
    """At each position the sum of all entries behind it along an axis.

    >>> sums_after(np.array([1, 2, 4])).tolist()
    [6, 4, 0]
    """
    return np.asarray(np.flip(np.cumsum(np.flip(values, axis), axis=axis), axis) - values)
