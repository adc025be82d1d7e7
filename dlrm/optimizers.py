"""The optimizers of a run: fused into the tables' backward pass, and ordinary ones for what is replicated."""

from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from dlrm.config import DenseOptimizerConfig, SparseOptimizerConfig
from planner.tables import OptimizerKind

FUSED_KINDS = {
    OptimizerKind.SGD: EmbOptimType.EXACT_SGD,
    OptimizerKind.ROWWISE_ADAGRAD: EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    OptimizerKind.ADAM: EmbOptimType.ADAM,
}
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
    model: DistributedModelParallel, sparse: SparseOptimizerConfig, dense: DenseOptimizerConfig
) -> CombinedOptimizer:
    """One optimizer over the whole model.

    Tables under a data_parallel plan have no fused kernel: their replicas are stepped by the ordinary
    form of the same algorithm, so that a plan never changes what is learned.
    """
    ordinary = dict(in_backward_optimizer_filter(model.named_parameters()))
    replicas = {name: p for name, p in ordinary.items() if ".embedding_bags." in name}
    mlps = {name: p for name, p in ordinary.items() if name not in replicas}
    optimizers = [
        ("", model.fused_optimizer),
        ("dense", KeyedOptimizerWrapper(mlps, lambda p: DENSE_KINDS[dense.kind](p, lr=dense.learning_rate))),
    ]
    if replicas:
        optimizers.append(("replicas", KeyedOptimizerWrapper(replicas, lambda p: _ordinary(p, sparse))))
    return CombinedOptimizer(optimizers)


def _ordinary(parameters: list[nn.Parameter], config: SparseOptimizerConfig) -> torch.optim.Optimizer:
    """The unfused optimizer with the same arithmetic as the fused one.

    Adam is not among them: dense Adam moves rows that a batch never touched, FBGEMM's does not. The planner
    offers no data_parallel option under Adam.
    """
    if config.kind == OptimizerKind.SGD:
        return torch.optim.SGD(parameters, lr=config.learning_rate)
    if config.kind == OptimizerKind.ROWWISE_ADAGRAD:
        return RowWiseAdagrad(parameters, lr=config.learning_rate, eps=config.eps)
    raise ValueError(f"data_parallel tables cannot be trained with {config.kind}: use sgd or rowwise_adagrad")
