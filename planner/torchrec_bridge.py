"""Our plan as TorchRec's and back, and TorchRec's planner as a strategy; no process group needed."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharding_spec.api import EnumerableShardingSpec
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner import Topology as TorchRecTopology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.stats import NoopEmbeddingStats
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError, Storage
from torchrec.distributed.planner.types import ShardingOption as TorchRecOption
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ParameterSharding
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from planner.errors import InfeasibleError, PlanningError
from planner.memory import capacity_bytes, shard_bytes
from planner.plan import ShardingPlan, TablePlacement
from planner.problem import PlanningProblem
from planner.sharding import Shard, ShardingType, is_data_parallel_legal
from planner.shards import TYPE_CODE, ShardArrays
from planner.tables import OptimizerKind, TableSpec
from planner.topology import DeviceType, Topology

MS_PER_S = 1000
"""TorchRec states bandwidths in bytes per millisecond. Source: TorchRec 1.8 `planner.constants`."""


MODULE_PREFIX = "t_"
"""Stands before a table's name inside modules, which could otherwise clash with their attributes (`type`).

Source: facebookresearch/dlrm, torchrec_dlrm/dlrm_main.py, names its tables so.
"""


def module_name(table: str) -> str:
    """The name of a table inside a module, where a dot is not allowed.

    >>> module_name("user.id")
    't_user%2Eid'
    """
    return MODULE_PREFIX + table.replace("%", "%25").replace(".", "%2E")


def table_name(module: str) -> str:
    """The table that a name inside a module stands for.

    >>> table_name("t_user%2Eid")
    'user.id'
    """
    return module.removeprefix(MODULE_PREFIX).replace("%2E", ".").replace("%25", "%")


def build_embeddings(tables: Iterable[TableSpec]) -> EmbeddingBagCollection:
    """The tables as one EmbeddingBagCollection (sum pooling) on the meta device: no memory is taken."""
    configs = [
        EmbeddingBagConfig(
            name=module_name(table.name),
            num_embeddings=table.num_embeddings,
            embedding_dim=table.embedding_dim,
            feature_names=list(table.feature_names),
        )
        for table in tables
    ]
    return EmbeddingBagCollection(tables=configs, device=torch.device("meta"))


def shard_kernel(optimizer: OptimizerKind, device: DeviceType) -> EmbeddingComputeKernel:
    """The compute kernel of tables that are not replicated.

    `fused`: the optimizer runs in the backward pass. FBGEMM has no fused Adam on CPUs: there it is `dense`, which
    leaves a gradient as large as the table to an ordinary optimizer (EmbeddingBagCollection only).
    Source: fbgemm-gpu 1.8, `SplitTableBatchedEmbeddingBagsCodegen`: "Optimizer adam is not supported in CPU mode".
    """
    is_dense = optimizer is OptimizerKind.ADAM and device is DeviceType.CPU
    return EmbeddingComputeKernel.DENSE if is_dense else EmbeddingComputeKernel.FUSED


def to_torchrec(
    plan: ShardingPlan, topology: Topology, kernel: EmbeddingComputeKernel = EmbeddingComputeKernel.FUSED
) -> EmbeddingModuleShardingPlan:
    """The plan of one EmbeddingBagCollection or EmbeddingCollection in TorchRec's form.

    Give it to DistributedModelParallel under the module's path.

    Args:
        plan: The plan.
        topology: Its devices; shards stand on `rank:R/cpu` or `rank:R/cuda:0`.
        kernel: The compute kernel of tables that are not replicated (`shard_kernel`); replicated ones have `dense`.

    Raises:
        PlanningError: The plan is for another number of ranks (reason `torchrec`).
    """
    if plan.world_size != topology.world_size:
        raise PlanningError(
            f"plan is for {plan.world_size} ranks, topology {topology.name} has {topology.world_size}",
            reason="torchrec",
        )
    return EmbeddingModuleShardingPlan(
        {module_name(table.name): _parameter_sharding(table, topology, kernel) for table in plan.tables}
    )


def from_torchrec(
    module_plan: EmbeddingModuleShardingPlan, world_size: int, tables: Iterable[TableSpec]
) -> ShardingPlan:
    """A TorchRec plan of one EmbeddingBagCollection in our form.

    Args:
        module_plan: The plan, by table name.
        world_size: Its number of ranks.
        tables: The model's tables: they give the order, and the size of replicated tables, which TorchRec
            leaves out.

    Raises:
        PlanningError: A table is missing or has a sharding type that we do not have (reason `torchrec`).
    """
    specs = list(tables)
    missing = [table.name for table in specs if module_name(table.name) not in module_plan]
    if missing:
        raise PlanningError(f"TorchRec plan lacks the tables {', '.join(missing)}", reason="torchrec")
    return ShardingPlan(
        world_size, tuple(_placement(table, module_plan[module_name(table.name)], world_size) for table in specs)
    )


def _parameter_sharding(table: TablePlacement, topology: Topology, kernel: EmbeddingComputeKernel) -> ParameterSharding:
    is_replicated = table.sharding_type is ShardingType.DATA_PARALLEL
    shards = [
        ShardMetadata(
            shard_offsets=[shard.row_offset, shard.col_offset],
            shard_sizes=[shard.num_rows, shard.num_cols],
            placement=_remote_device(topology, shard.rank),
        )
        for shard in table.shards
    ]
    return ParameterSharding(
        sharding_type=table.sharding_type.value,
        compute_kernel=(EmbeddingComputeKernel.DENSE if is_replicated else kernel).value,
        ranks=list(table.ranks),
        sharding_spec=None if is_replicated else EnumerableShardingSpec(shards),
    )


def _remote_device(topology: Topology, rank: int) -> str:
    device = topology.devices[rank]
    # Every worker sees its own GPU only, so that is number 0 on each rank.
    return f"rank:{rank}/cpu" if device.type is DeviceType.CPU else f"rank:{rank}/cuda:0"


def _placement(table: TableSpec, sharding: ParameterSharding, world_size: int) -> TablePlacement:
    try:
        sharding_type = ShardingType(sharding.sharding_type)
    except ValueError as error:
        raise PlanningError(
            f"table {table.name!r} is {sharding.sharding_type} in the TorchRec plan, expected one of "
            + ", ".join(ShardingType),
            reason="torchrec",
        ) from error
    if sharding_type is ShardingType.DATA_PARALLEL:
        whole = [Shard(rank, 0, table.num_embeddings, 0, table.embedding_dim) for rank in range(world_size)]
        return TablePlacement(table.name, sharding_type, tuple(whole))
    shards = []
    for metadata in sharding.sharding_spec.shards:
        (row_offset, col_offset), (num_rows, num_cols) = metadata.shard_offsets, metadata.shard_sizes
        shards.append(Shard(metadata.placement.rank(), row_offset, num_rows, col_offset, num_cols))
    return TablePlacement(table.name, sharding_type, tuple(shards))


class FusedBagSharder(EmbeddingBagCollectionSharder):
    """A sharder that offers TorchRec's planner our five types with the kernels that train.

    TorchRec's own sharder hides row-wise types on CPU, where they work, and offers kernels outside device
    memory on GPU.
    """

    def __init__(self, optimizer: OptimizerKind) -> None:
        """Remembers whether replicated tables are legal."""
        super().__init__()
        self._offered = [
            each.value
            for each in ShardingType
            if each is not ShardingType.DATA_PARALLEL or is_data_parallel_legal(optimizer)
        ]

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """The types on offer on any device."""
        return list(self._offered)

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """`dense` for replicated tables, else `fused`."""
        is_replicated = sharding_type == ShardingType.DATA_PARALLEL.value
        return [(EmbeddingComputeKernel.DENSE if is_replicated else EmbeddingComputeKernel.FUSED).value]


class TrueStorageEnumerator(EmbeddingEnumerator):
    """TorchRec's options with its own estimates of time, and of storage ours: the bytes that `check` counts.

    TorchRec's own count knows neither weights alone nor what is resident during our step, so that its planner would
    fail, or overflow a device, for another reason than its search.
    """

    def __init__(
        self,
        problem: PlanningProblem,
        topology: TorchRecTopology,
        constraints: dict[str, ParameterConstraints],
    ) -> None:
        """For the tables of a problem."""
        super().__init__(topology=topology, batch_size=problem.workload.batch_size, constraints=constraints)
        self._problem = problem
        self._is_cpu = topology.compute_device == DeviceType.CPU

    def populate_estimates(self, sharding_options: list[TorchRecOption]) -> None:
        """Estimates the shards of the options in place."""
        super().populate_estimates(sharding_options)
        found = [(option, shard) for option in sharding_options for shard in option.shards]
        index_of, sizes = self._problem.index_of, np.array([shard.size for _, shard in found], dtype=np.float64)
        arrays = ShardArrays(
            table=np.array([index_of[table_name(option.name)] for option, _ in found], dtype=np.int64),
            rank=np.zeros(len(found), dtype=np.int64),
            type_code=np.array([TYPE_CODE[ShardingType(option.sharding_type)] for option, _ in found], dtype=np.int64),
            num_rows=sizes[:, 0],
            num_cols=sizes[:, 1],
        )
        for (_, shard), num_bytes in zip(found, shard_bytes(self._problem, arrays).tolist(), strict=True):
            shard.storage = Storage(hbm=0, ddr=num_bytes) if self._is_cpu else Storage(hbm=num_bytes, ddr=0)


class TorchRecStrategy:
    """TorchRec's EmbeddingShardingPlanner with its default proposers and partitioner, told the true job and devices.

    It is given: the batch of a rank, pooling factors, weights in fp32, the types that each table may have, the bytes
    of every shard as `check` counts them, memory for shards with nothing reserved, the bandwidth of memory and of both
    link classes. Devices that differ count as the smallest and slowest of them. What it has no input for stays out:
    how rows are reused, what was measured, latencies. It cuts columns its own way, never narrower than 128.
    """

    def plan(self, problem: PlanningProblem) -> ShardingPlan:
        """TorchRec's plan.

        Raises:
            InfeasibleError: TorchRec finds none.
            PlanningError: The problem has pins, tables kept together, or nodes of unequal size, which
                TorchRec's planner cannot express (reason `torchrec`).
        """
        _check_expressible(problem)
        stuck = [name for name in problem.tables if not problem.options(name)]
        if stuck:
            raise InfeasibleError(
                f"tables {', '.join(stuck)} have no legal sharding option left under their constraints",
                shortfall_bytes=0,
            )
        collection = build_embeddings(problem.workload.tables)
        with quiet():
            topology, constraints = _torchrec_topology(problem), _constraints(problem)
            planner = EmbeddingShardingPlanner(
                topology=topology,
                batch_size=problem.workload.batch_size,
                enumerator=TrueStorageEnumerator(problem, topology, constraints),
                storage_reservation=FixedPercentageStorageReservation(percentage=0.0),
                stats=NoopEmbeddingStats(),
                constraints=constraints,
                debug=False,
            )
            try:
                found = planner.plan(collection, [FusedBagSharder(problem.workload.optimizer)])
            except PlannerError as error:
                first_line = str(error).strip().splitlines()[0]
                raise InfeasibleError(f"TorchRec's planner: {first_line}", shortfall_bytes=0) from error
        return from_torchrec(found.plan[""], problem.topology.world_size, problem.workload.tables)


def _check_expressible(problem: PlanningProblem) -> None:
    pinned = [name for name, rule in problem.rules.items() if rule.ranks is not None]
    grouped = [name for group in problem.groups if len(group) > 1 for name in group]
    sizes = {len(problem.topology.ranks_of(node)) for node in problem.topology.nodes}
    found = [f"tables {', '.join(pinned)} are pinned to ranks"] if pinned else []
    found += [f"tables {', '.join(grouped)} are kept together"] if grouped else []
    if problem.topology.local_world_size is None:
        found.append(f"nodes have {sorted(sizes)} devices, expected all the same, with consecutive ranks")
    if found:
        raise PlanningError(
            "strategy torchrec: TorchRec's planner cannot express this: " + "; ".join(found) + "; use another strategy",
            reason="torchrec",
        )


def _torchrec_topology(problem: PlanningProblem) -> TorchRecTopology:
    topology = problem.topology
    is_cpu = topology.devices[0].type is DeviceType.CPU
    memory_bytes = max(0, int(capacity_bytes(problem).min()))
    bandwidth = min(device.hbm_bytes_per_s for device in topology.devices) / MS_PER_S
    memory = {"ddr_cap": memory_bytes} if is_cpu else {"hbm_cap": memory_bytes, "ddr_cap": 0}
    rates = {"ddr_mem_bw": bandwidth} if is_cpu else {"hbm_mem_bw": bandwidth}
    return TorchRecTopology(
        world_size=topology.world_size,
        compute_device=topology.devices[0].type.value,
        local_world_size=len(topology.ranks_of(topology.nodes[0])),
        intra_host_bw=topology.intra_node.bytes_per_s / MS_PER_S,
        inter_host_bw=topology.inter_node.bytes_per_s / MS_PER_S,
        **memory,
        **rates,
    )


def _constraints(problem: PlanningProblem) -> dict[str, ParameterConstraints]:
    """Pooling factors, and the sharding types that have a legal option: TorchRec would give ranks without a row one."""
    return {
        module_name(table.name): ParameterConstraints(
            sharding_types=sorted({option.sharding_type.value for option in problem.options(table.name)}),
            pooling_factors=[table.pooling_factor] * len(table.feature_names),
        )
        for table in problem.workload.tables
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps TorchRec's planner from warning of what is intended.

    It warns, on the root logger too, that its class for topologies is
    used directly, and that replicated tables have no sharding spec.
    """
    level = logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(level)
