"""Fused lookups: what one embedding kernel is asked to do, as types for files and as arrays for models."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.tables import OptimizerKind

NUM_REUSE_BINS = 17
"""Bins of a reuse histogram: shares of the distinct rows of a batch that occur (0,1], (1,2], (2,4] ...
(16384,32768], > 32768 times.

Source: facebookresearch/dlrm_datasets, `2021/` statistics; the features of AutoShard (arXiv 2208.06399), section 4.
"""


@dataclass(frozen=True)
class LookupShard:
    """One shard as its kernel sees it.

    Attributes:
        num_rows: Rows of the shard.
        num_cols: Columns of the shard.
        ids_per_sample: Mean ids a sample that fall on these rows, over all features of the table.
        distinct_rows: Mean distinct rows that a batch touches.
        reuse: Shares of the distinct rows by how often a batch uses them, `NUM_REUSE_BINS` figures.
        num_features: Bags a sample: one pooled row each.
    """

    num_rows: int
    num_cols: int
    ids_per_sample: float
    distinct_rows: float
    reuse: tuple[float, ...]
    num_features: int = 1


@dataclass(frozen=True)
class LookupSet:
    """The shards that one fused kernel serves, and the batch it is given.

    Attributes:
        samples: Samples of a batch: the global batch, since a shard serves all ranks.
        optimizer: Fused into the backward pass.
        shards: At least one.
        weight_bytes: Bytes of a weight.
    """

    samples: int
    optimizer: OptimizerKind
    shards: tuple[LookupShard, ...]
    weight_bytes: int = 4


@dataclass(frozen=True, eq=False)
class LookupArrays:
    """The shards of N sets one after another, one entry each in arrays [S].

    Attributes:
        num_sets: N.
        set_index: int64 [S], the set of each shard, 0 to N - 1.
        samples: float64 [S], as are all below but `reuse`.
        num_rows: See `LookupShard`.
        num_cols: See `LookupShard`.
        ids_per_sample: See `LookupShard`.
        num_features: See `LookupShard`.
        distinct_rows: See `LookupShard`.
        weight_bytes: Bytes of a weight.
        state_bytes: Bytes of optimizer state a row, read and written by an update.
        reuse: float64 [S, NUM_REUSE_BINS].
    """

    num_sets: int
    set_index: NDArray[np.int64]
    samples: NDArray[np.float64]
    num_rows: NDArray[np.float64]
    num_cols: NDArray[np.float64]
    ids_per_sample: NDArray[np.float64]
    num_features: NDArray[np.float64]
    distinct_rows: NDArray[np.float64]
    weight_bytes: NDArray[np.float64]
    state_bytes: NDArray[np.float64]
    reuse: NDArray[np.float64]

    def __len__(self) -> int:
        """Number of shards, S."""
        return len(self.set_index)

    @classmethod
    def of(cls, sets: Sequence[LookupSet]) -> "LookupArrays":
        """The arrays of some sets."""
        rows = [
            (
                index,
                each.samples,
                shard.num_rows,
                shard.num_cols,
                shard.ids_per_sample,
                shard.num_features,
                shard.distinct_rows,
                each.weight_bytes,
                float(state_bytes(each.optimizer, shard.num_cols)),
                *shard.reuse,
            )
            for index, each in enumerate(sets)
            for shard in each.shards
        ]
        figures = np.array(rows, dtype=np.float64).reshape(len(rows), -1)
        return cls(
            num_sets=len(sets),
            set_index=figures[:, 0].astype(np.int64),
            samples=figures[:, 1],
            num_rows=figures[:, 2],
            num_cols=figures[:, 3],
            ids_per_sample=figures[:, 4],
            num_features=figures[:, 5],
            distinct_rows=figures[:, 6],
            weight_bytes=figures[:, 7],
            state_bytes=figures[:, 8],
            reuse=figures[:, 9:],
        )

    def subset(self, sets: NDArray[np.int64]) -> "LookupArrays":
        """Only the sets at these positions, in this order."""
        order = np.argsort(self.set_index, kind="stable")
        ends = np.cumsum(np.bincount(self.set_index, minlength=self.num_sets))
        kept = [order[(ends[index - 1] if index else 0) : ends[index]] for index in sets]
        at = np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)
        index = np.repeat(np.arange(len(sets)), [len(each) for each in kept])
        taken = {
            field.name: getattr(self, field.name)[at]
            for field in fields(self)
            if field.name not in ("num_sets", "set_index")
        }
        return LookupArrays(len(sets), index, **taken)


def state_bytes(optimizer: OptimizerKind, num_cols: ArrayLike) -> NDArray[np.float64]:
    """Bytes of optimizer state of rows with these columns: none, one fp32 accumulator, or two fp32 moments a column.

    Source: fbgemm_gpu 1.8 `SplitTableBatchedEmbeddingBagsCodegen`, states of EXACT_SGD, EXACT_ROWWISE_ADAGRAD, ADAM.
    """
    cols = np.asarray(num_cols, dtype=np.float64)
    return {
        OptimizerKind.SGD: np.zeros_like(cols),
        OptimizerKind.ROWWISE_ADAGRAD: np.full_like(cols, 4.0),
        OptimizerKind.ADAM: 8.0 * cols,
    }[optimizer]
