"""Rows in columns: what a reader yields and what a batch is cut from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from dlrm.data.batches import Batch


@dataclass(frozen=True)
class Ragged:
    """One sparse feature of N rows.

    Attributes:
        values: int64 ids of all rows, one row after the other.
        offsets: int64 [N + 1]; row i holds `values[offsets[i]:offsets[i + 1]]`; `offsets[0]` is 0.
    """

    values: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Ids of each row, [N]."""
        return np.diff(self.offsets)

    def slice(self, start: int, stop: int) -> Ragged:
        """Rows `[start, stop)`."""
        offsets = self.offsets[start : stop + 1]
        return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def take(self, index: npt.NDArray[np.intp]) -> Ragged:
        """The rows that `index` names, in its order."""
        lengths = self.lengths
        if len(self.values) == len(lengths) and bool((lengths == 1).all()):
            return single_valued(self.values[index])
        taken = lengths[index]
        offsets = offsets_of(taken)
        # Position within the row, plus where the row starts in the old values.
        source = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][index] - offsets[:-1], taken)
        return Ragged(self.values[source], offsets)


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

    def __len__(self) -> int:
        """N."""
        return len(self.labels)

    def slice(self, start: int, stop: int) -> Rows:
        """Rows `[start, stop)`; dense and labels are views."""
        features = tuple(feature.slice(start, stop) for feature in self.features)
        return Rows(self.dense[start:stop], self.labels[start:stop], features)

    def take(self, index: npt.NDArray[np.intp]) -> Rows:
        """The rows that `index` names, in its order."""
        return Rows(self.dense[index], self.labels[index], tuple(feature.take(index) for feature in self.features))

    def to_batch(self, names: Sequence[str]) -> Batch:
        """The same samples as tensors that share no memory with these rows, keyed by the features' names."""
        # Planning reads schemas through this module: torch and TorchRec are loaded where tensors are first made.
        from dlrm.data.batches import Batch

        values = np.concatenate([feature.values for feature in self.features] or [np.empty(0, np.int64)])
        lengths = np.concatenate([feature.lengths for feature in self.features] or [np.empty(0, np.int64)])
        return Batch.from_arrays(self.dense.copy(), names, values, lengths, self.labels.copy())


def offsets_of(lengths: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Where each row's ids start, [N + 1], from the lengths [N]."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def single_valued(values: npt.NDArray[np.int64]) -> Ragged:
    """A feature with one id in every row."""
    return Ragged(values, np.arange(len(values) + 1))


def concatenate(parts: Sequence[Rows]) -> Rows:
    """The rows of all parts, in order; there must be at least one part."""
    if len(parts) == 1:
        return parts[0]
    features = tuple(
        Ragged(np.concatenate([f.values for f in column]), offsets_of(np.concatenate([f.lengths for f in column])))
        for column in zip(*(part.features for part in parts), strict=True)
    )
    dense = np.concatenate([part.dense for part in parts])
    return Rows(dense, np.concatenate([part.labels for part in parts]), features)
