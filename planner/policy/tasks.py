"""Planning problems as arrays: what an episode of placing tables needs to know of them, computed once.

Legend of this package: N tasks, B episodes, T units (tables, or tables kept together) of a task, O sharding options of
a unit, W ranks, K loads of a shard, P phases of a step.

An option here is one of `Unit.choices`, or a cut into narrower columns: a type and a number of shards. Its action is an
ordered draw of ranks without replacement: so many as there are shards for table_wise and column_wise, one that stands
for its node for table_row_wise, none for row_wise and data_parallel, which lie on all ranks. Shards of an option are
equally large but for the last of a row-wise one (`sharding.row_blocks`), so the first and the last are priced.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import COMMS_PHASES, LOOKUP_PHASES, PHASES, AdditiveEstimator
from planner.cost.loads import NUM_TRAFFIC
from planner.errors import PlanningError
from planner.memory import capacity_bytes, shard_bytes
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.search.placement import Choice, Unit, UnitOption, build_plan, build_units, smallest_bytes
from planner.sharding import TYPE_ORDER, ShardingOption, ShardingType
from planner.shards import TYPE_CODE, ShardArrays
from planner.tables import DIM_MULTIPLE

NO_TYPE = -1
"""Type code where a unit has fewer options than another."""

LEAST_MS = 1e-9
"""Keeps ratios finite where nothing costs anything."""

NARROW_WIDTHS = (8, 4)
"""Columns of shards narrower than `sharding.MIN_COLUMN_WIDTH`: they repeat many lookups, but spread the largest tables
over a hundred ranks for less traffic than rows would."""

NODE_TYPE = TYPE_CODE[ShardingType.TABLE_ROW_WISE]
"""Type code of options that are placed by pointing at a node."""


TABLE_FEATURES = (
    "log_rows",
    "log_cols",
    "log_ids",
    "log_distinct",
    "log_bytes",
    "bytes_over_capacity",
    "log_own_ms",
    "own_over_level",
    "log_own_over_level",
    "num_tables",
)
"""Columns of `Tasks.tables`: what a unit is, on its own scale and relative to the devices."""

SHARD_FEATURES = (
    "share_of_level",
    "log_share",
    "log_shards",
    "bytes_over_capacity",
    "log_rows",
    "log_cols",
    "log_ids",
    *(f"is_{each}" for each in TYPE_ORDER),
)
"""Columns of `Tasks.shards`: what a shard of an option is to its rank; the first one weighs it in the rank's set."""

EXCHANGES = tuple(name for name in COMMS_PHASES if name != "all_reduce")
"""Phases that are all-to-alls."""

Number = TypeVar("Number", np.float64, np.int64)


@dataclass(frozen=True, eq=False)
class Options:
    """The options of units as arrays; leading dimensions [...] are [N, T] in a task, [B] in a step.

    Attributes:
        type_code: int64 [..., O], `TYPE_CODE`, or `NO_TYPE`.
        num_shards: int64 [..., O].
        num_draws: int64 [..., O], ranks that an action draws.
        may_draw: bool [..., O, W], ranks that may be drawn; of a node its first.
        may_hold: bool [..., O, W], ranks that shards may lie on.
        loads: float64 [..., O, 2, K], of the first and of the last shard.
        num_bytes: int64 [..., O, 2].
    """

    type_code: NDArray[np.int64]
    num_shards: NDArray[np.int64]
    num_draws: NDArray[np.int64]
    may_draw: NDArray[np.bool_]
    may_hold: NDArray[np.bool_]
    loads: NDArray[np.float64]
    num_bytes: NDArray[np.int64]

    def at(self, *index: NDArray[np.int64]) -> "Options":
        """The options at positions of the leading dimensions."""
        return Options(*(values[index] for values in vars(self).values()))

    @property
    def is_there(self) -> NDArray[np.bool_]:
        """Whether it is an option at all [..., O]."""
        return self.type_code != NO_TYPE

    @property
    def is_free(self) -> NDArray[np.bool_]:
        """Whether each shard's rank is drawn [..., O]."""
        return (self.num_draws > 0) & (self.type_code != NODE_TYPE)

    @property
    def total_loads(self) -> NDArray[np.float64]:
        """Loads [..., O, K] of all shards together."""
        return self.loads[..., 0, :] * (self.num_shards - 1)[..., None] + self.loads[..., 1, :]

    @property
    def total_bytes(self) -> NDArray[np.int64]:
        """Bytes [..., O] of all shards together."""
        return self.num_bytes[..., 0] * (self.num_shards - 1) + self.num_bytes[..., 1]


