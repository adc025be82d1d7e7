"""The sharding options of units as arrays, priced: what a policy chooses from.

An option here is one of `Unit.choices`, or a cut into narrower columns: a type and a number of shards. Its action is an
ordered draw of ranks without replacement: so many as there are shards for table_wise and column_wise, one that stands
for its node for table_row_wise, none for row_wise and data_parallel, which lie on all ranks. Shards of an option are
equally large but for the last of a row-wise one (`sharding.row_blocks`), so the first and the last are priced.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import AdditiveEstimator
from planner.problem import PlanningProblem
from planner.search.catalogue import NOTHING, Catalogue, Form, build_catalogue
from planner.search.placement import Unit, UnitOption, build_units
from planner.sharding import FREE_TYPES, TYPE_ORDER, ShardingOption, ShardingType
from planner.shards import TYPE_CODE

NO_TYPE = -1
"""Type code where a unit has fewer options than another; as an index by type it is the entry behind all types."""

NODE_TYPE = TYPE_CODE[ShardingType.TABLE_ROW_WISE]
"""Type code of options that are placed by pointing at a node."""

_FREE_CODES = [TYPE_CODE[each] for each in FREE_TYPES]

NARROW_WIDTHS = (8, 4)
"""Columns of shards narrower than `sharding.MIN_COLUMN_WIDTH`: they repeat many lookups, but spread the largest tables
over a hundred ranks for less traffic than rows would."""


@dataclass(frozen=True, eq=False)
class Options:
    """The options of units as arrays; leading dimensions [...] are [N, T] in tasks, [B] in a step.

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

    def at(self, *index: NDArray[np.int64] | slice | None) -> "Options":
        """The options at positions of the leading dimensions; None is a new one."""
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


def list_options(problem: PlanningProblem, estimator: AdditiveEstimator) -> tuple[tuple[Unit, ...], Options]:
    """A problem's units, with narrow column options as well, and their options [T, O].

    Raises:
        InfeasibleError: A unit has no legal option at all.
    """
    catalogue = build_catalogue(problem, estimator, build_units(problem))
    units = tuple(_with_narrow_shards(catalogue, index) for index in range(len(catalogue.units)))
    type_code, num_shards = _shapes(units)
    is_free, is_on_node = np.isin(type_code, _FREE_CODES), type_code == NODE_TYPE
    devices = problem.devices
    is_node_first = np.isin(np.arange(catalogue.world_size), devices.by_node[devices.node_starts])
    may_hold = _held_ranks(catalogue, type_code)
    rows = _edge_rows(catalogue, type_code, num_shards)
    return units, Options(
        type_code=type_code,
        num_shards=num_shards,
        num_draws=np.where(is_free, num_shards, is_on_node),
        may_draw=may_hold & (is_free[..., None] | is_on_node[..., None] & is_node_first),
        may_hold=may_hold,
        loads=catalogue.prices.loads[rows],
        num_bytes=catalogue.prices.num_bytes[rows],
    )


def join_options(parts: Sequence[Options]) -> Options:
    """Options [N, T, O] of parts one after another; a part of fewer than O is padded."""
    most = max(part.type_code.shape[2] for part in parts)
    padded = (vars(_pad(part, most)).values() for part in parts)
    return Options(*(np.concatenate(each) for each in zip(*padded, strict=True)))


def _with_narrow_shards(catalogue: Catalogue, index: int) -> Unit:
    """A unit with column options of `NARROW_WIDTHS` as well, where it may be cut by columns at all.

    The widths are of the narrowest of tables that are kept together.
    """
    unit, granules = catalogue.units[index], int(catalogue.num_granules[index])
    if not catalogue.may_cut[index]:
        return unit
    tables = [catalogue.problem.tables[name] for name in unit.names]
    ranks = tuple(np.flatnonzero(catalogue.may_move[index]).tolist())
    known = {option.num_shards for option in unit.options if option.sharding_type is ShardingType.COLUMN_WISE}
    counts = {min(table.embedding_dim for table in tables) // width for width in NARROW_WIDTHS}
    options = [
        UnitOption(tuple(ShardingOption(table, ShardingType.COLUMN_WISE, count, ranks) for table in tables))
        for count in sorted(counts - known)
        if 2 <= count <= len(ranks) and granules % count == 0
    ]
    return replace(unit, options=(*unit.options, *options))


def _shapes(units: Sequence[Unit]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Types and numbers of shards, each [T, O], of units' choices; `NO_TYPE` and 1 where there is none."""
    shape = len(units), max(len(unit.choices) for unit in units)
    type_code, num_shards = np.full(shape, NO_TYPE), np.ones(shape, dtype=np.int64)
    for index, unit in enumerate(units):
        firsts = [group[0] for group in unit.choices]
        type_code[index, : len(firsts)] = [TYPE_CODE[option.sharding_type] for option in firsts]
        num_shards[index, : len(firsts)] = [option.num_shards for option in firsts]
    return type_code, num_shards


def _held_ranks(catalogue: Catalogue, type_code: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Ranks [T, O, W] that shards of options of these types [T, O] may lie on; all for row_wise and data_parallel."""
    on_nodes = catalogue.fixed[:, Form.NODE :, 0][:, catalogue.problem.devices.node_index] != NOTHING
    by_type = np.ones((len(type_code), len(TYPE_ORDER) + 1, catalogue.world_size), dtype=bool)
    by_type[:, _FREE_CODES], by_type[:, NODE_TYPE] = catalogue.may_move[:, None], on_nodes
    by_type[:, NO_TYPE] = False
    return np.asarray(by_type[np.arange(len(type_code))[:, None], type_code])


def _edge_rows(catalogue: Catalogue, type_code: NDArray[np.int64], num_shards: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows [T, O, 2] of the catalogue that price the first and the last shard of options.

    Those of table_row_wise are the same on all nodes that it may stand on.
    """
    unit = np.arange(len(type_code))[:, None]
    by_type = np.full((len(type_code), len(TYPE_ORDER) + 1, 2), NOTHING)
    by_type[:, TYPE_CODE[ShardingType.ROW_WISE]] = catalogue.fixed[:, Form.ROWS]
    by_type[:, TYPE_CODE[ShardingType.DATA_PARALLEL]] = catalogue.fixed[:, Form.COPIES]
    by_type[:, NODE_TYPE] = catalogue.fixed[:, Form.NODE :].max(axis=1)
    of_free = catalogue.rows(unit, catalogue.num_granules[:, None] // num_shards)
    is_free = np.isin(type_code, _FREE_CODES)
    return np.where(is_free[..., None], of_free[..., None], by_type[unit, type_code])


def _pad(options: Options, most: int) -> Options:
    """Options [N, T, O] with O raised to `most`."""
    missing = most - options.type_code.shape[2]
    padded = {
        name: np.pad(values, [(0, 0), (0, 0), (0, missing), *[(0, 0)] * (values.ndim - 3)])
        for name, values in vars(options).items()
    }
    padded["type_code"][..., most - missing :] = NO_TYPE
    padded["num_shards"][..., most - missing :] = 1
    return Options(**padded)
