"""Proof that the installed trio works: one fused lookup trained on one device."""

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)


def train_one_lookup(device: torch.device) -> None:
    """Look rows up with FBGEMM's fused kernel, go backward, and see that only those rows moved.

    Raises whatever the libraries raise, and RuntimeError where the rows did not move as they should.
    """
    is_cuda = device.type == "cuda"
    location = EmbeddingLocation.DEVICE if is_cuda else EmbeddingLocation.HOST
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(8, 4, location, ComputeDevice.CUDA if is_cuda else ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_SGD,
        learning_rate=1.0,
        device=device,
    )
    weights = tables.split_embedding_weights()[0]
    with torch.no_grad():
        weights.fill_(1.0)
    ids = torch.tensor([1, 3], dtype=torch.int64, device=device)
    offsets = torch.tensor([0, 1, 2], dtype=torch.int64, device=device)
    tables(ids, offsets).sum().backward()
    expected = torch.ones(8, 4, device=device)
    expected[ids] -= 1.0
    if not torch.equal(tables.split_embedding_weights()[0], expected):
        raise RuntimeError(f"fbgemm's fused lookup trains wrongly on {device}: rows 1 and 3 should have moved by 1")