@dataclass(frozen=True, eq=False)
class Tasks:
    """N problems with T units each that differ in their tables and in their devices' memory only.

    Attributes:
        problems: N problems.
        estimator: Prices their plans.
        units: N times T units, in the order in which they are placed: by descending `own_ms`.
        options: Of the units, [N, T, O ...].
        tables: float32 [N, T, F], features of the units (`TABLE_FEATURES`).
        shards: float32 [N, T, O, F], features of the options' first shards (`SHARD_FEATURES`).
        own_ms: float64 [N, T], milliseconds that a unit's first option adds where it lies alone.
        cheapest: int64 [N, T], the option that adds the least to `level_ms` in place of the first.
        least_bytes: int64 [N, T], of each unit in its smallest form, over all devices.
        capacity_bytes: int64 [N, W].
        typical_rank: The rank of the median lookup time: where one is asked instead of all.
        slowness: float64 [W], lookup time of an average load on each rank, over the mean of the ranks.
        level_ms: float64 [N], lookups and transfers of a step if all units lay evenly in their first option.
    """

    problems: tuple[PlanningProblem, ...]
    estimator: AdditiveEstimator
    units: tuple[tuple[Unit, ...], ...]
    options: Options
    tables: NDArray[np.float32]
    shards: NDArray[np.float32]
    own_ms: NDArray[np.float64]
    cheapest: NDArray[np.int64]
    least_bytes: NDArray[np.int64]
    capacity_bytes: NDArray[np.int64]
    typical_rank: int
    slowness: NDArray[np.float64]
    level_ms: NDArray[np.float64]

    @property
    def num_units(self) -> int:
        """T."""
        return self.own_ms.shape[1]

    @property
    def world_size(self) -> int:
        """W."""
        return self.capacity_bytes.shape[1]

    @property
    def table_share(self) -> float:
        """What an average table is of its rank's level, W / T; all of it where there are fewer tables than ranks."""
        return min(1.0, self.world_size / self.num_units)

    @cached_property
    def bytes_after(self) -> NDArray[np.int64]:
        """The least bytes [N, T] of the units that come later."""
        return sums_after(self.least_bytes)

    @cached_property
    def loads_after(self) -> NDArray[np.float64]:
        """What the units that come later add in their cheapest form, [N, T, K]."""
        each = np.take_along_axis(self.options.total_loads, self.cheapest[..., None, None], axis=2)
        return sums_after(each[:, :, 0])

    @cached_property
    def node_first(self) -> NDArray[np.int64]:
        """The first rank [W] of each rank's node."""
        devices = self.problems[0].devices
        return devices.by_node[devices.node_starts][devices.node_index]

    @cached_property
    def node_last(self) -> NDArray[np.int64]:
        """The last rank [W] of each rank's node."""
        devices = self.problems[0].devices
        node_sizes = np.bincount(devices.node_index)
        return devices.by_node[devices.node_starts + node_sizes - 1][devices.node_index]

    def placed_first(self, units: Sequence[int]) -> "Tasks":
        """The same single task with the units at some positions placed before the others."""
        rest = [index for index in range(self.num_units) if index not in set(units)]
        order = np.array([*units, *rest])
        return replace(
            self,
            units=(tuple(self.units[0][index] for index in order),),
            options=Options(*(values[:, order] for values in vars(self.options).values())),
            tables=self.tables[:, order],
            shards=self.shards[:, order],
            own_ms=self.own_ms[:, order],
            cheapest=self.cheapest[:, order],
            least_bytes=self.least_bytes[:, order],
        )

    def build_plan(self, task: int, options: NDArray[np.int64], draws: NDArray[np.int64]) -> ShardingPlan:
        """The plan of an episode.

        Args:
            task: Its problem.
            options: int64 [T], the option of each unit.
            draws: int64 [T, D], drawn ranks in order, of which the first `Options.num_draws` count.
        """
        counts = self.options.num_draws[task, np.arange(self.num_units), options]
        steps = zip(self.units[task], options.tolist(), counts.tolist(), draws.tolist(), strict=True)
        choices = [_choice(unit, unit.choices[option], ranks[:count]) for unit, option, count, ranks in steps]
        return build_plan(self.problems[task], choices)


