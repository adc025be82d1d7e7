"""A proven lower bound of the step time of every legal plan."""

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import AdditiveEstimator, LinearBound
from planner.memory import capacity_bytes, shard_bytes
from planner.problem import PlanningProblem
from planner.sharding import ShardingType, is_data_parallel_legal
from planner.shards import TYPE_CODE, ShardArrays
from planner.tables import DIM_MULTIPLE, TableSpec

CHUNK_TABLES = 512
"""Tables whose forms are priced at once, which bounds the memory of the arrays."""


def lower_bound_ms(problem: PlanningProblem, estimator: AdditiveEstimator) -> float:
    """Milliseconds that no plan which `check` accepts can beat under an additive estimator.

    A form of a table is a type with a number of shards. Step = sum over phases of the slowest rank, and each
    phase is at least linear in the loads (`LinearBound`), so for every link class the step is at least each
    of
    1. the sum over tables of the cheapest form's total, spread evenly over all ranks;
    2. for any one table, its cheapest form's largest shard, in all phases;
    3. the sum over phases of the larger of 1 and 2 taken for that phase alone;
    and the largest of these bounds is reported. Constraints and single-device memory remove forms, which
    only makes the minima larger. Forms cover any column widths that are legal, not only the equal ones that
    searches offer.

    Returns:
        The bound; 0 or more.
    """
    bounds = estimator.linear_bounds(problem)
    totals, largest = _priced_forms(problem, estimator, bounds)
    return max(_bound_ms(bound, totals[index], largest[index]) for index, bound in enumerate(bounds))


def _bound_ms(bound: LinearBound, totals: "_Minima", largest: "_Minima") -> float:
    evenly_spread = float(totals.joint.sum())
    one_table = float(largest.joint.max())
    by_phase = float(np.maximum(totals.by_phase.sum(axis=0), largest.by_phase.max(axis=0)).sum())
    return float(bound.constant_ms.sum()) + max(evenly_spread, one_table, by_phase)


class _Minima:
    """Cheapest forms of tables: over all phases together [T] and for each phase alone [T, P]."""

    def __init__(self, forms_ms: NDArray[np.float64], starts: NDArray[np.int64]) -> None:
        self.joint = np.minimum.reduceat(forms_ms.sum(axis=1), starts)
        self.by_phase = np.minimum.reduceat(forms_ms, starts, axis=0)


def _priced_forms(
    problem: PlanningProblem, estimator: AdditiveEstimator, bounds: tuple[LinearBound, ...]
) -> tuple[list[_Minima], list[_Minima]]:
    """Cheapest totals and cheapest largest shards of all tables, one entry a bound."""
    totals: list[list[NDArray[np.float64]]] = [[] for _ in bounds]
    largest: list[list[NDArray[np.float64]]] = [[] for _ in bounds]
    starts: list[NDArray[np.int64]] = []
    num_forms = 0
    tables = problem.workload.tables
    for first in range(0, len(tables), CHUNK_TABLES):
        forms = _Forms.of(problem, tables[first : first + CHUNK_TABLES])
        starts.append(forms.starts + num_forms)
        num_forms += len(forms.num_shards)
        mean_loads = estimator.shard_loads(problem, forms.mean_shard) * forms.num_shards[:, None]
        largest_loads = estimator.shard_loads(problem, forms.largest_shard)
        for index, bound in enumerate(bounds):
            totals[index].append(mean_loads @ bound.of_total.T)
            largest[index].append(largest_loads @ bound.of_shard.T)
    at = np.concatenate(starts)
    return [_Minima(np.concatenate(each), at) for each in totals], [
        _Minima(np.concatenate(each), at) for each in largest
    ]


class _Forms:
    """The forms of some tables, F in all, one entry each.

    Loads are linear in rows and in columns, so a form's total is its mean shard times `num_shards`.

    Attributes:
        starts: int64 [T], position of each table's first form.
        num_shards: float64 [F].
        mean_shard: F shards of mean size.
        largest_shard: F shards of the size that the largest shard has at least.
    """

    def __init__(self, starts: list[int], rows: list[tuple[float, ...]]) -> None:
        columns = np.array(rows, dtype=np.float64).T
        table, type_code = (column.astype(np.int64) for column in columns[:2])
        # All nodes that a form may use are equal, so any rank stands for all.
        rank = np.zeros_like(table)
        self.starts = np.array(starts, dtype=np.int64)
        self.num_shards = columns[2]
        self.mean_shard = ShardArrays(table, rank, type_code, columns[3], columns[4])
        self.largest_shard = ShardArrays(table, rank, type_code, columns[5], columns[6])

    @classmethod
    def of(cls, problem: PlanningProblem, tables: tuple[TableSpec, ...]) -> "_Forms":
        """All legal forms of tables whose largest shard fits on the largest device."""
        rows, owner = [], []
        for position, table in enumerate(tables):
            found = _forms(problem, table)
            rows += found
            owner += [position] * len(found)
        every = cls([], rows)
        fits = shard_bytes(problem, every.largest_shard) <= capacity_bytes(problem).max()
        kept = np.flatnonzero(fits)
        owners = np.asarray(owner)[kept]
        starts = np.searchsorted(owners, np.arange(len(tables)))
        return cls([int(start) for start in starts], [rows[index] for index in kept])


def _forms(problem: PlanningProblem, table: TableSpec) -> list[tuple[float, ...]]:
    """Each form: table, type, number of shards, mean shard's rows and columns, largest shard's."""
    topology, rule = problem.topology, problem.rules[table.name]
    rows, cols, index = table.num_embeddings, table.embedding_dim, problem.index_of[table.name]
    num_quads = cols // DIM_MULTIPLE
    world_size, local_size = topology.world_size, topology.local_world_size
    shapes = [(ShardingType.TABLE_WISE, 1, 1), (ShardingType.DATA_PARALLEL, world_size, 1)]
    shapes += [(ShardingType.COLUMN_WISE, count, count) for count in range(1, num_quads + 1)]
    shapes += [(ShardingType.ROW_WISE, world_size, world_size)]
    shapes += [] if local_size is None else [(ShardingType.TABLE_ROW_WISE, local_size, local_size)]
    found: list[tuple[float, ...]] = []
    for sharding_type, num_shards, cuts in shapes:
        if rule.sharding_types is not None and sharding_type not in rule.sharding_types:
            continue
        if sharding_type is ShardingType.DATA_PARALLEL and not is_data_parallel_legal(problem.workload.optimizer):
            continue
        sizes: tuple[float, ...] = (rows, cols, rows, cols)
        if sharding_type is ShardingType.COLUMN_WISE:
            sizes = (rows, cols / cuts, rows, -(-num_quads // cuts) * DIM_MULTIPLE)
        elif sharding_type is not ShardingType.TABLE_WISE:
            sizes = (rows / cuts, cols, -(-rows // cuts), cols)
        found.append((index, TYPE_CODE[sharding_type], num_shards, *sizes))
    return found
