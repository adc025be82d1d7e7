"""One rank's share of one step: the batch that travels from the reader to the model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class Batch(Pipelineable):
    """B samples of one rank; mutable, and named so, because TorchRec's models and pipelines want it.

    Attributes:
        dense_features: float32 [B, D].
        sparse_features: keyed by feature name, values int64, lengths int32 [F * B] in the order of the keys.
        labels: float32 [B], 0 or 1.
    """

    dense_features: torch.Tensor
    sparse_features: KeyedJaggedTensor
    labels: torch.Tensor

    @classmethod
    def from_arrays(
        cls,
        dense: npt.NDArray[np.float32],
        names: Sequence[str],
        values: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        labels: npt.NDArray[np.float32],
    ) -> "Batch":
        """A batch that shares the arrays' memory: dense [B, D], ids of all features, lengths [F * B], labels [B]."""
        sparse = KeyedJaggedTensor(
            keys=list(names), values=torch.from_numpy(values), lengths=torch.from_numpy(lengths.astype(np.int32))
        )
        return cls(torch.from_numpy(dense), sparse, torch.from_numpy(labels))

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """The same samples on a device."""
        return Batch(
            dense_features=self.dense_features.to(device=device, non_blocking=non_blocking),
            sparse_features=self.sparse_features.to(device=device, non_blocking=non_blocking),
            labels=self.labels.to(device=device, non_blocking=non_blocking),
        )

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory until the stream has used it."""
        self.dense_features.record_stream(stream)
        self.sparse_features.record_stream(stream)
        self.labels.record_stream(stream)

    def pin_memory(self) -> "Batch":
        """The same samples in page-locked host memory, which copies to a GPU without blocking."""
        return Batch(self.dense_features.pin_memory(), self.sparse_features.pin_memory(), self.labels.pin_memory())
