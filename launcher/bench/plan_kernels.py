"""The kernels of one rank under a plan, as TorchRec would build them: one for each sharding type, on real shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Protocol

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import DenseTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from cluster.microbench.clock import measure_phases
from cluster.microbench.lookups import LEARNING_RATE, build_kernel, take_memory
from launcher.bench.plan_batches import GlobalBatches, TableBatch, of_samples
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.sharding import Shard, ShardingType
from planner.tables import OptimizerKind

CPU = torch.device("cpu")
NOISE_SIZE = 1 << 16
"""Numbers that gradients repeat."""


@dataclass(frozen=True, order=True)
class Piece:
    """A shard and the samples that it serves: what it costs does not depend on the rank.

    Attributes:
        sharding_type: Of its table; pieces of one type share a kernel.
        table: Position of the table in the workload.
        row_offset: First row.
        num_rows: Rows.
        col_offset: First column.
        num_cols: Columns.
        first_sample: Of the global batch.
        num_samples: All of them, and the rank's own for a replica.
    """

    sharding_type: ShardingType
    table: int
    row_offset: int
    num_rows: int
    col_offset: int
    num_cols: int
    first_sample: int
    num_samples: int

    def cut(self, batches: GlobalBatches) -> tuple[TableBatch, ...]:
        """What it looks up of the global batches."""
        if self.sharding_type in (ShardingType.ROW_WISE, ShardingType.TABLE_ROW_WISE):
            return batches.of_block(self.table, self.row_offset, self.num_rows)
        whole = batches.of_table(self.table)
        if self.sharding_type is ShardingType.DATA_PARALLEL:
            return tuple(of_samples(batch, self.first_sample, self.num_samples) for batch in whole)
        return whole


def rank_pieces(problem: PlanningProblem, plan: ShardingPlan) -> tuple[tuple[Piece, ...], ...]:
    """The pieces of each rank [W], sorted; equal for ranks that do the same. Shards without rows have no kernel."""
    pieces: list[list[Piece]] = [[] for _ in range(plan.world_size)]
    for placement in plan.tables:
        for shard in (each for each in placement.shards if each.num_rows):
            pieces[shard.rank].append(_piece(problem, placement.sharding_type, placement.name, shard))
    return tuple(tuple(sorted(each)) for each in pieces)


class RankLookup:
    """The lookups of one rank: all its kernels, with a few batches in turn.

    Attributes:
        groups: One for each sharding type, in the order of the pieces.
    """

    def __init__(self, pieces: Sequence[Piece], batches: GlobalBatches, optimizer: OptimizerKind) -> None:
        """Allocates the tables and cuts the batches; only one such object may be in use at a time.

        Args:
            pieces: At least one, sorted.
            batches: Of all tables of the workload.
            optimizer: Of the tables.
        """
        by_type = [tuple(group) for _, group in groupby(pieces, key=lambda piece: piece.sharding_type)]
        memory = take_memory(sum(_num_weights(group) for group in by_type if not _is_replicated(group)))
        self.groups: list[Group] = []
        for group in by_type:
            if _is_replicated(group):
                self.groups.append(Group(group, ReplicatedTables(group, optimizer), batches))
                continue
            mine, memory = memory.split([_num_weights(group), len(memory) - _num_weights(group)])
            self.groups.append(Group(group, FusedTables(group, optimizer, mine), batches))

    def run(self, index: int) -> tuple[float, float]:
        """Milliseconds of the forward, and of the backward pass with its updates."""

        def forward() -> None:
            for group in self.groups:
                group.forward(index)

        def backward() -> None:
            for group in reversed(self.groups):
                group.backward()

        forward_ms, backward_ms = measure_phases((forward, backward), CPU)
        return forward_ms, backward_ms


class Tables(Protocol):
    """Pieces of one sharding type in memory."""

    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        """Pooled rows [B, sum of columns] of ids int64 [N] in bags that start at offsets [pieces x B + 1]."""
        ...

    def backward(self, pooled: Tensor, gradient: Tensor) -> None:
        """Updates the weights by the gradient of what `forward` gave."""
        ...

    def weights(self) -> list[Tensor]:
        """The weights [rows, columns] of each piece, in the memory of the kernel."""
        ...


class Group:
    """Pieces of one type with their parts of the batches.

    Attributes:
        pieces: In the order of the pooled columns.
        tables: Their kernel.
        pooled: What the last forward pass gave.
    """

    def __init__(self, pieces: Sequence[Piece], tables: Tables, batches: GlobalBatches) -> None:
        """Cuts the batches."""
        self.pieces, self.tables = pieces, tables
        self._inputs = [_join(parts) for parts in zip(*(piece.cut(batches) for piece in pieces), strict=True)]
        self._gradient = _gradient(pieces[0].num_samples, sum(piece.num_cols for piece in pieces))
        self.pooled = torch.empty(0)

    def forward(self, index: int) -> None:
        """Looks a batch up."""
        indices, offsets = self._inputs[index % len(self._inputs)]
        self.pooled = self.tables.forward(indices, offsets)

    def backward(self) -> None:
        """Updates the tables for the last batch."""
        self.tables.backward(self.pooled, self._gradient)


class FusedTables:
    """Tables that FBGEMM updates in the backward pass, as TorchRec has them for all types but data_parallel."""

    def __init__(self, pieces: Sequence[Piece], optimizer: OptimizerKind, memory: Tensor) -> None:
        """Puts the weights into the memory."""
        shapes = [(piece.num_rows, piece.num_cols) for piece in pieces]
        self._kernel = build_kernel(shapes, range(len(shapes)), optimizer, CPU, memory)

    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        """See `Tables`."""
        pooled: Tensor = self._kernel(indices=indices, offsets=offsets)
        return pooled

    def backward(self, pooled: Tensor, gradient: Tensor) -> None:
        """See `Tables`."""
        pooled.backward(gradient)

    def weights(self) -> list[Tensor]:
        """See `Tables`."""
        return list(self._kernel.split_embedding_weights())


class ReplicatedTables:
    """Tables of the kernel `dense`: a gradient of all rows, then the ordinary optimizer over all rows.

    The all-reduce between them is none of a rank's own work and is left out.
    Source: TorchRec 1.8, `distributed.batched_embedding_kernel.BatchedDenseEmbeddingBag`.
    """

    def __init__(self, pieces: Sequence[Piece], optimizer: OptimizerKind) -> None:
        """Allocates the tables."""
        shapes = [(piece.num_rows, piece.num_cols) for piece in pieces]
        self._kernel = DenseTableBatchedEmbeddingBagsCodegen(shapes, use_cpu=True)
        self._tables = [nn.Parameter(weights) for weights in self._kernel.split_embedding_weights()]
        self._optimizer = _ordinary_optimizer(self._tables, optimizer)

    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        """See `Tables`."""
        pooled: Tensor = self._kernel(indices=indices, offsets=offsets)
        return pooled

    def backward(self, pooled: Tensor, gradient: Tensor) -> None:
        """See `Tables`."""
        self._kernel.weights.grad = None
        pooled.backward(gradient)
        assert self._kernel.weights.grad is not None
        grads = self._kernel.weights.grad.split([table.numel() for table in self._tables])
        for table, grad in zip(self._tables, grads, strict=True):
            table.grad = grad.view_as(table)
        self._optimizer.step()

    def weights(self) -> list[Tensor]:
        """See `Tables`."""
        return [table.detach() for table in self._tables]


def _ordinary_optimizer(tables: list[nn.Parameter], optimizer: OptimizerKind) -> torch.optim.Optimizer:
    """The unfused form; a plan has no replicated tables under another (`planner.sharding.is_data_parallel_legal`)."""
    if optimizer is OptimizerKind.SGD:
        return torch.optim.SGD(tables, lr=LEARNING_RATE)
    assert optimizer is OptimizerKind.ROWWISE_ADAGRAD, optimizer
    return RowWiseAdagrad(tables, lr=LEARNING_RATE)


def _is_replicated(pieces: Sequence[Piece]) -> bool:
    return pieces[0].sharding_type is ShardingType.DATA_PARALLEL


def _num_weights(pieces: Sequence[Piece]) -> int:
    return sum(piece.num_rows * piece.num_cols for piece in pieces)


def _gradient(num_samples: int, num_cols: int) -> Tensor:
    """fp32 [samples, columns] of repeated noise: a real gradient is not constant, but to draw all of it takes long."""
    size = num_samples * num_cols
    return _noise().repeat(-(-size // NOISE_SIZE))[:size].view(num_samples, num_cols)


@cache
def _noise() -> Tensor:
    return torch.randn(NOISE_SIZE, generator=torch.Generator().manual_seed(0))


def _piece(problem: PlanningProblem, sharding_type: ShardingType, name: str, shard: Shard) -> Piece:
    batch_size, world_size = problem.workload.batch_size, problem.topology.world_size
    is_replicated = sharding_type is ShardingType.DATA_PARALLEL
    return Piece(
        sharding_type=sharding_type,
        table=problem.index_of[name],
        row_offset=shard.row_offset,
        num_rows=shard.num_rows,
        col_offset=shard.col_offset,
        num_cols=shard.num_cols,
        first_sample=shard.rank * batch_size if is_replicated else 0,
        num_samples=batch_size if is_replicated else batch_size * world_size,
    )


def _join(parts: Sequence[TableBatch]) -> tuple[Tensor, Tensor]:
    """Ids and offsets of several pieces as a fused kernel takes them."""
    lengths = torch.cat([part.lengths for part in parts])
    return torch.cat([part.ids for part in parts]), torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
