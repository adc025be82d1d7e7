"""Times fused lookups with the kernel that trains: FBGEMM's table-batched embeddings, as TorchRec builds them."""

import inspect
from collections.abc import Sequence
from functools import cache

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor

from cluster.microbench.clock import measure_phases, repeat
from cluster.microbench.ids import draw_batch, mean_shards
from cluster.microbench.recipes import LookupRecipe, ShardRecipe
from cluster.microbench.repeats import Limits
from planner.lookups import LookupSet
from planner.profile import LookupMeasurement
from planner.tables import OptimizerKind

OPTIMIZERS = {
    OptimizerKind.SGD: EmbOptimType.EXACT_SGD,
    OptimizerKind.ROWWISE_ADAGRAD: EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    OptimizerKind.ADAM: EmbOptimType.ADAM,
}
LEARNING_RATE = 0.01

NUM_BATCHES = 3
"""Batches in turn, so that a repeat does not find the rows of the last one in the caches."""

CANARY_SHARDS = (ShardRecipe(100_000, 64, 4.0, 1, 0.8, is_ragged=False),) * 4
CANARY_SAMPLES = 512
CANARY_LIMITS = Limits(num_warmups=1, min_repeats=3, max_repeats=8, seconds=0.05)
"""The fixed lookup: 8,192 ids of a moderate skew in tables larger than the caches of one core."""


class FusedLookup:
    """The kernel of one set with a few batches to look up in turn.

    Attributes:
        lookups: What is looked up, as the batches ask for it on average.
    """

    def __init__(self, recipe: LookupRecipe, device: torch.device) -> None:
        """Allocates the tables and draws the batches.

        Raises what FBGEMM raises: for an optimizer that it has no kernel for on this device, or too little memory.
        """
        self._device = device
        shapes = [(shard.num_rows, shard.num_cols) for shard in recipe.shards]
        features = [index for index, shard in enumerate(recipe.shards) for _ in range(shard.num_features)]
        self._kernel = build_kernel(shapes, features, recipe.optimizer, device)
        generator = torch.Generator(device).manual_seed(recipe.seed)
        self._batches = [draw_batch(recipe, generator) for _ in range(NUM_BATCHES)]
        self.lookups = LookupSet(recipe.samples, recipe.optimizer, mean_shards(self._batches))
        num_cols = sum(shard.num_cols * shard.num_features for shard in recipe.shards)
        # A real gradient is neither zero nor constant.
        self._gradient = torch.randn(recipe.samples, num_cols, generator=generator, device=device)
        self._pooled: Tensor | None = None

    def run(self, index: int) -> tuple[float, float]:
        """Milliseconds of one forward and one backward pass with its update."""
        batch = self._batches[index % NUM_BATCHES]

        def forward() -> None:
            self._pooled = self._kernel(indices=batch.indices, offsets=batch.offsets)

        def backward() -> None:
            assert self._pooled is not None
            self._pooled.backward(self._gradient)

        forward_ms, backward_ms = measure_phases((forward, backward), self._device)
        self._pooled = None
        return forward_ms, backward_ms


def measure_lookups(recipe: LookupRecipe, device: torch.device, limits: Limits | None = None) -> LookupMeasurement:
    """Times one set on this process's device, with the canary before and after it.

    Raises what FBGEMM raises, as `FusedLookup`.
    """
    before_ms = measure_canary(device)
    lookup = FusedLookup(recipe, device)
    forward, backward = repeat(lookup.run, limits or Limits(), device)
    after_ms = measure_canary(device)
    return LookupMeasurement(lookup.lookups, forward, backward, (before_ms + after_ms) / 2)


def measure_canary(device: torch.device) -> float:
    """Milliseconds of the fixed lookup now, forward and backward."""
    forward, backward = repeat(_canary(device).run, CANARY_LIMITS, device)
    return forward.median_ms + backward.median_ms


def build_kernel(
    shapes: Sequence[tuple[int, int]],
    features: Sequence[int],
    optimizer: OptimizerKind,
    device: torch.device,
    weights: Tensor | None = None,
) -> SplitTableBatchedEmbeddingBagsCodegen:
    """The fused kernel of a set, with what TorchRec gives it for tables of the compute kernel `fused`.

    Source: TorchRec 1.8, `distributed.batched_embedding_kernel.BatchedFusedEmbeddingBag`.

    Args:
        shapes: Rows and columns of every table.
        features: The table that each feature reads, table by table.
        optimizer: Fused into the backward pass.
        device: Where the tables lie.
        weights: On a CPU the memory to put them in, fp32 [rows x columns of all tables]; None takes `take_memory`'s,
            so that only one such kernel can be in use at a time.
    """
    is_cuda = device.type == "cuda"
    place = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA) if is_cuda else (EmbeddingLocation.HOST, ComputeDevice.CPU)
    return SplitTableBatchedEmbeddingBagsCodegen(
        embedding_specs=[(rows, cols, *place) for rows, cols in shapes],
        feature_table_map=list(features),
        pooling_mode=PoolingMode.SUM,
        weights_precision=SparseType.FP32,
        cache_precision=SparseType.FP32,
        optimizer=OPTIMIZERS[optimizer],
        learning_rate=LEARNING_RATE,
        device=device,
        table_names=[f"table_{index}" for index in range(len(shapes))],
        **({} if is_cuda else _weights_in_memory(shapes, weights)),
    )


def take_memory(count: int) -> Tensor:
    """Host memory fp32 [count] whose pages have all been touched: fresh ones take longer than a whole measurement.

    The next call gives the same memory again.
    """
    return _BUFFER.take(count)


def _weights_in_memory(shapes: Sequence[tuple[int, int]], weights: Tensor | None) -> dict[str, dict[str, Tensor]]:
    """What tells a kernel to use memory that is there; FBGEMM before 1.8 cannot be told: every set waits for pages."""
    if "preallocated_host_buffers" not in inspect.signature(SplitTableBatchedEmbeddingBagsCodegen).parameters:
        return {}
    if weights is None:
        weights = take_memory(sum(rows * cols for rows, cols in shapes))
    return {"preallocated_host_buffers": {"weights": weights}}


class _Buffer:
    """Host memory for the weights of one set at a time; its pages have all been touched."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def take(self, count: int) -> Tensor:
        """fp32 [count] of finite values; the next call gives the same memory again."""
        if len(self._memory) < count:
            self._memory = torch.empty(0)  # the old memory goes before the new one comes
            self._memory = torch.full((count,), 0.01)
        return self._memory[:count]


_BUFFER = _Buffer()


@cache
def _canary(device: torch.device) -> FusedLookup:
    """The fixed lookup, made once a process; the same optimizer for all jobs, so that it tells of the device alone."""
    return FusedLookup(LookupRecipe(CANARY_SAMPLES, OptimizerKind.ROWWISE_ADAGRAD, CANARY_SHARDS, seed=0), device)
