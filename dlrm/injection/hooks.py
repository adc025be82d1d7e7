"""Where faults sit on a sharded DLRM, so that each delay falls into the phase whose work it prolongs.

All hooks are put on behind those of `dlrm.phases.PhaseHooks`, and hooks of one place run in the order of their
registration: a wait at the beginning of a phase comes after the clock has entered it. Where a phase's end is stretched,
the hook is put in front.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.types import LazyAwaitable, LazyNoWait
from torchrec.models.dlrm import DenseArch
from torchrec.optim.keyed import CombinedOptimizer

from dlrm.injection.waits import Stretch, build_stretch
from dlrm.phases import kernels_of
from dlrm.shards import sharded_collections
from planner.sharding import ShardingType


@dataclass
class Hooks:
    """Everything that was put on a model, and how it comes off again."""

    removals: list[Callable[[], None]] = field(default_factory=list)

    def add(self, handle: Any) -> None:
        """Keep a handle of torch, which has `remove()`."""
        self.removals.append(handle.remove)

    def remove(self) -> None:
        """Take everything off."""
        for removal in self.removals:
            removal()
        self.removals.clear()


def slow_lookups(model: nn.Module, hooks: Hooks, percent: float, device: torch.device) -> None:
    """Every lookup kernel takes longer, forward and backward (with its fused update)."""
    for collection in sharded_collections(model):
        for kernel in (kernel for lookup in collection._lookups for kernel in kernels_of(lookup)):
            forward = build_stretch(percent, device)
            hooks.add(kernel.register_forward_pre_hook(forward.begin))
            hooks.add(kernel.register_forward_hook(_end_lookup(forward, build_stretch(percent, device))))


def _end_lookup(forward: Stretch, backward: Stretch) -> Callable[..., None]:
    def end(_module: nn.Module, _inputs: Any, pooled: torch.Tensor) -> None:
        forward.end()
        node: Node | None = pooled.grad_fn
        if node is not None:
            node.register_prehook(backward.begin)
            node.register_hook(backward.end)

    return end


def slow_dense(
    model: nn.Module, optimizer: CombinedOptimizer, hooks: Hooks, percent: float, device: torch.device
) -> None:
    """Everything between the exchanges but the lookups takes longer: MLPs and interaction, optimizer step."""
    before, behind, upper, lower, update = (build_stretch(percent, device) for _ in range(5))
    hooks.add(model.register_forward_pre_hook(before.begin))
    hooks.add(model.register_forward_hook(behind.end, prepend=True))
    hooks.add(model.register_forward_hook(upper.begin))
    for collection in sharded_collections(model):
        hooks.add(collection.register_forward_pre_hook(before.end, prepend=True))
        hooks.add(collection.register_forward_hook(behind.begin))
        hooks.add(collection.register_forward_hook(_on_gradient_of_pooled(upper.end), prepend=True))
    for dense_arch in (module for module in model.modules() if isinstance(module, DenseArch)):
        hooks.add(dense_arch.register_forward_hook(_on_gradient_of_output(lower.begin)))
        # The bottom MLP has the last gradients of a step, and of its first layer the weight's is the very last.
        hooks.add(next(dense_arch.parameters()).register_hook(lower.end))
    for _, keyed in optimizer.optimizers:
        inner = getattr(keyed, "_optimizer", None)
        if isinstance(inner, torch.optim.Optimizer):  # the fused one has its updates in the backward pass
            hooks.add(inner.register_step_pre_hook(update.begin))
            hooks.add(inner.register_step_post_hook(update.end))


def slow_link(model: nn.Module, hooks: Hooks, delay_send: Callable[[], None]) -> None:
    """`delay_send` is called before ids, pooled embeddings and their gradients are exchanged.

    Ranks with several sharding groups begin several exchanges a phase, one after the other: the first of them waits,
    and so all come later.
    """

    def hold(*_: object) -> None:
        delay_send()

    for collection in sharded_collections(model):
        _before_input_dist(collection, hooks, hold)
        exchanged = [
            output_dist
            for kind, output_dist in zip(collection._sharding_types, collection._output_dists, strict=True)
            if kind != ShardingType.DATA_PARALLEL.value
        ]
        if exchanged:
            hooks.add(exchanged[0].register_forward_pre_hook(hold))
            hooks.add(collection.register_forward_hook(_on_gradient_of_pooled(hold)))


def spike(model: nn.Module, hooks: Hooks, strike: Callable[[], None]) -> None:
    """`strike` is called in every forward pass before anything is computed, in the phase OTHER."""

    def begin(*_: object) -> None:
        strike()

    hooks.add(model.register_forward_pre_hook(begin, prepend=True))


def _before_input_dist(collection: ShardedEmbeddingBagCollection, hooks: Hooks, hold: Callable[[], None]) -> None:
    """Hold the exchange of ids, which a pipeline begins without calling the module, so that no hook of it would run."""
    input_dist, is_held = collection.input_dist, True

    def held_input_dist(*args: Any, **kwargs: Any) -> Any:
        if is_held:
            hold()
        return input_dist(*args, **kwargs)

    def release() -> None:
        nonlocal is_held
        is_held = False
        # Where another fault has put itself in front since, that one stays, and finds this one idle.
        if collection.input_dist is held_input_dist:
            collection.input_dist = input_dist

    collection.input_dist = held_input_dist
    hooks.removals.append(release)


def _on_gradient_of_pooled(act: Callable[..., None]) -> Callable[..., Any]:
    """A hook on a collection that acts once the gradient of all its pooled embeddings is there.

    It waits for the embeddings, as `PhaseHooks` and the model do next; an exchange can be waited for only once.
    """

    def register(_module: nn.Module, _inputs: Any, pooled: Any) -> Any:
        is_under_way = isinstance(pooled, LazyAwaitable)
        arrived = pooled.wait() if is_under_way else pooled
        if arrived.values().requires_grad:
            arrived.values().register_hook(act)
        return LazyNoWait(arrived) if is_under_way else arrived

    return register


def _on_gradient_of_output(act: Callable[..., None]) -> Callable[..., None]:
    def register(_module: nn.Module, _inputs: Any, output: Any) -> None:
        # TrainPipelineSparseDist traces the model with stand-ins for tensors.
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(act)

    return register
