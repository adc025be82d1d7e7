"""The sharded collection inside a model: built anew under another plan, and put into the old one's place."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode
from torchrec.distributed import DistributedModelParallel, embedding, embeddingbag
from torchrec.distributed.embedding import EmbeddingCollectionSharder, ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ShardingEnv
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

META = torch.device("meta")
Sharded: TypeAlias = ShardedEmbeddingBagCollection | ShardedEmbeddingCollection


@dataclass(frozen=True, eq=False)
class Standing:
    """What stands in a model's place for embeddings, with what its wrapper knows of it."""

    collection: Sharded
    plan: EmbeddingModuleShardingPlan
    optim: Any


class Site:
    """One place for a sharded collection inside a model."""

    def __init__(self, model: DistributedModelParallel, path: str) -> None:
        """Find the place; `path` is the collection's name in the model without the wrappers of parallelism."""
        self._model, self._path = model, path
        inner = model._dmp_wrapped_module
        inner = getattr(inner, "module", inner) if isinstance(inner, DistributedDataParallel) else inner
        parent, _, self._name = path.rpartition(".")
        self._parent = inner.get_submodule(parent)

    @property
    def standing(self) -> Standing:
        """What stands there now."""
        model = self._model
        return Standing(getattr(self._parent, self._name), model._plan.plan[self._path], model._optim)

    def place(self, collection: Sharded) -> None:
        """Put a collection there; the model's fused optimizer is then that of this one."""
        self._put(collection, collection.module_sharding_plan)
        self._model._optim = self._model._init_optim(self._model.module)

    def put_back(self, standing: Standing) -> None:
        """Put there again what stood there before, with its optimizer."""
        self._put(standing.collection, standing.plan)
        self._model._optim = standing.optim

    def clear(self) -> None:
        """Leave the place empty, so that nothing of the model holds the memory of what stood there."""
        self._put(nn.Identity(), self._model._plan.plan[self._path])
        self._model._optim = None

    def _put(self, module: nn.Module, plan: Any) -> None:
        setattr(self._parent, self._name, module)
        self._model._plan.plan[self._path] = plan


@dataclass(frozen=True)
class Builder:
    """Builds a collection with the same tables under any plan; their weights are left as memory was.

    Attributes:
        fused_params: What FBGEMM's kernels are told.
        device: Where shards go.
    """

    fused_params: dict[str, Any]
    device: torch.device

    def build(self, unsharded: nn.Module, plan: EmbeddingModuleShardingPlan) -> Sharded:
        """The collection under a plan. Collective once: when rows are first cut within nodes, groups are made."""
        is_bags = isinstance(unsharded, EmbeddingBagCollection)
        sharder = (EmbeddingBagCollectionSharder if is_bags else EmbeddingCollectionSharder)(self.fused_params)
        env = ShardingEnv.from_process_group(dist.GroupMember.WORLD)
        with Uninitialised(), unsynchronised():
            return sharder.shard(unsharded, plan, env, self.device)


def unshard(collection: Sharded) -> nn.Module:
    """The collection that was sharded, without memory: tables and features in the same order."""
    with Uninitialised():
        if isinstance(collection, ShardedEmbeddingBagCollection):
            configs = collection._embedding_bag_configs
            return EmbeddingBagCollection(tables=configs, is_weighted=collection._is_weighted, device=META)
        tables, need_indices = collection._embedding_configs, collection._need_indices
        return EmbeddingCollection(tables=tables, need_indices=need_indices, device=META)


class Uninitialised(TorchFunctionMode):
    """Within it no random first values are drawn: of tables that are overwritten they would take longer than all else.

    Source: TorchRec 1.8, `init_parameters` of its kernels and `reset_parameters` of collections draw uniformly, torch's
    `nn.EmbeddingBag`, which holds an unsharded table, normally.
    """

    DRAWS = (torch.Tensor.uniform_, nn.init.uniform_, torch.Tensor.normal_, nn.init.normal_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Leave a tensor as it is where it would be filled at random."""
        named = kwargs or {}
        if func in self.DRAWS:
            return args[0] if args else named["tensor"]
        return func(*args, **named)


class UnsynchronisedDataParallel(DistributedDataParallel):
    """Does not send rank 0's first weights to all ranks: these are overwritten, alike on all of them.

    So nothing in it waits for another rank, on which something may have gone wrong while it built its shards.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """See DistributedDataParallel."""
        super().__init__(*args, **{**kwargs, "init_sync": False})


@contextmanager
def unsynchronised() -> Iterator[None]:
    """Within it collections wrap their replicated tables so.

    Source: TorchRec 1.8, `init_data_parallel` of sharded collections, which takes the class from its module.
    """
    modules: tuple[Any, ...] = (embedding, embeddingbag)
    for module in modules:
        module.DistributedDataParallel = UnsynchronisedDataParallel
    try:
        yield
    finally:
        for module in modules:
            module.DistributedDataParallel = DistributedDataParallel
