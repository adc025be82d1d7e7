"""Made-up planning tasks to train the policy on: tables, devices, links and batches over all that a job may have.

Nothing here is of a real model, so any real task is one that the policy never saw. Rows, ids and uses are spread over
the ranges that published statistics show (facebookresearch/dlrm_datasets, 2021: 100 to 1.3e7 rows, 0 to 193 ids a
sample); the tasks of one draw share their devices, so that their episodes are priced in one call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.access import COVERAGE_ROWS, AccessStatistics, Pooling
from planner.cost.analytic import AnalyticDense, AnalyticEstimator
from planner.cost.estimator import AdditiveEstimator
from planner.cost.learned import LearnedLookups
from planner.cost.pretrained import load_pretrained
from planner.cost.step import StepEstimator
from planner.errors import PlanningError
from planner.memory import replicated_bytes
from planner.occupancy import REUSE_EDGES
from planner.policy.preparation import build_tasks
from planner.policy.tasks import Tasks
from planner.problem import PlanningProblem
from planner.search.placement import build_units, smallest_bytes
from planner.tables import MemoryCount, OptimizerKind, TableSpec, Workload
from planner.topology import Device, DeviceType, Link, Topology

DIMS = (4, 8, 16, 32, 64, 128)
"""Widths of tables. Source: NeuroShard (arXiv 2305.01868), `tools/gen_tasks.py`."""

ROWS, IDS = (1e2, 3e7), (0.5, 200.0)
"""Fewest and most rows of a table, and ids of a sample."""

RANKS = (2, 3, 4, 4, 6, 8, 8, 8, 12, 16, 16, 24, 32, 64)
"""Numbers of ranks, each as likely as it is often here."""

UNITS = (10, 80)
"""Fewest and most tables of a task."""

BATCH = (1 << 12, 1 << 16)
"""Smallest and largest global batch."""

FILL = (0.3, 0.92)
"""Least and most share of the devices' memory that tables take in their smallest form."""

ROOM = 1.5
"""A device holds at least so many times the largest shard that cannot be avoided."""

LEARNED_SHARE, UNEQUAL_SHARE, SEVERAL_NODES_SHARE = 0.6, 0.3, 0.25
"""How often costs are learned ones, devices unequal, nodes more than one."""

CPU_LINK = Link(6e8, 3e-4)
"""Between processes of one machine. Source: gloo all-to-alls, as in `configs/hardware/cpu_x2.yaml`."""

GPU_BANDWIDTHS, GPU_LAUNCH_S = (6e11, 2.039e12, 3.35e12), 7e-6
"""Memory bandwidths of GPUs and a kernel's launch. Source: A10, A100, H100 data sheets; `configs/hardware/`."""

GPU_LINK = Link(3e11, 1.2e-5)
"""Within a node. Source: NVLink 3, A100 data sheet; latency as in `configs/hardware/`."""


@dataclass(frozen=True)
class DrawnTable:
    """A table without a width.

    Attributes:
        num_embeddings: Rows.
        pooling_factor: Ids of a sample.
        access: How its rows are looked up.
    """

    num_embeddings: int
    pooling_factor: float
    access: AccessStatistics | None


DrawTables = Callable[[np.random.Generator, int, int], Sequence[DrawnTable]]
"""Draws so many tables for a global batch of so many samples."""


def make_tables(rng: np.random.Generator, count: int, samples: int) -> Sequence[DrawnTable]:
    """Tables of log-uniform rows, heavy-tailed ids and Zipf's law of uses, exponents 0 to 1.3."""
    rows = np.exp(rng.uniform(np.log(ROWS[0]), np.log(ROWS[1]), count)).astype(np.int64)
    # Half of the tables are large, as in the published statistics, whose median is near their maximum.
    is_large = rng.random(count) < rng.uniform(0.0, 0.9)
    rows = np.where(is_large, (ROWS[1] * rng.beta(2, 6, count)).astype(np.int64) + 1, rows)
    ids = np.clip(np.exp(rng.normal(1.5, 1.3, count)), *IDS)
    exponents = rng.uniform(0.0, 1.3, count)
    return [
        DrawnTable(int(row), float(each), zipf_access(int(row), float(each), float(exponent)))
        for row, each, exponent in zip(rows, ids, exponents, strict=True)
    ]


def zipf_access(num_rows: int, ids_per_sample: float, exponent: float) -> AccessStatistics:
    """Uses in proportion to rank^-exponent: the share of the n hottest rows is the integral of that from 1/2 on.

    The figures of a batch of one sample are those of its ids, all different.
    """
    rows = np.minimum(COVERAGE_ROWS, num_rows) + 0.5
    power = 1.0 - exponent
    mass = np.log(rows / 0.5) if power == 0 else (rows**power - 0.5**power) / power
    reuse = np.zeros(len(REUSE_EDGES) + 1)
    reuse[0] = 1.0
    return AccessStatistics(
        samples=1,
        pooling=Pooling(*[ids_per_sample] * 5),
        distinct_rows=min(ids_per_sample, float(num_rows)),
        reuse=tuple(reuse),
        used_rows=float(num_rows),
        coverage=tuple(np.minimum(mass / mass[-1], 1.0)),
    )


@dataclass(frozen=True)
class _Cluster:
    """Devices and what prices plans for them."""

    topology: Topology
    estimator: AdditiveEstimator


