"""Every form that a unit of tables can take, priced once: the table from which searches read.

A unit's columns are cut into granules: the greatest number of equal parts whose widths are legal for all of its
tables, quads of columns for a single table. Its forms are

- free: each granule on any rank; all on one rank is table_wise, anything else column_wise with one shard a rank;
- rows: row_wise over all ranks; node: table_row_wise over one node; copies: data_parallel.

So a search moves granules, or exchanges forms, and never meets a plan that is illegal for another reason than memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from math import gcd
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import AdditiveEstimator
from planner.memory import shard_bytes
from planner.problem import PlanningProblem
from planner.search.placement import Unit, UnitOption, unit_ranks
from planner.sharding import FREE_TYPES, ShardingType
from planner.shards import TYPE_CODE, ShardArrays
from planner.tables import DIM_MULTIPLE

NOTHING = 0
"""The row of a unit that a rank holds nothing of."""


class Form(IntEnum):
    """How a unit lies on the ranks; NODE + n is table_row_wise on the n-th node."""

    FREE = 0
    ROWS = 1
    COPIES = 2
    NODE = 3


class Prices(NamedTuple):
    """What each of R rows of the catalogue takes on its rank.

    Attributes:
        loads: float64 [R, K].
        num_bytes: int64 [R].
    """

    loads: NDArray[np.float64]
    num_bytes: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The forms of U units on W ranks as rows of one price list.

    Attributes:
        problem: What is planned.
        estimator: Gives the loads.
        units: U units, in the workload's order.
        num_granules: int64 [U], at least 1.
        first: int64 [U], the row of one granule, less 1: that of j granules is `first + j`.
        may_move: bool [U, W], the ranks that a unit's free form may use.
        may_cut: bool [U], whether column_wise is allowed.
        may_be_whole: bool [U], whether table_wise is; a unit of neither has no free form.
        fixed: int64 [U, NODE + nodes, 2], rows of a block and of the last block in each form that lies on given ranks;
            `NOTHING` where it is not allowed. The column of FREE is empty.
        prices: Of all rows.
    """

    problem: PlanningProblem
    estimator: AdditiveEstimator
    units: tuple[Unit, ...]
    num_granules: NDArray[np.int64]
    first: NDArray[np.int64]
    may_move: NDArray[np.bool_]
    may_cut: NDArray[np.bool_]
    may_be_whole: NDArray[np.bool_]
    fixed: NDArray[np.int64]
    prices: Prices

    @property
    def world_size(self) -> int:
        """W."""
        return self.problem.topology.world_size

    @cached_property
    def node_ranks(self) -> tuple[NDArray[np.int64], ...]:
        """The ranks of each node, ascending."""
        topology = self.problem.topology
        return tuple(np.array(topology.ranks_of(node)) for node in topology.nodes)

    def rows(self, unit: int | NDArray[np.int64], granules: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows [...] of so many granules of units [...]."""
        return np.where(granules > 0, self.first[unit] + granules, NOTHING)

    def fixed_rows(self, unit: int, form: int) -> NDArray[np.int64]:
        """Rows [W] of a unit in a form that lies on given ranks."""
        block, last = self.fixed[unit, form]
        ranks = self.node_ranks[form - Form.NODE] if form >= Form.NODE else np.arange(self.world_size)
        rows = np.full(self.world_size, NOTHING)
        rows[ranks] = block
        rows[ranks[-1]] = last
        return rows

    def form_rows(self, unit: int, form: int, granules: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows [W] of a unit in any form, with granules [W] if it is free."""
        return self.rows(unit, granules) if form == Form.FREE else self.fixed_rows(unit, form)

    def fixed_forms(self, unit: int) -> list[int]:
        """The forms on given ranks that a unit may take."""
        return [int(form) for form in np.flatnonzero(self.fixed[unit, :, 0] != NOTHING)]


def build_catalogue(problem: PlanningProblem, estimator: AdditiveEstimator, units: Sequence[Unit]) -> Catalogue:
    """The catalogue of a problem's units (`placement.build_units`)."""
    listing = _Listing(problem)
    num_forms, world_size = Form.NODE + len(problem.topology.nodes), problem.topology.world_size
    first, fixed = np.zeros(len(units), dtype=np.int64), np.full((len(units), num_forms, 2), NOTHING)
    may_move = np.zeros((len(units), world_size), dtype=bool)
    may_cut, may_be_whole = np.zeros((2, len(units)), dtype=bool)
    granules = np.array([_granules(problem, unit.names) for unit in units], dtype=np.int64)
    for index, unit in enumerate(units):
        types = _free_types(problem, unit)
        may_be_whole[index], may_cut[index] = (each in types for each in FREE_TYPES)
        may_move[index, unit_ranks(problem, unit.names)] = True
        first[index] = listing.add_columns(unit, int(granules[index]), types) - 1
        for option in unit.options:
            if not option.is_free:
                form = _form(problem, option)
                known = fixed[index, Form.NODE :, :].max(axis=0) if form > Form.NODE else np.zeros(2)
                fixed[index, form] = known if known[0] else listing.add_blocks(option)
    return Catalogue(
        problem, estimator, tuple(units), granules, first, may_move, may_cut, may_be_whole, fixed,
        listing.price(estimator),
    )  # fmt: skip


def _granules(problem: PlanningProblem, names: tuple[str, ...]) -> int:
    return gcd(*(problem.tables[name].embedding_dim // DIM_MULTIPLE for name in names))


def _free_types(problem: PlanningProblem, unit: Unit) -> list[ShardingType]:
    rules = [problem.rules[name].sharding_types for name in unit.names]
    return [each for each in FREE_TYPES if all(types is None or each in types for types in rules)]


def _form(problem: PlanningProblem, option: UnitOption) -> int:
    if option.sharding_type is ShardingType.TABLE_ROW_WISE:
        return Form.NODE + int(problem.devices.node_index[option.ranks[0]])
    return Form.ROWS if option.sharding_type is ShardingType.ROW_WISE else Form.COPIES


class _Listing:
    """Shards of the rows to come; a row may be several, one of each table of the unit."""

    def __init__(self, problem: PlanningProblem) -> None:
        self.problem = problem
        self.num_rows = NOTHING + 1
        self.parts: list[tuple[NDArray[np.int64], ShardArrays]] = []

    def add_columns(self, unit: Unit, num_granules: int, types: list[ShardingType]) -> int:
        """Lists 1 to `num_granules` granules; gives the row of one."""
        counts = np.arange(1, num_granules + 1)
        codes = np.full(num_granules, TYPE_CODE[ShardingType.COLUMN_WISE])
        if ShardingType.TABLE_WISE in types:
            codes[-1] = TYPE_CODE[ShardingType.TABLE_WISE]
        for name in unit.names:
            table = self.problem.tables[name]
            self._add(
                self.num_rows + counts - 1,
                ShardArrays(
                    table=np.full(num_granules, self.problem.index_of[name]),
                    rank=np.zeros(num_granules, dtype=np.int64),
                    type_code=codes,
                    num_rows=np.full(num_granules, float(table.num_embeddings)),
                    num_cols=(counts * (table.embedding_dim // num_granules)).astype(np.float64),
                ),
            )
        self.num_rows += num_granules
        return self.num_rows - num_granules

    def add_blocks(self, option: UnitOption) -> tuple[int, int]:
        """Lists the first and the last shard of each table; gives the rows of both."""
        is_cut = option.sharding_type is not ShardingType.DATA_PARALLEL
        tables = [part.table for part in option.parts]
        num_rows = np.array([table.num_embeddings for table in tables], dtype=np.float64)
        block = np.ceil(num_rows / option.num_shards) if is_cut else num_rows
        last = num_rows - block * (option.num_shards - 1) if is_cut else num_rows
        for row, rank, rows_held in ((self.num_rows, 0, block), (self.num_rows + 1, -1, last)):
            self._add(
                np.full(len(tables), row),
                ShardArrays(
                    table=np.array([self.problem.index_of[table.name] for table in tables], dtype=np.int64),
                    rank=np.full(len(tables), option.ranks[rank]),
                    type_code=np.full(len(tables), TYPE_CODE[option.sharding_type]),
                    num_rows=rows_held,
                    num_cols=np.array([table.embedding_dim for table in tables], dtype=np.float64),
                ),
            )
        self.num_rows += 2
        return self.num_rows - 2, self.num_rows - 1

    def price(self, estimator: AdditiveEstimator) -> Prices:
        """The price list."""
        row = np.concatenate([row for row, _ in self.parts])
        columns = zip(*(vars(shards).values() for _, shards in self.parts), strict=True)
        shards = ShardArrays(*(np.concatenate(each) for each in columns))
        of_shards = estimator.shard_loads(self.problem, shards)
        loads, num_bytes = np.zeros((self.num_rows, of_shards.shape[1])), np.zeros(self.num_rows, dtype=np.int64)
        np.add.at(loads, row, of_shards)
        np.add.at(num_bytes, row, shard_bytes(self.problem, shards))
        return Prices(loads, num_bytes)

    def _add(self, rows: NDArray[np.int64], shards: ShardArrays) -> None:
        self.parts.append((rows, shards))
