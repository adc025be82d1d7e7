"""Where every unit lies at one moment of a search, with what each rank has to carry; it changes in place."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.memory import capacity_bytes
from planner.plan import ShardingPlan, TablePlacement
from planner.search.catalogue import Catalogue, Form
from planner.sharding import Shard, ShardingOption, ShardingType


@dataclass(eq=False)
class Assignment:
    """The forms and granules of U units, and the sums over W ranks that follow from them.

    Attributes:
        catalogue: The forms that there are.
        form: int64 [U], `Form`.
        granules: int64 [U, W], of free units; 0 elsewhere.
        rows: int64 [U, W], rows of the catalogue.
        loads: float64 [W, K].
        free_bytes: int64 [W]; negative where a rank holds more than it can.
    """

    catalogue: Catalogue
    form: NDArray[np.int64]
    granules: NDArray[np.int64]
    rows: NDArray[np.int64]
    loads: NDArray[np.float64]
    free_bytes: NDArray[np.int64]

    @classmethod
    def of_plan(cls, catalogue: Catalogue, plan: ShardingPlan) -> "Assignment":
        """The assignment of a plan; column shards of a table that share a rank become one."""
        placed = {placement.name: placement for placement in plan.tables}
        shape = len(catalogue.units), catalogue.world_size
        granules, form = np.zeros(shape, dtype=np.int64), np.zeros(len(catalogue.units), dtype=np.int64)
        for index, unit in enumerate(catalogue.units):
            placement = placed[unit.names[0]]
            form[index] = _form_of(catalogue, placement)
            if form[index] == Form.FREE:
                width = sum(shard.num_cols for shard in placement.shards) // int(catalogue.num_granules[index])
                for shard in placement.shards:
                    granules[index, shard.rank] += shard.num_cols // width
        return cls.of_forms(catalogue, form, granules)

    @classmethod
    def of_forms(cls, catalogue: Catalogue, form: NDArray[np.int64], granules: NDArray[np.int64]) -> "Assignment":
        """The assignment of forms [U], with granules [U, W] of the free ones."""
        every_unit = np.arange(len(form))[:, None]
        rows = catalogue.rows(every_unit, granules)
        for unit in np.flatnonzero(form != Form.FREE):
            rows[unit] = catalogue.fixed_rows(int(unit), int(form[unit]))
        found = cls(catalogue, form, granules, rows, np.zeros(0), capacity_bytes(catalogue.problem))
        found.sum_up()
        return found

    def copy(self) -> "Assignment":
        """An independent copy."""
        return Assignment(
            self.catalogue,
            self.form.copy(),
            self.granules.copy(),
            self.rows.copy(),
            self.loads.copy(),
            self.free_bytes.copy(),
        )

    def place(self, unit: int, form: int, granules: NDArray[np.int64]) -> None:
        """Gives a unit another form, with granules [W] if it is free; sums follow."""
        rows = self.catalogue.form_rows(unit, form, granules)
        at = np.flatnonzero(rows != self.rows[unit])
        prices, old, new = self.catalogue.prices, self.rows[unit, at], rows[at]
        self.loads[at] += prices.loads[new] - prices.loads[old]
        self.free_bytes[at] -= prices.num_bytes[new] - prices.num_bytes[old]
        self.form[unit], self.granules[unit], self.rows[unit] = form, granules, rows

    def sum_up(self) -> None:
        """Sums anew over all units, free of the rounding of many changes."""
        prices = self.catalogue.prices
        self.loads = np.stack([prices.loads[rows].sum(axis=0) for rows in self.rows.T])
        held = prices.num_bytes[self.rows].sum(axis=0)
        self.free_bytes = capacity_bytes(self.catalogue.problem) - held

    @property
    def overflow_bytes(self) -> int:
        """Bytes by which ranks exceed their memory, in total."""
        return int(np.maximum(-self.free_bytes, 0).sum())

    def to_plan(self) -> ShardingPlan:
        """The plan, tables in the workload's order."""
        problem = self.catalogue.problem
        placements = [
            self._placement(index, name) for index, unit in enumerate(self.catalogue.units) for name in unit.names
        ]
        placements.sort(key=lambda placement: problem.index_of[placement.name])
        return ShardingPlan(problem.topology.world_size, tuple(placements))

    def _placement(self, unit: int, name: str) -> TablePlacement:
        table = self.catalogue.problem.tables[name]
        if self.form[unit] == Form.FREE:
            return _free_placement(self, unit, name)
        ranks = np.flatnonzero(self.rows[unit]).tolist()
        sharding_type = {Form.ROWS: ShardingType.ROW_WISE, Form.COPIES: ShardingType.DATA_PARALLEL}.get(
            Form(min(int(self.form[unit]), Form.NODE)), ShardingType.TABLE_ROW_WISE
        )
        option = ShardingOption(table, sharding_type, len(ranks), tuple(ranks))
        return TablePlacement(name, sharding_type, option.shards(ranks))


def _form_of(catalogue: Catalogue, placement: TablePlacement) -> int:
    if placement.sharding_type is ShardingType.ROW_WISE:
        return Form.ROWS
    if placement.sharding_type is ShardingType.DATA_PARALLEL:
        return Form.COPIES
    if placement.sharding_type is ShardingType.TABLE_ROW_WISE:
        return Form.NODE + int(catalogue.problem.devices.node_index[placement.ranks[0]])
    return Form.FREE


def _free_placement(assignment: Assignment, unit: int, name: str) -> TablePlacement:
    catalogue, granules = assignment.catalogue, assignment.granules[unit]
    table = catalogue.problem.tables[name]
    ranks = np.flatnonzero(granules)
    widths = granules[ranks] * (table.embedding_dim // int(catalogue.num_granules[unit]))
    offsets = np.cumsum(widths) - widths
    is_whole = len(ranks) == 1 and catalogue.may_be_whole[unit]
    return TablePlacement(
        name,
        ShardingType.TABLE_WISE if is_whole else ShardingType.COLUMN_WISE,
        tuple(
            Shard(int(rank), 0, table.num_embeddings, int(offset), int(width))
            for rank, offset, width in zip(ranks, offsets, widths, strict=True)
        ),
    )
