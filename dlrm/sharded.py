"""Puts a model under a plan: every table's rectangles where the plan says, the rest replicated."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.types import ShardingEnv
from torchrec.distributed.types import ShardingPlan as TorchRecPlan
from torchrec.models.dlrm import DLRMTrain

from dlrm.config import SparseOptimizerConfig
from dlrm.optimizers import fused_params
from dlrm.shards import initialise_tables
from planner.plan import ShardingPlan
from planner.tables import OptimizerKind, TableSpec
from planner.topology import DeviceType, Topology
from planner.torchrec_bridge import shard_kernel, to_torchrec

EMBEDDINGS_PATH = "model.sparse_arch.embedding_bag_collection"


def shard_model(
    model: DLRMTrain,
    tables: Iterable[TableSpec],
    plan: ShardingPlan,
    topology: Topology,
    optimizer: SparseOptimizerConfig,
    device: torch.device,
    seed: int,
) -> DistributedModelParallel:
    """The model on this rank, its tables' first weights drawn from `seed` alike under every plan.

    Needs the default process group. Collective: DistributedDataParallel broadcasts rank 0's dense weights.
    """
    kernel = shard_kernel(OptimizerKind(optimizer.kind), DeviceType(device.type))
    sharder = EmbeddingBagCollectionSharder(fused_params=fused_params(optimizer))
    sharded = DistributedModelParallel(
        module=model,
        env=ShardingEnv.from_process_group(dist.GroupMember.WORLD),
        device=device,
        plan=TorchRecPlan(plan={EMBEDDINGS_PATH: to_torchrec(plan, topology, kernel)}),
        sharders=[sharder],
        init_parameters=False,
    )
    initialise_tables(sharded, tables, seed)
    return sharded
