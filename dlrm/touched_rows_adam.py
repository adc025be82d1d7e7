"""FBGEMM's Adam where its fused kernel cannot run: rows that a batch did not touch stay as they are."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.batched_embedding_kernel import BatchedDenseEmbeddingBag
from torchrec.distributed.composable.table_batched_embedding_slice import TableBatchedEmbeddingSlice
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.optim.keyed import KeyedOptimizer

Place = tuple[str, int, int]
"""A shard of a collection: the table's name inside the module, first row, first column."""


class TouchedRowsAdam(torch.optim.Optimizer):
    """Adam that moves only the rows whose gradient is not all zero.

    Moments of other rows stay, and the bias is corrected by the number of steps of the whole table, not of the row:

        m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
        w -= lr (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)

    The fused kernel moves the rows that were looked up. The two differ where a row that was looked up gets a gradient
    of exact zeros: it stays here, and moves on with its momentum there.

    Parameters are `[rows, columns]`. The state of each is made here, not at the first step: `exp_avg` and `exp_avg_sq`
    (fp32 `[rows, columns]`, where the parameter is) and `step` (int64 `[]`, in host memory, since it is read at every
    step). A step counts for every parameter, also for one without a gradient.

    Source: FBGEMM, `fbgemm_gpu/codegen/genscript/optimizers.py`, `adam`: the formula, where eps stands, and that
    `iter` counts steps of the kernel.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        """Allocates the moments, as zeros."""
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.int64),
                    "exp_avg": torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device),
                    "exp_avg_sq": torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device),
                }

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the touched rows of every parameter; `closure` is there for the interface only."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["step"] += 1
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def set_optimizer_step(self, step: int) -> None:
        """Say how many steps were taken: the bias correction goes on from there."""
        for state in self.state.values():
            state["step"].fill_(step)

    def _move(self, parameter: nn.Parameter, grad: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        rows = grad.any(dim=1).nonzero().squeeze(1)
        touched, step = grad[rows], int(state["step"])
        exp_avg = state["exp_avg"][rows].mul_(beta1).add_(touched, alpha=1 - beta1)
        exp_avg_sq = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(touched, touched, value=1 - beta2)
        state["exp_avg"].index_copy_(0, rows, exp_avg)
        state["exp_avg_sq"].index_copy_(0, rows, exp_avg_sq)
        scale = exp_avg_sq.div_(1 - beta2**step).sqrt_().add_(group["eps"])
        parameter.index_add_(0, rows, exp_avg.div_(1 - beta1**step).div_(scale), alpha=-group["lr"])


class TableAdam(KeyedOptimizer):
    """Adam over the shards that one collection holds on this rank under the compute kernel `dense`.

    It looks like TorchRec's optimizer of fused kernels: parameters are the tables as ShardedTensors, and the state of
    a table is `{"TABLE.momentum1": ShardedTensor, "TABLE.exp_avg_sq": ShardedTensor}` with shards like its weight's,
    so that whatever saves or moves the state of the one serves the other as well. Tables without a shard on this rank
    are left out, replicated ones too.

    TorchRec's own parameter of a table is not used: where a rank holds several column shards of a table, it is one
    slice as if all were as wide as the first.

    Source: TorchRec 1.8, `distributed.batched_embedding_kernel.EmbeddingFusedOptimizer`.
    """

    def __init__(
        self, collection: ShardedEmbeddingBagCollection, path: str, lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        """Allocates the moments of a collection.

        Args:
            collection: The sharded module.
            path: Its name in the model: parameters are named `PATH.embedding_bags.TABLE.weight`.
            lr: Step size; changed later through `param_groups`.
            betas: Decay of the two moments.
            eps: Term in the denominator.
        """
        slices = dict(_dense_shards(collection))
        self._optimizer = TouchedRowsAdam([{"params": list(slices.values())}], lr, betas, eps)
        params: dict[str, ShardedTensor] = {}
        state: dict[ShardedTensor, dict[str, ShardedTensor]] = {}
        for key, weight in collection.state_dict().items():
            table = key.split(".")[-2]
            if isinstance(weight, ShardedTensor) and any(place[0] == table for place in slices):
                params[f"{path}.{key}"] = weight
                state[weight] = self._table_state(table, weight, slices)
        super().__init__(params, state, [{"params": list(params.values()), "lr": lr}])

    def step(self, closure: None = None) -> None:
        """Move the touched rows of every shard."""
        (group,) = self.param_groups
        self._optimizer.param_groups[0]["lr"] = group["lr"]
        self._optimizer.step()

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Drop the gradients: as large as the tables, they are not kept between steps."""
        self._optimizer.zero_grad(set_to_none=True)

    def set_optimizer_step(self, step: int) -> None:
        """Say how many steps were taken: the bias correction goes on from there."""
        self._optimizer.set_optimizer_step(step)

    def _table_state(
        self, table: str, weight: ShardedTensor, slices: dict[Place, TableBatchedEmbeddingSlice]
    ) -> dict[str, ShardedTensor]:
        # The first moment's name is that of TorchRec's fused optimizers.
        return {
            f"{table}.momentum1": self._sharded(table, weight, slices, "exp_avg"),
            f"{table}.exp_avg_sq": self._sharded(table, weight, slices, "exp_avg_sq"),
        }

    def _sharded(
        self, table: str, weight: ShardedTensor, slices: dict[Place, TableBatchedEmbeddingSlice], moment: str
    ) -> ShardedTensor:
        """A moment, cut and placed like the table's weight; shares its memory with the optimizer's state."""
        shards = []
        for shard in weight.local_shards():
            row_offset, col_offset = shard.metadata.shard_offsets
            values = self._optimizer.state[slices[table, row_offset, col_offset]][moment]
            shards.append(Shard(values, shard.metadata))
        return ShardedTensor._init_from_local_shards_and_global_metadata(
            shards, sharded_tensor_metadata=weight.metadata(), process_group=weight._process_group
        )


def _dense_shards(collection: ShardedEmbeddingBagCollection) -> Iterator[tuple[Place, TableBatchedEmbeddingSlice]]:
    """The shards on this rank under the kernel `dense`, each `[rows, columns]` with the gradient of its own rows."""
    for lookup in collection._lookups:
        if isinstance(lookup, DistributedDataParallel):
            continue
        for kernel in lookup._emb_modules:
            if isinstance(kernel, BatchedDenseEmbeddingBag):
                yield from _kernel_shards(kernel)


def _kernel_shards(kernel: BatchedDenseEmbeddingBag) -> Iterator[tuple[Place, TableBatchedEmbeddingSlice]]:
    weights, starts = kernel.emb_module.weights, kernel.emb_module.weights_physical_offsets
    shapes = kernel.emb_module.embedding_specs
    for table, start, (num_rows, num_cols) in zip(kernel.config.embedding_tables, starts, shapes, strict=False):
        row_offset, col_offset = table.local_metadata.shard_offsets
        piece = TableBatchedEmbeddingSlice(weights, start, start + num_rows * num_cols, num_rows, num_cols)
        yield (table.name, row_offset, col_offset), piece
