"""A small model around a sharded EmbeddingCollection: sequence embeddings, one vector an id."""

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.types import ShardingEnv
from torchrec.distributed.types import ShardingPlan as TorchRecPlan
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from dlrm.config import SparseOptimizerConfig
from dlrm.optimizers import fused_params
from dlrm.shards import BLOCK_ROWS, draw_block
from planner.plan import ShardingPlan
from planner.tables import TableSpec
from planner.topology import Topology
from planner.torchrec_bridge import module_name, table_name, to_torchrec


class SequenceModel(nn.Module):
    """Half the weighted squares of all looked-up vectors: every embedding gets a gradient of its own size."""

    def __init__(self, tables: Iterable[TableSpec]) -> None:
        """With the tables on the meta device."""
        super().__init__()
        self.tables = tuple(tables)
        configs = [
            EmbeddingConfig(
                name=module_name(table.name),
                num_embeddings=table.num_embeddings,
                embedding_dim=table.embedding_dim,
                feature_names=list(table.feature_names),
            )
            for table in self.tables
        ]
        self.embedding_collection = EmbeddingCollection(tables=configs, device=torch.device("meta"))
        features = [feature for table in self.tables for feature in table.feature_names]
        # Unequal, so that features that got mixed up are seen in the loss.
        self.weights = {feature: float(1 + index) for index, feature in enumerate(features)}

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """Loss `[]` of a batch: the mean over its samples."""
        sequences = self.embedding_collection(features)
        losses = [weight * _half_squares(sequences[feature]) for feature, weight in self.weights.items()]
        return torch.stack(losses).sum() / features.stride()


def _half_squares(sequence: JaggedTensor) -> torch.Tensor:
    """Of all vectors `[ids, D]`; the n-th id of a sample counts n times."""
    values, lengths = sequence.values(), sequence.lengths()
    starts = torch.repeat_interleave(sequence.offsets()[:-1], lengths)
    places = 1 + torch.arange(len(values), device=values.device) - starts
    return 0.5 * (places * values.square().sum(dim=1)).sum()


def build_sequence_model(tables: Iterable[TableSpec]) -> SequenceModel:
    """The model of tables that are all equally wide: an EmbeddingCollection has no others."""
    return SequenceModel(tables)


def shard_sequence_model(
    model: SequenceModel,
    plan: ShardingPlan,
    topology: Topology,
    sparse: SparseOptimizerConfig,
    device: torch.device,
    seed: int,
) -> DistributedModelParallel:
    """The model on this rank, first weights drawn as `dlrm.shards.initialise_tables` draws them.

    Table-, column- and row-wise plans under SGD and row-wise Adagrad. Needs the default process group.
    """
    sharded = DistributedModelParallel(
        module=model,
        env=ShardingEnv.from_process_group(dist.GroupMember.WORLD),
        device=device,
        plan=TorchRecPlan(plan={"embedding_collection": to_torchrec(plan, topology)}),
        sharders=[EmbeddingCollectionSharder(fused_params=fused_params(sparse))],
        init_parameters=False,
    )
    _initialise(sharded, seed)
    return sharded


def sequence_shards(model: DistributedModelParallel) -> Iterator[tuple[str, Shard]]:
    """Every shard on this rank with its table's name."""
    for key, weight in model.module.embedding_collection.state_dict().items():
        assert isinstance(weight, ShardedTensor), key
        for shard in weight.local_shards():
            yield table_name(key.split(".")[-2]), shard


@torch.no_grad()
def _initialise(model: DistributedModelParallel, seed: int) -> None:
    tables = {table.name: table for table in model.module.tables}
    for name, shard in sequence_shards(model):
        assert tables[name].num_embeddings <= BLOCK_ROWS, "tables of tests are drawn in one block"
        (row, column), (num_rows, num_cols) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
        drawn = draw_block(seed, tables[name], 0)
        shard.tensor.copy_(drawn[row : row + num_rows, column : column + num_cols])
