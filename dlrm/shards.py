"""The rectangles of the tables that live on this rank, and their plan-independent first values."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

from planner.tables import TableSpec
from planner.torchrec_bridge import table_name

# Rows that are drawn from one seed. Any rectangle can be filled by drawing just the blocks it touches.
BLOCK_ROWS = 16384


@dataclass(frozen=True)
class LocalShard:
    """One rectangle of one table on this rank; `weight` is `[num_rows, num_cols]` and shares its memory."""

    table: str
    row_offset: int
    col_offset: int
    weight: torch.Tensor


def sharded_collections(model: nn.Module) -> list[ShardedEmbeddingBagCollection]:
    """Every sharded embedding module of `model`."""
    return [m for m in model.modules() if isinstance(m, ShardedEmbeddingBagCollection)]


def local_shards(model: nn.Module) -> Iterator[LocalShard]:
    """The rectangles on this rank, tables in the order of the module's state."""
    for collection in sharded_collections(model):
        for key, value in collection.state_dict().items():
            table = table_name(key.split(".")[-2])
            if isinstance(value, ShardedTensor):
                for shard in value.local_shards():
                    rows, cols = shard.metadata.shard_offsets
                    yield LocalShard(table, rows, cols, shard.tensor)
            else:
                yield LocalShard(table, 0, 0, value)


def local_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Everything this rank trains: its rectangles, then its replica of the dense parameters."""
    for shard in local_shards(model):
        yield shard.weight
    yield from (parameter for name, parameter in model.named_parameters() if ".embedding_bags." not in name)


def draw_block(seed: int, table: TableSpec, block: int) -> torch.Tensor:
    """First weights `[rows, embedding_dim]` of one block of a table: uniform in +-sqrt(1 / num_embeddings).

    Source of the range: TorchRec `BaseEmbeddingConfig.get_weight_init_min`.
    """
    digest = hashlib.blake2b(f"{seed}/{table.name}/{block}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    rows = min(BLOCK_ROWS, table.num_embeddings - block * BLOCK_ROWS)
    bound = (1.0 / table.num_embeddings) ** 0.5
    return torch.empty(rows, table.embedding_dim).uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def initialise_tables(model: nn.Module, tables: Iterable[TableSpec], seed: int) -> None:
    """Fill every local rectangle with the values that (seed, table, row, column) name.

    So a run starts from the same weights under any plan and any world size.
    """
    specs = {table.name: table for table in tables}
    for shard in local_shards(model):
        table, end = specs[shard.table], shard.row_offset + shard.weight.shape[0]
        columns = slice(shard.col_offset, shard.col_offset + shard.weight.shape[1])
        row = shard.row_offset
        while row < end:
            block, inside = divmod(row, BLOCK_ROWS)
            values = draw_block(seed, table, block)[inside : inside + end - row, columns]
            at = row - shard.row_offset
            shard.weight[at : at + values.shape[0]].copy_(values)
            row += values.shape[0]
