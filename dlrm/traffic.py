"""What a rank looks up and hands to the collectives of a step: ids and bytes, taken from the tensors themselves."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle
from torchrec.distributed.dist_data import KJTAllToAll, PooledEmbeddingsAllToAll, PooledEmbeddingsReduceScatter
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm.shards import sharded_collections
from dlrm.step_columns import (
    ALL_REDUCE_BYTES,
    IDS,
    INPUT_DIST_BYTES,
    OUTPUT_DIST_BACKWARD_BYTES,
    OUTPUT_DIST_FORWARD_BYTES,
)
from dlrm.timing import PhaseClock


class TrafficHooks:
    """Hooks that count; sizes of tensors are known to the host, so that nothing waits for a device.

    Source: TorchRec 1.8, `embeddingbag.py`: `_input_dists` are made with the first batch, `_output_dists` before, and
    the exchanges inside the latter with their first call.

    Attributes:
        latest: What each sharding group looked up in the latest step, of one step at a time.
    """

    def __init__(self, clock: PhaseClock) -> None:
        self._clock = clock
        self._removals: list[Callable[[], None]] = []
        self.latest: dict[int, KeyedJaggedTensor] = {}

    def attach(self, model: nn.Module) -> None:
        """Put the hooks on."""
        gradient_bytes = replicated_gradient_bytes(model)
        self._keep(model.register_forward_pre_hook(lambda *_: self._clock.count(ALL_REDUCE_BYTES, gradient_bytes)))
        for collection in sharded_collections(model):
            self._attach_collection(collection)

    def remove(self) -> None:
        """Take them all off, and forget the latest lookups."""
        for removal in self._removals:
            removal()
        self._removals.clear()
        self.latest.clear()

    def _keep(self, handle: RemovableHandle) -> None:
        self._removals.append(handle.remove)

    def _attach_collection(self, collection: ShardedEmbeddingBagCollection) -> None:
        if collection._has_uninitialized_input_dist:
            self._attach_to_the_first_batch(collection)
        else:
            self._attach_input_dists(collection)
        for group, lookup in enumerate(collection._lookups):
            self._keep(lookup.register_forward_pre_hook(self._on_lookup(group)))
        for output_dist in collection._output_dists:
            self._keep(output_dist.register_forward_hook(self._on_pooled_sent()))

    def _attach_to_the_first_batch(self, collection: ShardedEmbeddingBagCollection) -> None:
        create = collection._create_input_dist

        def create_and_count(*args: Any, **kwargs: Any) -> None:
            create(*args, **kwargs)
            self._attach_input_dists(collection)

        collection._create_input_dist = create_and_count
        # The method of the class is seen again.
        self._removals.append(lambda: collection.__dict__.pop("_create_input_dist"))

    def _attach_input_dists(self, collection: ShardedEmbeddingBagCollection) -> None:
        for input_dist in collection._input_dists:
            for exchange in (module for module in input_dist.modules() if isinstance(module, KJTAllToAll)):
                self._keep(exchange.register_forward_pre_hook(self._on_ids_sent))

    def _on_ids_sent(self, _module: nn.Module, inputs: tuple[KeyedJaggedTensor, ...]) -> None:
        self._clock.count(INPUT_DIST_BYTES, num_bytes(inputs[0].values()) + num_bytes(inputs[0].lengths()))

    def _on_lookup(self, group: int) -> Callable[..., None]:
        def count(_module: nn.Module, inputs: tuple[KeyedJaggedTensor, ...]) -> None:
            self._clock.count(IDS, inputs[0].values().numel())
            self.latest[group] = inputs[0]

        return count

    def _on_pooled_sent(self) -> Callable[..., None]:
        """A hook on an output_dist; its bytes are worked out again where a batch has another shape."""
        shape, known = torch.Size(), (0, 0)

        def count(output_dist: nn.Module, inputs: tuple[torch.Tensor, ...], _output: Any) -> None:
            nonlocal shape, known
            if inputs[0].shape != shape:
                shape, known = inputs[0].shape, pooled_bytes(output_dist, inputs[0])
            self._clock.count(OUTPUT_DIST_FORWARD_BYTES, known[0])
            self._clock.count(OUTPUT_DIST_BACKWARD_BYTES, known[1])

        return count


def pooled_bytes(output_dist: Any, pooled: torch.Tensor) -> tuple[int, int]:
    """Bytes of this rank's input of a group's pooled exchanges, forward and backward, for pooled `[W * B, D]`.

    An all-to-all of samples gets back the gradients of B samples and every rank's columns; a reduce-scatter is an
    all-gather backward. table_row_wise does both, one after the other. Replicas exchange nothing here.
    Source: TorchRec 1.8, `dist_data.py` and `comm_ops.py`.
    """
    forward = backward = 0
    num_rows = pooled.shape[0]
    for exchange in (module for module in output_dist.modules() if module is not output_dist):
        if isinstance(exchange, PooledEmbeddingsReduceScatter):
            forward += num_bytes(pooled)
            num_rows //= exchange._pg.size()
            backward += num_rows * pooled.shape[1] * pooled.element_size()
        elif isinstance(exchange, PooledEmbeddingsAllToAll):
            row_bytes = pooled.element_size()
            forward += num_rows * pooled.shape[1] * row_bytes
            backward += num_rows // exchange._pg.size() * sum(exchange._dim_sum_per_rank) * row_bytes
    return forward, backward


def replicated_gradient_bytes(model: nn.Module) -> int:
    """Bytes of the gradients that DistributedDataParallel sums over all ranks in a step, as its reducers count them.

    One reduces the dense part; lookups of replicated tables, which are no submodules of the model, have their own.
    """
    lookups = (lookup for collection in sharded_collections(model) for lookup in collection._lookups)
    wrapped = (each for each in (*model.modules(), *lookups) if isinstance(each, DistributedDataParallel))
    return sum(int(each._get_ddp_logging_data()["total_parameter_size_bytes"]) for each in wrapped)


def num_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()
