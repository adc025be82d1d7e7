"""Ids of a table that follow its reuse histogram, one global batch for all plans, and each shard's part of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from launcher.bench.plan_tasks import PoolTable
from planner.cost.features import MEAN_USES
from planner.lookups import NUM_REUSE_BINS

HOT_USES = 3
"""Rows that a batch uses so often are those of all batches, the others are drawn for each.

A row that is used 3 times a batch on average is in the next one with a chance of 1 - exp(-3) = 95 %.
"""


@dataclass(frozen=True, eq=False)
class TableBatch:
    """What a batch looks up in one table or shard.

    Attributes:
        ids: int64 [N], bag after bag.
        lengths: int64 [B], ids of each bag: one feature, B samples.
    """

    ids: Tensor
    lengths: Tensor


def count_uses(reuse: tuple[float, ...], num_ids: int, num_rows: int) -> NDArray[np.int64]:
    """How often each distinct row of a batch is used, descending, `num_ids` in sum.

    Every bin gets as many rows as `num_ids` ids need whose rows follow the histogram. Uses are spread evenly between
    the ends of a bin, so that their mean is `planner.cost.features.MEAN_USES`. Ids that rounding to whole rows leaves
    over, or takes too many, are the next lower bin's. Rows beyond `num_rows` give their ids to the others.

    >>> count_uses((0.5, 0.0, 0.5, *[0.0] * 14), num_ids=12, num_rows=100).tolist()
    [3, 3, 3, 1, 1, 1]

    Args:
        reuse: Shares of the distinct rows, bins as in `planner.lookups.NUM_REUSE_BINS`; all 0 counts as all used once.
        num_ids: Ids of the batch.
        num_rows: Rows of the table.
    """
    shares = np.array(reuse) if any(reuse) else np.eye(NUM_REUSE_BINS)[0]
    wanted = shares * num_ids / (shares @ MEAN_USES)
    uses, left_ids = [], 0.0
    for bin_index in reversed(range(NUM_REUSE_BINS)):
        rows = wanted[bin_index] + left_ids / MEAN_USES[bin_index]
        count = max(0, round(rows))
        left_ids = (rows - count) * MEAN_USES[bin_index]
        uses.append(_spread_uses(bin_index, count))
    kept = np.sort(np.concatenate(uses))[::-1][: min(num_rows, num_ids)]
    return _stretch(kept, num_ids)


def draw_batches(table: PoolTable, samples: int, num_batches: int, seed: int) -> tuple[TableBatch, ...]:
    """Batches of `samples` for one table; its rows are scattered, its ids and bags in random order.

    All have `samples` x pooling factor ids, used as `count_uses` tells; bags have binomial lengths, as they would if
    every id fell into any bag.
    """
    generator = torch.Generator().manual_seed(seed)
    num_ids = round(samples * table.pooling_factor)
    uses = torch.from_numpy(count_uses(table.reuse, num_ids, table.num_embeddings))
    order = torch.randperm(table.num_embeddings, generator=generator)
    num_hot = int((uses >= HOT_USES).sum())

    def draw() -> TableBatch:
        others = torch.randperm(len(order) - num_hot, generator=generator)[: len(uses) - num_hot] + num_hot
        rows = torch.cat([order[:num_hot], order[others]])
        ids = rows.repeat_interleave(uses)[torch.randperm(num_ids, generator=generator)]
        bags = torch.randint(samples, (num_ids,), generator=generator)
        return TableBatch(ids, torch.bincount(bags, minlength=samples))

    return tuple(draw() for _ in range(num_batches))


class GlobalBatches:
    """The batches of a task's tables, which all plans share; what row shards see of them is kept."""

    def __init__(self, tables: Sequence[PoolTable], samples: int, num_batches: int, seed: int) -> None:
        """Draws the batches, every table with a seed of its own."""
        self.num_batches = num_batches
        self._tables = [draw_batches(table, samples, num_batches, seed + at) for at, table in enumerate(tables)]
        self._blocks: dict[tuple[int, int, int], tuple[TableBatch, ...]] = {}

    def of_table(self, table: int) -> tuple[TableBatch, ...]:
        """All ids of the table at this position."""
        return self._tables[table]

    def of_block(self, table: int, row_offset: int, num_rows: int) -> tuple[TableBatch, ...]:
        """What `of_rows` gives of them; plans have few different blocks, so that all together are a few batches."""
        key = table, row_offset, num_rows
        if key not in self._blocks:
            self._blocks[key] = tuple(of_rows(batch, row_offset, num_rows) for batch in self._tables[table])
        return self._blocks[key]


def of_rows(batch: TableBatch, row_offset: int, num_rows: int) -> TableBatch:
    """What TorchRec's input_dist sends to a shard of some rows: the ids of these, counted from its first row.

    Source: TorchRec 1.8 `distributed.embedding_sharding.bucketize_kjt_before_all2all`.
    """
    bags = torch.arange(len(batch.lengths)).repeat_interleave(batch.lengths)
    is_kept = (batch.ids >= row_offset) & (batch.ids < row_offset + num_rows)
    lengths = torch.bincount(bags[is_kept], minlength=len(batch.lengths))
    return TableBatch(batch.ids[is_kept] - row_offset, lengths)


def of_samples(batch: TableBatch, start: int, count: int) -> TableBatch:
    """The batch of some consecutive samples: what a rank has of the global batch, and its replica looks up."""
    ends = batch.lengths.cumsum(0)
    first, last = (int(ends[at - 1]) if at else 0 for at in (start, start + count))
    return TableBatch(batch.ids[first:last], batch.lengths[start : start + count])


def _spread_uses(bin_index: int, count: int) -> NDArray[np.int64]:
    """Uses [count] evenly over the whole numbers strictly between the ends of a bin, whose mean is the bin's middle."""
    if bin_index < 2:
        return np.full(count, bin_index + 1, dtype=np.int64)
    low, high = 2 ** (bin_index - 1) + 1, 2**bin_index - 1
    return np.rint(low + (high - low) * (np.arange(count) + 0.5) / max(1, count)).astype(np.int64)


def _stretch(uses: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Uses in the same proportions with another sum."""
    if not len(uses):
        return uses
    ends = np.rint(np.cumsum(uses) * (total / uses.sum())).astype(np.int64)
    return np.sort(np.diff(ends, prepend=0))[::-1].copy()
