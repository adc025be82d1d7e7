"""The optimizers of a run: fused into the tables' backward pass, and ordinary ones for what is replicated."""

from collections.abc import Iterator
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from dlrm.config import DenseOptimizerConfig, SparseOptimizerConfig
from dlrm.touched_rows_adam import TableAdam, TouchedRowsAdam
from planner.sharding import ShardingType
from planner.tables import OptimizerKind

FUSED_KINDS = {
    OptimizerKind.SGD: EmbOptimType.EXACT_SGD,
    OptimizerKind.ROWWISE_ADAGRAD: EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    OptimizerKind.ADAM: EmbOptimType.ADAM,
}
DENSE = "dense"
"""The part of the combined optimizer that steps what is no table."""
DENSE_KINDS = {"adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}


def fused_params(config: SparseOptimizerConfig) -> dict[str, Any]:
    """What FBGEMM's fused kernels are told: the optimizer and its constants."""
    return {
        "optimizer": FUSED_KINDS[OptimizerKind(config.kind)],
        "learning_rate": config.learning_rate,
        "eps": config.eps,
        "beta1": config.beta1,
        "beta2": config.beta2,
    }


def combine_optimizers(
    model: DistributedModelParallel,
    sparse: SparseOptimizerConfig,
    dense: DenseOptimizerConfig,
    before: CombinedOptimizer | None = None,
) -> CombinedOptimizer:
    """One optimizer over the whole model; where its tables were sharded anew, with the dense part of that of `before`.

    A plan never changes what is learned. Tables that have no fused kernel are stepped by the ordinary form of the
    same algorithm: replicas (a data_parallel plan) by one over whole tables, shards under Adam on CPU ranks by
    `TableAdam`, which then stands where the fused optimizer does.
    """
    mlps = {
        name: p for name, p in in_backward_optimizer_filter(model.named_parameters()) if ".embedding_bags." not in name
    }
    collections = list(_collections(model))
    adams = [build_table_adam(collection, path, sparse) for path, collection in collections]
    replicas = [build_replica_optimizer(collection, path, sparse) for path, collection in collections]
    mine = [(DENSE, KeyedOptimizerWrapper(mlps, lambda p: DENSE_KINDS[dense.kind](p, lr=dense.learning_rate)))]
    return CombinedOptimizer(
        [
            ("", model.fused_optimizer),
            *(("", adam) for adam in adams if adam is not None),
            *(mine if before is None else without_tables(before)._optims),
            *(("replicas", replica) for replica in replicas if replica is not None),
        ]
    )


def without_tables(optimizer: CombinedOptimizer) -> CombinedOptimizer:
    """Its dense part alone."""
    return CombinedOptimizer([(key, each) for key, each in optimizer._optims if key == DENSE])


def build_table_adam(
    collection: ShardedEmbeddingBagCollection, path: str, config: SparseOptimizerConfig
) -> TableAdam | None:
    """The optimizer of the shards under the kernel `dense`, `path` being the collection's name in the model.

    None where the plan gives no table of the collection to that kernel.
    """
    kernels = {
        sharding.compute_kernel
        for sharding in collection.module_sharding_plan.values()
        if sharding.sharding_type != ShardingType.DATA_PARALLEL.value
    }
    if EmbeddingComputeKernel.DENSE.value not in kernels:
        return None
    return TableAdam(collection, path, config.learning_rate, (config.beta1, config.beta2), config.eps)


def build_replica_optimizer(
    collection: ShardedEmbeddingBagCollection, path: str, config: SparseOptimizerConfig
) -> KeyedOptimizerWrapper | None:
    """The optimizer of the replicated tables, `path` being the collection's name in the model; None without one."""
    replicas = {
        f"{path}.embedding_bags.{table}.weight": collection.embedding_bags[table].weight
        for table, sharding in collection.module_sharding_plan.items()
        if sharding.sharding_type == ShardingType.DATA_PARALLEL.value
    }
    return KeyedOptimizerWrapper(replicas, lambda p: _ordinary(p, config)) if replicas else None


def _collections(model: DistributedModelParallel) -> Iterator[tuple[str, ShardedEmbeddingBagCollection]]:
    """The sharded collections by their name in the model; `model.module` has none of the wrappers of parallelism."""
    for path, module in model.module.named_modules():
        if isinstance(module, ShardedEmbeddingBagCollection):
            yield path, module


def _ordinary(parameters: list[nn.Parameter], config: SparseOptimizerConfig) -> torch.optim.Optimizer:
    """The unfused optimizer with the same arithmetic as the fused one, for tables that every rank holds whole.

    Adam moves the rows that the mean gradient of all ranks touches, as the fused one does. The planner offers no
    data_parallel option under Adam all the same (`planner.sharding.is_data_parallel_legal`); a plan made by hand may.
    """
    if config.kind == OptimizerKind.SGD:
        return torch.optim.SGD(parameters, lr=config.learning_rate)
    if config.kind == OptimizerKind.ROWWISE_ADAGRAD:
        return RowWiseAdagrad(parameters, lr=config.learning_rate, eps=config.eps)
    return TouchedRowsAdam(parameters, config.learning_rate, (config.beta1, config.beta2), config.eps)
