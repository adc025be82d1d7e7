"""Rows in columns: raw as a reader yields them, and encoded as a batch is made from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from dlrm.data.batches import Batch


class RawRows(Protocol):
    """N good rows, parsed and judged but not encoded: to select, permute and cut them costs little."""

    def __len__(self) -> int:
        """N."""
        ...

    def slice(self, start: int, stop: int) -> Self:
        """Rows `[start, stop)`, as views where that is possible."""
        ...

    def take(self, index: npt.NDArray[np.intp]) -> Self:
        """The rows that `index` names, in its order."""
        ...

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, in order; there is at least one part."""
        ...


@dataclass(frozen=True)
class Ragged:
    """One sparse feature of N rows.

    Attributes:
        values: int64 ids of all rows, one row after the other.
        lengths: int64 [N], ids of each row.
    """

    values: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    def split(self, num_rows: int) -> list[Ragged]:
        """Views of `num_rows` rows each, the last one of what is left."""
        starts = np.arange(num_rows, len(self.lengths), num_rows)
        first_values = np.cumsum(self.lengths)[starts - 1]
        parts = zip(np.split(self.values, first_values), np.split(self.lengths, starts), strict=True)
        return [Ragged(*part) for part in parts]


@dataclass(frozen=True)
class Rows:
    """N samples of D dense columns and F sparse features.

    Attributes:
        dense: float32 [N, D].
        labels: float32 [N], 0 or 1.
        features: F ragged columns in the schema's order.
    """

    dense: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32]
    features: tuple[Ragged, ...]

    def split(self, num_rows: int) -> Iterator[Rows]:
        """Views of `num_rows` rows each, the last one of what is left."""
        features = [feature.split(num_rows) for feature in self.features]
        for i, start in enumerate(range(0, len(self.labels), num_rows)):
            part = slice(start, start + num_rows)
            yield Rows(self.dense[part], self.labels[part], tuple(feature[i] for feature in features))

    def to_batch(self, names: Sequence[str]) -> Batch:
        """The same samples as tensors that share no memory with these rows, keyed by the features' names."""
        # Planning reads schemas through this module: torch and TorchRec are loaded where tensors are first made.
        from dlrm.data.batches import Batch

        values = np.concatenate([feature.values for feature in self.features] or [np.empty(0, np.int64)])
        lengths = np.concatenate([feature.lengths for feature in self.features] or [np.empty(0, np.int64)])
        return Batch.from_arrays(self.dense.copy(), names, values, lengths, self.labels.copy())
