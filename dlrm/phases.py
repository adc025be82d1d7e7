"""Tells the clock where every phase of a training step begins, whichever pipeline runs the step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd import Variable
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding_lookup import GroupedPooledEmbeddingsLookup
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist
from torchrec.models.dlrm import DenseArch
from torchrec.optim.keyed import CombinedOptimizer

from dlrm.shards import sharded_collections
from dlrm.step_columns import (
    ALL_REDUCE,
    DENSE_BACKWARD,
    DENSE_FORWARD,
    INPUT_DIST,
    OPTIMIZER,
    OTHER,
    OUTPUT_DIST_BACKWARD,
    OUTPUT_DIST_FORWARD,
    StepColumns,
)
from dlrm.timing import PhaseClock


def build_timed_pipeline(
    kind: str, model: DistributedModelParallel, optimizer: CombinedOptimizer, device: torch.device, clock: PhaseClock
) -> TrainPipelineBase | TrainPipelineSparseDist:
    """The pipeline `base` or `sparse_dist` over `model`; with `PhaseHooks` on it, `clock` times every phase.

    Under `base` each phase is whole. Under `sparse_dist` the ids of the next batch are exchanged during this step:
    `input_dist_ms` then is what their exchange holds the step up, not how long it takes.
    """
    timed = TimedOptimizer(optimizer, clock)
    if kind == "base":
        return TrainPipelineBase(model, timed, device)
    return TimedSparseDist(model, timed, device, clock)


class TimedOptimizer:
    """What a pipeline asks of an optimizer; the time goes to OPTIMIZER."""

    def __init__(self, optimizer: CombinedOptimizer, clock: PhaseClock) -> None:
        self._optimizer, self._clock = optimizer, clock

    def zero_grad(self) -> None:
        """Forget the gradients."""
        before = self._clock.enter(OPTIMIZER)
        self._optimizer.zero_grad()
        self._clock.enter(before)

    def step(self) -> None:
        """Update what is not updated within the backward pass of the lookups."""
        before = self._clock.enter(OPTIMIZER)
        self._optimizer.step()
        self._clock.enter(before)


class TimedSparseDist(TrainPipelineSparseDist):
    """TorchRec's pipeline; the exchange of the next batch's ids, begun outside the model, goes to INPUT_DIST."""

    def __init__(
        self, model: DistributedModelParallel, optimizer: TimedOptimizer, device: torch.device, clock: PhaseClock
    ) -> None:
        super().__init__(model, optimizer, device)
        self._clock = clock

    def start_sparse_data_dist(self, batch: Any, context: Any) -> None:
        """Begin the exchange of lengths."""
        before = self._clock.enter(INPUT_DIST)
        super().start_sparse_data_dist(batch, context)
        self._clock.enter(before)

    def wait_sparse_data_dist(self, context: Any) -> None:
        """Wait for the lengths, begin the exchange of ids."""
        before = self._clock.enter(INPUT_DIST)
        super().wait_sparse_data_dist(context)
        self._clock.enter(before)


def kernels_of(lookup: nn.Module) -> list[nn.Module]:
    """The kernels of one sharding group; a lookup of replicated tables is wrapped for its all-reduce."""
    groups = (module for module in lookup.modules() if isinstance(module, GroupedPooledEmbeddingsLookup))
    return [kernel for group in groups for kernel in group._emb_modules]


class PhaseHooks:
    """Hooks on a sharded DLRM, forward on its modules and backward on the autograd graph of every step.

    A sharded module runs as input_dist, then for every sharding type a lookup and the start of its output_dist; the
    first use of a pooled embedding waits for them all. Backward the graph is walked from the loss: the interaction,
    the output_dists, each lookup with its fused update, and last the bottom MLP, whose graph is older; so
    DENSE_BACKWARD comes in two parts. A replicated table's gradient is summed up in LOOKUP_BACKWARD. The all-reduce of
    DistributedDataParallel starts during the backward pass; ALL_REDUCE is what of it is waited for afterwards.

    Source: TorchRec 1.8, `ShardedEmbeddingBagCollection.compute_and_output_dist`; PyTorch 2.13, `Engine` of autograd
    (nodes made last run first; callbacks of a backward pass run in the order in which they were queued).
    """

    def __init__(self, clock: PhaseClock, columns: StepColumns) -> None:
        self._enter, self._columns = clock.enter, columns
        self._kernel_nodes: list[Node] = []
        self._handles: list[RemovableHandle] = []

    def attach(self, model: nn.Module) -> None:
        """Put the hooks on; they stay silent where the clock is between two steps, as in evaluation."""
        self._handles.append(model.register_forward_pre_hook(self._on_call(DENSE_FORWARD)))
        self._handles.append(model.register_forward_hook(self._on_loss))
        for module in model.modules():
            if isinstance(module, DenseArch):
                self._handles.append(module.register_forward_hook(self._on_dense_arch))
        for collection in sharded_collections(model):
            self._attach_collection(collection)

    def remove(self) -> None:
        """Take them all off: the tables are sharded anew, or stay as they are under other hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _attach_collection(self, collection: ShardedEmbeddingBagCollection) -> None:
        add = self._handles.append
        add(collection.register_forward_pre_hook(self._on_call(INPUT_DIST)))
        add(collection.register_forward_hook(self._on_pooled))
        for group, lookup in enumerate(collection._lookups):
            forward, backward = self._columns.lookup_columns(group)
            add(lookup.register_forward_pre_hook(self._on_call(forward)))
            for kernel in kernels_of(lookup):
                add(kernel.register_forward_hook(self._on_kernel(backward)))
        for output_dist in collection._output_dists:
            add(output_dist.register_forward_pre_hook(self._on_call(OUTPUT_DIST_FORWARD)))

    def _on_call(self, column: int) -> Callable[..., None]:
        """A hook that enters a phase."""

        def enter(*_: object) -> None:
            self._enter(column)

        return enter

    def _on_kernel(self, backward: int) -> Callable[..., None]:
        """A hook on a kernel's forward pass that marks where its backward pass begins."""
        begin_backward = self._on_call(backward)

        def mark(_module: nn.Module, _inputs: Any, pooled: torch.Tensor) -> None:
            if pooled.grad_fn is not None:
                pooled.grad_fn.register_prehook(begin_backward)
                self._kernel_nodes.append(pooled.grad_fn)

        return mark

    def _on_pooled(self, _module: nn.Module, _inputs: Any, pooled: Any) -> Any:
        """Wait for the embeddings, which the model would do next: where output_dist ends, the dense part goes on."""
        arrived = pooled.wait()
        values = arrived.values()
        if values.grad_fn is not None:
            # A tensor's hook runs before those of its node: under replication the node is a kernel's.
            values.register_hook(self._on_pooled_gradient)
            if len(self._kernel_nodes) > 1:
                self._mark_output_dists(values.grad_fn)
        self._kernel_nodes.clear()
        self._enter(DENSE_FORWARD)
        return arrived

    def _mark_output_dists(self, node: Node) -> None:
        """Hook the nodes right above the kernels: there an output_dist goes on after another group's kernel.

        A hook on a node costs some microseconds a step, so no other node gets one.
        """
        for below, _ in node.next_functions:
            if below in self._kernel_nodes:
                node.register_prehook(self._begin_output_dist_backward)
            elif below is not None:
                self._mark_output_dists(below)

    def _on_dense_arch(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        # TrainPipelineSparseDist traces the model with stand-ins for tensors.
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(self._begin_dense_backward)

    def _on_loss(self, _module: nn.Module, _inputs: Any, result: tuple[torch.Tensor, Any]) -> None:
        self._enter(DENSE_BACKWARD if result[0].requires_grad else OTHER)

    def _on_pooled_gradient(self, _gradient: torch.Tensor) -> None:
        """Queue the end of the gradients before DistributedDataParallel has all and queues its wait for their sums."""
        self._enter(OUTPUT_DIST_BACKWARD)
        Variable._execution_engine.queue_callback(self._begin_all_reduce)

    def _begin_dense_backward(self, _gradient: torch.Tensor) -> None:
        self._enter(DENSE_BACKWARD)

    def _begin_output_dist_backward(self, *_: object) -> None:
        self._enter(OUTPUT_DIST_BACKWARD)

    def _begin_all_reduce(self) -> None:
        """Every gradient is computed; the end of the waiting is queued behind the waiting itself."""
        self._enter(ALL_REDUCE)
        Variable._execution_engine.queue_callback(self._end_backward)

    def _end_backward(self) -> None:
        self._enter(OTHER)
