"""Planning tasks as NeuroShard draws them: tables of a pool, widths at random, together no larger than memory."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from launcher.bench.cost_data import FLOAT_BYTES, SAMPLES, mean_uses, read_tables
from planner.access import COVERAGE_ROWS, AccessStatistics, Pooling
from planner.cost.features import MEAN_USES
from planner.errors import PlanningError
from planner.problem import PlanningProblem, TableConstraint
from planner.tables import MemoryCount, OptimizerKind, TableSpec, Workload
from planner.topology import Topology

DIMS = (4, 8, 16, 32, 64, 128)
"""Widths that a table may get. Source: NeuroShard (arXiv 2305.01868), `tools/gen_tasks.py`."""

FILL = 15 / 16
"""Tables of a task fill at most this share of the memory. Source: the same, 15 GiB for 4 devices of 4 GiB."""

FILLED_RANKS = 4
"""Tasks for more devices are not larger than for so many. Source: the same: 15 GiB for 4 and for 8 devices."""

MAX_DRAWS, CHUNK_DRAWS = 1 << 18, 1 << 12
"""Draws of a task before it is fitted table by table, and how many are made at once.

59 tables of Meta's pool of 2021 are at most 15 GiB in 1 of 15,000 draws, 80 in none of a million.
"""

MAX_REDRAWS = 100_000
"""Single tables drawn again for one task before it counts as impossible."""


@dataclass(frozen=True)
class PoolTable:
    """One table of a pool, without a width.

    Attributes:
        index: Its row in the pool's file, from 0.
        num_embeddings: Rows.
        pooling_factor: Mean ids a sample.
        reuse: Shares of a batch's distinct rows by how often the batch uses them, bins as in
            `planner.lookups.NUM_REUSE_BINS`; all 0 where no row is looked up.
    """

    index: int
    num_embeddings: int
    pooling_factor: float
    reuse: tuple[float, ...]

    @property
    def distinct_rows(self) -> float:
        """Distinct rows that one sample adds to a batch of the size that `reuse` is of."""
        uses = float(mean_uses(np.array(self.reuse)))
        return self.pooling_factor / uses if uses else 0.0


@dataclass(frozen=True)
class PlanningTask:
    """Tables to place.

    Attributes:
        tables: As drawn; one may occur more than once.
        dims: Columns of each.
        global_batch: Samples of a step over all ranks, and of the batch that the reuse bins are of. Device memory
            is meant for `SAMPLES`: a task of smaller batch and tables has as many times less.
        num_redrawn: How often a table was drawn again alone, see `draw_tasks`; 0 for a task drawn as a whole.
    """

    tables: tuple[PoolTable, ...]
    dims: tuple[int, ...]
    global_batch: int = SAMPLES
    num_redrawn: int = 0

    @property
    def num_tables(self) -> int:
        """Number of tables."""
        return len(self.tables)

    @property
    def scale(self) -> float:
        """Batch, rows and memory over those of a task as drawn."""
        return self.global_batch / SAMPLES

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, fp32."""
        return sum(table.num_embeddings * dim for table, dim in zip(self.tables, self.dims, strict=True)) * FLOAT_BYTES

    @property
    def table_names(self) -> tuple[str, ...]:
        """Names of the tables in the problem: position and row in the pool."""
        return tuple(f"table_{position}_pool_{table.index}" for position, table in enumerate(self.tables))


def read_pool(path: Path) -> tuple[PoolTable, ...]:
    """The tables of a CSV file (see `cost_data.read_tables`, also for what raises)."""
    return tuple(
        PoolTable(index, int(rows), float(pooling_factor), tuple(float(share) for share in reuse))
        for index, (rows, pooling_factor, *reuse) in enumerate(read_tables(path))
    )


def default_cap_bytes(memory_bytes: int, num_ranks: int) -> int:
    """Bytes that the tables of a task may have together, where each of so many ranks has `memory_bytes`.

    >>> [default_cap_bytes(4 << 30, ranks) >> 30 for ranks in (4, 8, 16)]
    [15, 15, 15]
    """
    return int(FILL * memory_bytes * min(num_ranks, FILLED_RANKS))


def draw_tasks(
    pool: tuple[PoolTable, ...],
    num_tables: tuple[int, int],
    num_tasks: int,
    seed: int,
    cap_bytes: int,
    dims: tuple[int, ...] = DIMS,
) -> tuple[PlanningTask, ...]:
    """Tasks of a seed; each is the same whatever the number of tasks.

    The number of tables is drawn once, then tables (with replacement) and widths, all uniform, again and again until
    they are at most `cap_bytes` of fp32 together. Where `MAX_DRAWS` are not enough (many tables), the largest table of
    the last draw is drawn again until the rest fits: such tasks have fewer large tables than the pool.
    Source: NeuroShard (arXiv 2305.01868), `tools/gen_tasks.py`, which draws for ever.

    Args:
        pool: The tables.
        num_tables: Fewest and most tables of a task, both possible.
        num_tasks: How many tasks.
        seed: The same gives the same tasks.
        cap_bytes: Most bytes of weights of a task.
        dims: Widths to draw from.

    Raises:
        PlanningError: So many tables cannot be that small (reason `workload`).
    """
    rows = np.array([table.num_embeddings for table in pool], dtype=np.float64)
    return tuple(_draw_task(pool, rows, num_tables, (seed, index), cap_bytes, dims) for index in range(num_tasks))


