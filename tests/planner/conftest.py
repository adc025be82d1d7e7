"""Builders of small planning problems, as fixtures that property tests may use too."""

from collections.abc import Callable

import pytest

from planner.tables import OptimizerKind, TableSpec, Workload
from planner.topology import Device, DeviceType, Link, Topology

GIB = 1 << 30

MLPERF_ROWS = (
    40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10,
    2209, 11938, 155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36,
)  # fmt: skip
MLPERF_POOLING = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)


@pytest.fixture(scope="session")
def make_topology() -> Callable[..., Topology]:
    """Builds a topology of equal devices, or of devices with the given bandwidths, or with fewer on the last node."""

    def build(
        num_nodes: int = 1,
        per_node: int = 2,
        hbm_bytes: int = 80 * GIB,
        speeds: tuple[float, ...] = (),
        num_ranks: int | None = None,
    ) -> Topology:
        devices = tuple(
            Device(
                rank=rank,
                node=f"node-{rank // per_node}",
                local_rank=rank % per_node,
                type=DeviceType.CUDA,
                kind="test",
                hbm_bytes=hbm_bytes,
                reserved_bytes=0,
                hbm_bytes_per_s=speeds[rank] if speeds else 1e12,
                flops_per_s=1e13,
                launch_s=1e-5,
            )
            for rank in range(num_ranks or num_nodes * per_node)
        )
        return Topology(f"{num_nodes}x{per_node}", devices, Link(3e11, 1e-5), Link(5e10, 2e-5))

    return build


@pytest.fixture(scope="session")
def make_workload() -> Callable[..., Workload]:
    """Builds a workload from (rows, columns, pooling factor) of each table."""

    def build(
        *shapes: tuple[int, int, float],
        optimizer: OptimizerKind = OptimizerKind.ROWWISE_ADAGRAD,
        batch_size: int = 128,
        dense_parameters: int = 0,
    ) -> Workload:
        tables = tuple(
            TableSpec(f"table_{index}", rows, cols, (f"feature_{index}",), pooling)
            for index, (rows, cols, pooling) in enumerate(shapes)
        )
        return Workload(tables, batch_size, optimizer, dense_parameters=dense_parameters)

    return build


@pytest.fixture(scope="session")
def mlperf() -> Workload:
    """The 26 tables of MLPerf DLRM-DCNv2. Source: facebookresearch/dlrm torchrec_dlrm/README.MD."""
    tables = tuple(
        TableSpec(f"cat_{index}", rows, 128, (f"cat_{index}_ids",), float(pooling))
        for index, (rows, pooling) in enumerate(zip(MLPERF_ROWS, MLPERF_POOLING, strict=True))
    )
    return Workload(tables, 8192, OptimizerKind.ROWWISE_ADAGRAD, dense_parameters=16_000_000)
