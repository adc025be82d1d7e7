"""Problems with all that a search has to keep in mind, drawn at random."""

import numpy as np

from planner.problem import PlanningProblem, TableConstraint
from planner.sharding import ShardingType
from planner.tables import MemoryCount, OptimizerKind, TableSpec, Workload
from planner.topology import Device, DeviceType, Link, Topology

MIB = 1 << 20


def draw_problem(seed: int, num_tables: int = 9, num_nodes: int = 2, per_node: int = 2) -> PlanningProblem:
    """Tables of all sizes on nodes with devices of two speeds; one table is pinned, one cut by rows, two together."""
    rng = np.random.default_rng(seed)
    tables = tuple(
        TableSpec(
            f"table_{index}",
            int(10 ** rng.uniform(2, 5)),
            int(rng.choice([4, 8, 16, 24, 64, 128])),
            (f"feature_{index}",),
            float(np.exp(rng.uniform(0, 4))),
        )
        for index in range(num_tables)
    )
    constraints = (
        TableConstraint(("table_0",), ranks=(1,)),
        TableConstraint(("table_1",), sharding_types=(ShardingType.ROW_WISE,)),
        TableConstraint(("table_2", "table_3"), together=True),
        TableConstraint(("table_4",), ranks=(0, 2), sharding_types=(ShardingType.COLUMN_WISE, ShardingType.TABLE_WISE)),
    )
    workload = Workload(tables, 256, OptimizerKind.ROWWISE_ADAGRAD, memory=MemoryCount.WEIGHTS)
    return PlanningProblem(workload, draw_topology(rng, num_nodes, per_node), constraints)


def draw_topology(rng: np.random.Generator, num_nodes: int, per_node: int, hbm_bytes: int = 200 * MIB) -> Topology:
    """Devices of which some are half as fast."""
    devices = tuple(
        Device(
            rank=rank,
            node=f"node-{rank // per_node}",
            local_rank=rank % per_node,
            type=DeviceType.CUDA,
            kind=kind,
            hbm_bytes=hbm_bytes,
            reserved_bytes=0,
            hbm_bytes_per_s={"fast": 1e12, "slow": 5e11}[kind],
            flops_per_s=1e13,
            launch_s=1e-6,
        )
        for rank, kind in enumerate(rng.choice(["fast", "slow"], num_nodes * per_node))
    )
    return Topology(f"{num_nodes}x{per_node}", devices, Link(3e11, 1e-6), Link(5e10, 2e-6))


def plain_problem(
    shapes: list[tuple[int, int, float]], num_ranks: int, hbm_bytes: int, *sharding_types: ShardingType
) -> PlanningProblem:
    """Tables of (rows, columns, pooling factor), of which only the weights count, on equal devices of one node."""
    tables = tuple(
        TableSpec(f"table_{index}", rows, cols, (f"feature_{index}",), pooling)
        for index, (rows, cols, pooling) in enumerate(shapes)
    )
    workload = Workload(tables, 256, OptimizerKind.ROWWISE_ADAGRAD, memory=MemoryCount.WEIGHTS)
    devices = draw_topology(np.random.default_rng(0), 1, num_ranks, hbm_bytes).devices
    alike = tuple(
        Device(**(vars(device) | {"kind": "fast", "hbm_bytes_per_s": 1e12, "rank": device.rank})) for device in devices
    )
    constraints = (TableConstraint(("*",), sharding_types=sharding_types),) if sharding_types else ()
    return PlanningProblem(workload, Topology("alike", alike, Link(3e11, 1e-6), Link(5e10, 2e-6)), constraints)