def build_problem(
    task: PlanningTask,
    topology: Topology,
    memory: MemoryCount = MemoryCount.WEIGHTS,
    optimizer: OptimizerKind = OptimizerKind.ROWWISE_ADAGRAD,
    constraints: tuple[TableConstraint, ...] = (),
) -> PlanningProblem:
    """The problem of placing a task's tables, with no dense part.

    Args:
        task: The tables.
        topology: The devices for a task as drawn; their memory is scaled as the task is.
        memory: What counts against it.
        optimizer: Fused into the backward pass.
        constraints: As in `PlanningProblem`.
    """
    batch_size = max(1, round(task.global_batch / topology.world_size))
    access = [build_access(table, batch_size * topology.world_size) for table in task.tables]
    named = zip(task.table_names, task.tables, task.dims, access, strict=True)
    tables = tuple(
        TableSpec(name, table.num_embeddings, dim, (f"{name}_ids",), table.pooling_factor, known)
        for name, table, dim, known in named
    )
    workload = Workload(tables, batch_size, optimizer, memory=memory)
    return PlanningProblem(workload, _scale_memory(topology, task.scale), constraints)


def build_access(table: PoolTable, samples: int) -> AccessStatistics:
    """How a batch of `samples` looks rows up: by the reuse bins, whose mean use stands for all rows of a bin.

    The coverage curve, which tells what smaller batches look up, has the rows of the batch and no others.
    """
    distinct_rows = min(samples * table.distinct_rows, float(table.num_embeddings))
    return AccessStatistics(
        samples=samples,
        pooling=Pooling(*[table.pooling_factor] * 5),
        distinct_rows=distinct_rows,
        reuse=table.reuse,
        used_rows=max(1.0, distinct_rows),
        coverage=tuple(_coverage(np.array(table.reuse), distinct_rows)),
    )


def _coverage(reuse: NDArray[np.float64], distinct_rows: float) -> Iterable[float]:
    """Shares of the lookups that fall on the `COVERAGE_ROWS` hottest of the distinct rows."""
    rows, lookups = distinct_rows * reuse[::-1], (reuse * MEAN_USES)[::-1]
    if not lookups.any():
        return np.ones(len(COVERAGE_ROWS)).tolist()
    shares = np.cumsum(lookups) / lookups.sum()
    hottest = np.interp(COVERAGE_ROWS, np.concatenate([[0.0], np.cumsum(rows)]), np.concatenate([[0.0], shares]))
    return np.minimum(hottest, 1.0).tolist()


def _scale_memory(topology: Topology, scale: float) -> Topology:
    if scale == 1:
        return topology
    devices = tuple(
        replace(device, hbm_bytes=int(device.hbm_bytes * scale), reserved_bytes=int(device.reserved_bytes * scale))
        for device in topology.devices
    )
    return replace(topology, devices=devices)


def _draw_task(
    pool: tuple[PoolTable, ...],
    rows: NDArray[np.float64],
    num_tables: tuple[int, int],
    seed: tuple[int, int],
    cap_bytes: int,
    dims: tuple[int, ...],
) -> PlanningTask:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(num_tables[0], num_tables[1] + 1))
    for _ in range(0, MAX_DRAWS, CHUNK_DRAWS):
        drawn = rng.integers(len(pool), size=(CHUNK_DRAWS, count))
        widths = rng.choice(dims, size=(CHUNK_DRAWS, count))
        fits = (rows[drawn] * widths).sum(axis=1) * FLOAT_BYTES <= cap_bytes
        if fits.any():
            first = int(fits.argmax())
            return _task(pool, drawn[first], widths[first])
    return _shrink(rng, pool, rows, (drawn[-1], widths[-1]), cap_bytes, dims)


def _shrink(
    rng: np.random.Generator,
    pool: tuple[PoolTable, ...],
    rows: NDArray[np.float64],
    drawn: tuple[NDArray[np.int64], NDArray[np.int64]],
    cap_bytes: int,
    dims: tuple[int, ...],
) -> PlanningTask:
    """The task of drawn tables and widths, of which the largest was drawn again until all fit."""
    tables, widths = drawn
    for num_redrawn in range(MAX_REDRAWS):
        num_bytes = rows[tables] * widths * FLOAT_BYTES
        if num_bytes.sum() <= cap_bytes:
            return replace(_task(pool, tables, widths), num_redrawn=num_redrawn)
        largest = int(num_bytes.argmax())
        tables[largest], widths[largest] = rng.integers(len(rows)), rng.choice(dims)
    raise PlanningError(
        f"tasks: no {len(tables)} tables of the pool with widths {', '.join(map(str, dims))} were found that are at "
        f"most {cap_bytes / 2**30:.3g} GiB together; ask for fewer tables, or raise the total size",
        reason="workload",
    )


def _task(pool: tuple[PoolTable, ...], tables: NDArray[np.int64], widths: NDArray[np.int64]) -> PlanningTask:
    return PlanningTask(tuple(pool[index] for index in tables), tuple(int(width) for width in widths))
