"""Running jobs as telemetry would see them, made up by the model itself with what went wrong planted into it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.cost.analytic import AnalyticEstimator
from planner.cost.estimator import COMMS_PHASES, LOOKUP_PHASES, PHASES
from planner.plan import ShardingPlan, TablePlacement
from planner.problem import PlanningProblem
from planner.replan import MovePrice, Observation, ReplanSettings
from planner.replan.observed import observed_problem
from planner.sharding import Shard, ShardingType
from planner.tables import OptimizerKind, TableSpec, Workload
from planner.topology import Device, DeviceType, Link, Topology

ESTIMATOR = AnalyticEstimator()
SETTINGS = ReplanSettings(margin=1.2, budget_s=1.0, seed=0)
CHEAP = MovePrice(fixed_ms=1.0, bytes_per_s=1e12)
GIB = 1 << 30
ALL_STEPS = 1_000_000

LOOKUPS = [PHASES.index(phase) for phase in LOOKUP_PHASES]
DENSE = [PHASES.index(phase) for phase in ("dense_forward", "dense_backward", "optimizer")]
COLLECTIVES = [PHASES.index(phase) for phase in COMMS_PHASES]


def make_topology(num_ranks: int, hbm_bytes: int = 80 * GIB) -> Topology:
    """Equal devices on one node with fast links."""
    devices = tuple(
        Device(
            rank=rank,
            node="node-0",
            local_rank=rank,
            type=DeviceType.CUDA,
            kind="test",
            hbm_bytes=hbm_bytes,
            reserved_bytes=0,
            hbm_bytes_per_s=1e12,
            flops_per_s=1e13,
            launch_s=1e-6,
        )
        for rank in range(num_ranks)
    )
    return Topology(f"1x{num_ranks}", devices, Link(3e11, 1e-6), Link(5e10, 2e-6))


def make_problem(
    shapes: list[tuple[int, int, float]], num_ranks: int, hbm_bytes: int = 80 * GIB, batch_size: int = 2048
) -> PlanningProblem:
    """Tables of (rows, columns, pooling factor)."""
    tables = tuple(
        TableSpec(f"table_{index}", rows, cols, (f"feature_{index}",), pooling)
        for index, (rows, cols, pooling) in enumerate(shapes)
    )
    workload = Workload(
        tables,
        batch_size,
        OptimizerKind.ROWWISE_ADAGRAD,
        dense_parameters=100_000,
        dense_flops_per_sample=1e5,
    )
    return PlanningProblem(workload, make_topology(num_ranks, hbm_bytes))


def whole_on(problem: PlanningProblem, ranks: list[int]) -> ShardingPlan:
    """Each table whole on a rank."""
    placements = tuple(
        TablePlacement(
            table.name,
            ShardingType.TABLE_WISE,
            (Shard(rank, 0, table.num_embeddings, 0, table.embedding_dim),),
        )
        for table, rank in zip(problem.workload.tables, ranks, strict=True)
    )
    return ShardingPlan(problem.topology.world_size, placements)


@dataclass(frozen=True)
class Trouble:
    """What is wrong with a job.

    Attributes:
        hot: Factor on the ids of tables.
        slow: Factor on all own work of ranks.
        noise: Standard deviation of the logarithm of every observed figure.
    """

    hot: Mapping[str, float] = field(default_factory=dict)
    slow: Mapping[int, float] = field(default_factory=dict)
    noise: float = 0.0


def observe(
    problem: PlanningProblem, plan: ShardingPlan, trouble: Trouble | None = None, rng: np.random.Generator | None = None
) -> Observation:
    """What telemetry sees of a job."""
    trouble = trouble or Trouble()
    ids = table_ids(problem, trouble.hot)
    phases_ms = true_phases_ms(problem, plan, trouble)
    if rng is not None:
        phases_ms = phases_ms * np.exp(trouble.noise * rng.standard_normal(phases_ms.shape))
    phases_ms[COLLECTIVES] = phases_ms[COLLECTIVES].max(axis=1, keepdims=True)
    return Observation(phases_ms, ids, {})


def true_phases_ms(problem: PlanningProblem, plan: ShardingPlan, trouble: Trouble) -> NDArray[np.float64]:
    """What a step really takes under any plan, [P, W]."""
    hot = observed_problem(problem, Observation(np.zeros((len(PHASES), 1)), table_ids(problem, trouble.hot), {}), ())
    phases_ms = ESTIMATOR.estimate(hot, plan).phases_ms.copy()
    for rank, factor in trouble.slow.items():
        phases_ms[[*LOOKUPS, *DENSE], rank] *= factor
    return phases_ms


def true_step_ms(problem: PlanningProblem, plan: ShardingPlan, trouble: Trouble) -> float:
    """The step that a plan really gives."""
    return float(true_phases_ms(problem, plan, trouble).max(axis=1).sum())


def table_ids(problem: PlanningProblem, hot: Mapping[str, float]) -> dict[str, float]:
    """Ids of the global batch by table."""
    ids = problem.arrays.samples * problem.arrays.ids_per_sample
    return {
        table.name: float(each) * hot.get(table.name, 1.0)
        for table, each in zip(problem.workload.tables, ids, strict=True)
    }