def build_tasks(problems: Sequence[PlanningProblem], estimator: AdditiveEstimator) -> Tasks:
    """The arrays of problems with equally many units.

    Raises:
        PlanningError: The problems do not differ in tables and memory only, or not in so many units (reason
            `strategy`).
        InfeasibleError: A unit has no legal option at all.
    """
    _check_alike(problems)
    prepared = [_prepare(problem, estimator) for problem in problems]
    counts = sorted({len(each.units) for each in prepared})
    if len(counts) > 1:
        raise PlanningError(
            f"tasks of {', '.join(map(str, counts))} units cannot be placed side by side, expected equally many",
            reason="strategy",
        )
    most = max(each.options.type_code.shape[-1] for each in prepared)
    padded = [vars(_pad(each.options, most)).values() for each in prepared]
    return Tasks(
        problems=tuple(problems),
        estimator=estimator,
        units=tuple(each.units for each in prepared),
        options=Options(*(np.stack(each) for each in zip(*padded, strict=True))),
        tables=np.stack([each.tables for each in prepared]),
        shards=np.stack([np.pad(each.shards, [(0, 0), (0, most - each.shards.shape[1]), (0, 0)]) for each in prepared]),
        own_ms=np.stack([each.own_ms for each in prepared]),
        cheapest=np.stack([each.cheapest for each in prepared]),
        least_bytes=np.stack([each.least_bytes for each in prepared]),
        capacity_bytes=np.stack([capacity_bytes(problem) for problem in problems]),
        typical_rank=prepared[0].typical_rank,
        slowness=prepared[0].slowness,
        level_ms=np.array([each.level_ms for each in prepared]),
    )


def sums_after(values: NDArray[Number]) -> NDArray[Number]:
    """At each position the sum of all entries behind it along the second axis.

    >>> sums_after(np.array([[1, 2, 4]])).tolist()
    [[6, 4, 0]]
    """
    return np.asarray(np.cumsum(values[:, ::-1], axis=1)[:, ::-1] - values)


class _Prepared(NamedTuple):
    """One task's part of `Tasks`."""

    units: tuple[Unit, ...]
    options: Options
    tables: NDArray[np.float32]
    shards: NDArray[np.float32]
    own_ms: NDArray[np.float64]
    cheapest: NDArray[np.int64]
    least_bytes: NDArray[np.int64]
    typical_rank: int
    slowness: NDArray[np.float64]
    level_ms: float