@dataclass(frozen=True)
class TaskSource:
    """Draws tasks without end.

    Attributes:
        draw_tables: Where tables come from.
        ranks: Numbers of ranks to choose from.
        units: Fewest and most tables of a task.
    """

    draw_tables: DrawTables = make_tables
    ranks: tuple[int, ...] = RANKS
    units: tuple[int, int] = UNITS

    def draw(self, rng: np.random.Generator, num_tasks: Callable[[int, int], int]) -> Tasks:
        """Tasks that share devices, batch and number of tables.

        Args:
            rng: The same state gives the same tasks.
            num_tasks: How many, given ranks and tables.
        """
        world_size = int(rng.choice(self.ranks))
        num_units = int(rng.integers(self.units[0], self.units[1] + 1))
        samples = int(np.exp(rng.uniform(*np.log(BATCH))))
        cluster = _draw_cluster(rng, world_size)
        workload = _draw_workload(rng, max(1, samples // world_size))
        problems = [
            self._draw_problem(rng, cluster.topology, workload, num_units)
            for _ in range(num_tasks(world_size, num_units))
        ]
        return build_tasks(problems, cluster.estimator)

    def _draw_problem(
        self, rng: np.random.Generator, topology: Topology, workload: Workload, num_units: int
    ) -> PlanningProblem:
        dims = rng.choice(DIMS, size=rng.integers(1, len(DIMS) + 1), replace=False)
        drawn = self.draw_tables(rng, num_units, workload.batch_size * topology.world_size)
        tables = tuple(
            TableSpec(f"t{index}", each.num_embeddings, int(dim), (f"f{index}",), each.pooling_factor, each.access)
            for index, (each, dim) in enumerate(zip(drawn, rng.choice(dims, num_units), strict=True))
        )
        roomy = replace(topology, devices=tuple(replace(each, hbm_bytes=1 << 60) for each in topology.devices))
        problem = PlanningProblem(replace(workload, tables=tables), roomy)
        return replace(problem, topology=_with_memory(rng, problem))


def _with_memory(rng: np.random.Generator, problem: PlanningProblem) -> Topology:
    """Devices that the tables fill to a drawn share, with room for the largest shard that cannot be avoided."""
    units = build_units(problem)
    needed = smallest_bytes(problem, units).sum() / rng.uniform(*FILL)
    unavoidable = max(min(int(group[0].slot_bytes(problem).max()) for group in unit.choices) for unit in units)
    world_size = problem.topology.world_size
    is_unequal = rng.random() < UNEQUAL_SHARE
    shares = rng.dirichlet(np.full(world_size, 20.0)) if is_unequal else np.full(world_size, 1 / world_size)
    memory = replicated_bytes(problem) + np.maximum(needed * shares, ROOM * unavoidable)
    devices = zip(problem.topology.devices, memory.tolist(), strict=True)
    return replace(problem.topology, devices=tuple(replace(each, hbm_bytes=int(num)) for each, num in devices))


def _draw_cluster(rng: np.random.Generator, world_size: int) -> _Cluster:
    """One node or several, equal devices or not, processors with learned costs or GPUs by their data sheets."""
    sizes = [size for size in range(2, world_size // 2 + 1) if world_size % size == 0]
    per_node = int(rng.choice(sizes)) if sizes and rng.random() < SEVERAL_NODES_SHARE else world_size
    speeds = np.exp(rng.normal(0, 0.25, world_size)) if rng.random() < UNEQUAL_SHARE else np.ones(world_size)
    link_speed = float(np.exp(rng.uniform(np.log(0.3), np.log(10.0))))
    if rng.random() < LEARNED_SHARE:
        return _processors(rng, per_node, speeds, link_speed)
    bandwidth = float(rng.choice(GPU_BANDWIDTHS))
    links = _links(rng, GPU_LINK, link_speed)
    return _Cluster(_topology(DeviceType.CUDA, per_node, bandwidth * speeds, GPU_LAUNCH_S, links), AnalyticEstimator())


def _processors(rng: np.random.Generator, per_node: int, speeds: NDArray[np.float64], link_speed: float) -> _Cluster:
    model = load_pretrained(DeviceType.CPU)
    if model is None:
        raise PlanningError("no lookup weights are shipped for cpu: `shardwright pretrain cost`", reason="weights")
    topology = _topology(DeviceType.CPU, per_node, 1.2e9 * speeds, 2e-4, _links(rng, CPU_LINK, link_speed))
    canary_ms = float(model.card["canary_ms"]) / speeds
    return _Cluster(topology, StepEstimator(LearnedLookups(model, canary_ms), AnalyticDense()))


def _links(rng: np.random.Generator, link: Link, speed: float) -> tuple[Link, Link]:
    """Links within a node and, up to ten times slower, between nodes."""
    within = Link(link.bytes_per_s * speed, link.latency_s)
    return within, Link(within.bytes_per_s / rng.uniform(1, 10), 2 * link.latency_s)


def _topology(
    device_type: DeviceType, per_node: int, bandwidths: NDArray[np.float64], launch_s: float, links: tuple[Link, Link]
) -> Topology:
    devices = tuple(
        Device(
            rank=rank,
            node=f"node-{rank // per_node}",
            local_rank=rank % per_node,
            type=device_type,
            kind=f"kind-{rank}",
            hbm_bytes=1,
            reserved_bytes=0,
            hbm_bytes_per_s=float(bandwidth),
            flops_per_s=1e13,
            launch_s=launch_s,
        )
        for rank, bandwidth in enumerate(bandwidths)
    )
    return Topology("made up", devices, *links)


def _draw_workload(rng: np.random.Generator, batch_size: int) -> Workload:
    """A workload with one table that stands for those to come."""
    optimizers = [OptimizerKind.ROWWISE_ADAGRAD, OptimizerKind.SGD, OptimizerKind.ADAM]
    return Workload(
        tables=(TableSpec("t0", 1, 4, ("f0",)),),
        batch_size=batch_size,
        optimizer=optimizers[int(rng.choice(len(optimizers), p=(0.6, 0.3, 0.1)))],
        memory=MemoryCount.FULL if rng.random() < 0.5 else MemoryCount.WEIGHTS,
    )