def _prepare(problem: PlanningProblem, estimator: AdditiveEstimator) -> _Prepared:
    units = tuple(_with_narrow_shards(problem, unit) for unit in build_units(problem))
    options = _build_options(problem, estimator, units)
    even = options.total_loads[:, 0].sum(axis=0) / problem.topology.world_size
    lookup_ms = estimator.lookup_ms(problem, even[None], np.arange(problem.topology.world_size)).sum(axis=0)
    rank = int(np.argsort(lookup_ms, kind="stable")[len(lookup_ms) // 2])

    own_ms = _added_ms(problem, estimator, options.total_loads[:, 0], np.zeros_like(even), rank)
    order = np.argsort(-own_ms, kind="stable")
    units, own_ms = tuple(units[index] for index in order), own_ms[order]
    options = Options(*(values[order] for values in vars(options).values()))
    least_bytes = smallest_bytes(problem, units)
    level_ms = _level_ms(phases_if_even_ms(problem, estimator, even, rank))
    tables = _table_features(problem, units, own_ms, least_bytes, level_ms)
    of_shard_ms = _added_ms(problem, estimator, options.loads[:, :, 0], np.zeros_like(even), rank)
    return _Prepared(
        units,
        options,
        tables,
        _shard_features(problem, options, tables, of_shard_ms / level_ms),
        own_ms,
        _cheapest(problem, estimator, options, even, rank),
        least_bytes,
        rank,
        lookup_ms / max(float(lookup_ms.mean()), LEAST_MS),
        level_ms,
    )


def _with_narrow_shards(problem: PlanningProblem, unit: Unit) -> Unit:
    """A unit with column options of `NARROW_WIDTHS` as well, where it may be cut by columns at all."""
    rules = [problem.rules[name].sharding_types for name in unit.names]
    if any(types is not None and ShardingType.COLUMN_WISE not in types for types in rules):
        return unit
    tables = [problem.tables[name] for name in unit.names]
    ranks = problem.rules[unit.names[0]].ranks or problem.topology.ranks
    known = {option.num_shards for option in unit.options if option.sharding_type is ShardingType.COLUMN_WISE}
    most = min(table.embedding_dim for table in tables)
    counts = {most // width for width in NARROW_WIDTHS if most % width == 0} - known
    options = [
        UnitOption(tuple(ShardingOption(table, ShardingType.COLUMN_WISE, count, ranks) for table in tables))
        for count in sorted(counts)
        if 2 <= count <= len(ranks) and all(table.embedding_dim % (count * DIM_MULTIPLE) == 0 for table in tables)
    ]
    return replace(unit, options=(*unit.options, *options))


def _cheapest(
    problem: PlanningProblem,
    estimator: AdditiveEstimator,
    options: Options,
    even: NDArray[np.float64],
    rank: int,
) -> NDArray[np.int64]:
    """The option [T] of each unit that changes a step of even loads [K] for the best, the others left as they are."""
    instead = (options.total_loads - options.total_loads[:, :1]) / problem.topology.world_size
    added_ms = _added_ms(problem, estimator, instead, even, rank)
    return np.asarray(np.where(options.is_there, added_ms, np.inf).argmin(axis=1))


def _build_options(problem: PlanningProblem, estimator: AdditiveEstimator, units: Sequence[Unit]) -> Options:
    """The options [T, O] of units; fewer than O are padded."""
    loads, num_bytes = _edge_prices(problem, estimator, [group[0] for unit in units for group in unit.choices])
    most, world_size = max(len(unit.choices) for unit in units), problem.topology.world_size
    shape = len(units), most
    options = Options(
        type_code=np.full(shape, NO_TYPE),
        num_shards=np.ones(shape, dtype=np.int64),
        num_draws=np.zeros(shape, dtype=np.int64),
        may_draw=np.zeros((*shape, world_size), dtype=bool),
        may_hold=np.zeros((*shape, world_size), dtype=bool),
        loads=np.zeros((*shape, *loads.shape[1:])),
        num_bytes=np.zeros((*shape, 2), dtype=np.int64),
    )
    is_there = np.arange(most) < np.array([len(unit.choices) for unit in units])[:, None]
    options.loads[is_there], options.num_bytes[is_there] = loads, num_bytes
    for index, unit in enumerate(units):
        for column, group in enumerate(unit.choices):
            _describe(options, (index, column), group)
    return options


def _describe(options: Options, at: tuple[int, int], group: Sequence[UnitOption]) -> None:
    """Enters type, shards and ranks of one of `Unit.choices`."""
    first = group[0]
    options.type_code[at], options.num_shards[at] = TYPE_CODE[first.sharding_type], first.num_shards
    for option in group:
        options.may_hold[at][list(option.ranks)] = True
    if first.is_free:
        options.num_draws[at], options.may_draw[at] = first.num_shards, options.may_hold[at]
    elif options.type_code[at] == NODE_TYPE:
        options.num_draws[at] = 1
        options.may_draw[at][[option.ranks[0] for option in group]] = True


def _edge_prices(
    problem: PlanningProblem, estimator: AdditiveEstimator, options: Sequence[UnitOption]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Loads [G, 2, K] and bytes [G, 2] of the first and the last shard of options, summed over a unit's tables."""
    parts = [(index, part) for index, option in enumerate(options) for part in option.parts]
    sizes = [part.sizes() for _, part in parts]
    of_option = np.array([index for index, _ in parts])
    edges = [
        ShardArrays(
            table=np.array([problem.index_of[part.table.name] for _, part in parts]),
            rank=np.array([part.ranks[0] for _, part in parts]),
            type_code=np.array([TYPE_CODE[part.sharding_type] for _, part in parts]),
            num_rows=np.array([rows[edge] for rows, _ in sizes]),
            num_cols=np.array([cols[edge] for _, cols in sizes]),
        )
        for edge in (0, -1)
    ]
    of_parts = np.stack([estimator.shard_loads(problem, shards) for shards in edges], axis=1)
    loads = np.zeros((len(options), *of_parts.shape[1:]))
    num_bytes = np.zeros((len(options), 2), dtype=np.int64)
    np.add.at(loads, of_option, of_parts)
    np.add.at(num_bytes, of_option, np.stack([shard_bytes(problem, shards) for shards in edges], axis=1))
    return loads, num_bytes


def phases_if_even_ms(
    problem: PlanningProblem, estimator: AdditiveEstimator, loads: NDArray[np.float64], rank: int
) -> NDArray[np.float64]:
    """Phases [..., P] of a step, the mean of the ranks, if all had the same loads [..., K], on a rank's device."""
    lookup_ms = estimator.lookup_ms(problem, loads, np.array(rank))[..., None]
    shape = (*loads.shape[:-1], problem.topology.world_size)
    traffic = np.broadcast_to(loads[..., None, :NUM_TRAFFIC], (*shape, NUM_TRAFFIC))
    return np.asarray(estimator.join_ms(problem, traffic, np.broadcast_to(lookup_ms, (2, *shape))).mean(axis=-1))


def _added_ms(
    problem: PlanningProblem,
    estimator: AdditiveEstimator,
    added: NDArray[np.float64],
    loads: NDArray[np.float64],
    rank: int,
) -> NDArray[np.float64]:
    """Milliseconds [...] that more loads [..., K] add to a step in which every rank has loads [K]."""
    with_it = phases_if_even_ms(problem, estimator, loads + added, rank)
    return np.asarray((with_it - phases_if_even_ms(problem, estimator, loads, rank)).sum(axis=-1))


def _level_ms(phases_ms: NDArray[np.float64]) -> float:
    """Lookups and transfers of phases [P]."""
    return max(LEAST_MS, float(sum(phases_ms[PHASES.index(name)] for name in (*LOOKUP_PHASES, *EXCHANGES))))


def _table_features(
    problem: PlanningProblem,
    units: Sequence[Unit],
    own_ms: NDArray[np.float64],
    least_bytes: NDArray[np.int64],
    level_ms: float,
) -> NDArray[np.float32]:
    """`TABLE_FEATURES` [T, F]: means over a unit's tables of what is no sum."""
    arrays, samples = problem.arrays, problem.arrays.samples
    members = [[problem.index_of[name] for name in unit.names] for unit in units]
    per_table = np.stack([arrays.num_rows, arrays.num_cols, samples * arrays.ids_per_sample, arrays.distinct_rows])
    rows, cols, ids, distinct = np.stack([per_table[:, at].mean(axis=1) for at in members], axis=1)
    share = own_ms / level_ms
    columns = {
        "log_rows": np.log1p(rows) / 10,
        "log_cols": np.log(cols) / 5,
        "log_ids": np.log1p(ids) / 10,
        "log_distinct": np.log1p(distinct) / 10,
        "log_bytes": np.log1p(least_bytes) / 20,
        "bytes_over_capacity": np.minimum(least_bytes / max(1.0, float(capacity_bytes(problem).mean())), 8.0),
        "log_own_ms": np.log(np.maximum(own_ms, LEAST_MS)) / 5,
        "own_over_level": np.minimum(share, 8.0),
        "log_own_over_level": np.log(np.maximum(share, 1e-6)) / 5,
        "num_tables": np.log([len(at) for at in members]),
    }
    return np.stack([columns[name] for name in TABLE_FEATURES], axis=1).astype(np.float32)


def _shard_features(
    problem: PlanningProblem, options: Options, tables: NDArray[np.float32], share: NDArray[np.float64]
) -> NDArray[np.float32]:
    """`SHARD_FEATURES` [T, O, F], given the shards' shares [T, O] of the level.

    Sizes are the table's; the number of shards tells how they are cut.
    """
    share = np.clip(share, 0.0, 8.0)
    of_table = {name: np.broadcast_to(tables[:, index, None], share.shape) for index, name in enumerate(TABLE_FEATURES)}
    columns = {
        "share_of_level": share,
        "log_share": np.log(np.maximum(share, 1e-6)) / 5,
        "log_shards": np.log(options.num_shards) / 3,
        "bytes_over_capacity": options.num_bytes[..., 0] / max(1.0, float(capacity_bytes(problem).mean())),
        **{name: of_table[name] for name in ("log_rows", "log_cols", "log_ids")},
        **{f"is_{each}": options.type_code == code for code, each in enumerate(TYPE_ORDER)},
    }
    return np.stack([columns[name] for name in SHARD_FEATURES], axis=-1).astype(np.float32)


def _choice(unit: Unit, group: Sequence[UnitOption], drawn: Sequence[int]) -> Choice:
    """The choice of an option of a group and its drawn ranks."""
    if group[0].is_free:
        return Choice(unit, group[0], tuple(drawn))
    option = next(each for each in group if not drawn or each.ranks[0] == drawn[0])
    return Choice(unit, option, option.ranks)


def _pad(options: Options, most: int) -> Options:
    """Options [T, O] with O raised to `most`."""
    missing = most - options.type_code.shape[1]
    padded = {
        name: np.pad(values, [(0, 0), (0, missing), *[(0, 0)] * (values.ndim - 2)])
        for name, values in vars(options).items()
    }
    padded["type_code"][:, most - missing :] = NO_TYPE
    padded["num_shards"][:, most - missing :] = 1
    return Options(**padded)


def _check_alike(problems: Sequence[PlanningProblem]) -> None:
    alike = {_besides_tables(problem) for problem in problems}
    if len(alike) > 1:
        raise PlanningError(
            f"{len(problems)} tasks to be placed side by side differ in {len(alike)} ways beside tables and memory, "
            "expected the same devices, links, batch and dense part",
            reason="strategy",
        )


def _besides_tables(problem: PlanningProblem) -> tuple[Hashable, ...]:
    topology = problem.topology
    devices = tuple(replace(device, hbm_bytes=0, reserved_bytes=0) for device in topology.devices)
    workload = problem.workload
    others = tuple(getattr(workload, each.name) for each in fields(workload) if each.name != "tables")
    return (devices, topology.intra_node, topology.inter_node, *others)
