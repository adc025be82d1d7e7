"""Batches made hot on purpose: more ids for a table, or other rows."""

from collections.abc import Collection, Mapping
from itertools import pairwise

import torch
from torch.nn.functional import pad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm.data.batches import Batch


def add_ids(batch: Batch, donors: Mapping[str, torch.Tensor], percent: float) -> Batch:
    """The batch with `percent` more ids of the features in `donors`, evenly over the batch.

    Of n ids come floor(n (1 + percent / 100)); the further ones are the donor's, from its first on, and again where it
    has too few. Other batches give as many new rows as data would; ids of the batch itself are rows that are in the
    cache and updated anyway, and hardly take longer. A donor without ids gives the batch's own.
    """
    sparse = batch.sparse_features
    values, lengths = [], []
    for (feature, (first, last)), of_feature in zip(_spans(sparse).items(), _lengths(sparse), strict=True):
        ids = sparse.values()[first:last]
        if feature in donors:
            # Where each id and what follows it end; before the first one that is 0.
            ends = torch.floor(torch.arange(len(ids) + 1, dtype=torch.float64) * (1 + percent / 100)).long()
            ids = _interleave(ids, ends, donors[feature])
            of_feature = ends[pad(of_feature.long().cumsum(0), (1, 0))].diff().to(of_feature.dtype)
        values.append(ids)
        lengths.append(of_feature)
    return _with_ids(batch, torch.cat(values), torch.cat(lengths))


def _interleave(ids: torch.Tensor, ends: torch.Tensor, donor: torch.Tensor) -> torch.Tensor:
    """The ids, where `ends` [n + 1] leaves room behind one filled with the donor's."""
    filled = ids.repeat_interleave(ends.diff())
    if len(donor):
        is_further = torch.ones(len(filled), dtype=torch.bool)
        is_further[ends[:-1]] = False
        num_further = len(filled) - len(ids)
        filled[is_further] = donor[torch.arange(num_further) % len(donor)]
    return filled


def ids_of(batch: Batch, features: Collection[str]) -> dict[str, torch.Tensor]:
    """The ids of these features, all samples'."""
    sparse = batch.sparse_features
    return {name: sparse.values()[first:last] for name, (first, last) in _spans(sparse).items() if name in features}


def shift_ids(batch: Batch, num_rows: Mapping[str, int], share: float) -> Batch:
    """The batch with the ids of these features moved on by a share of their tables' rows, modulo the rows."""
    sparse = batch.sparse_features
    values = sparse.values().clone()
    for feature, (first, last) in _spans(sparse).items():
        if feature in num_rows:
            rows = num_rows[feature]
            values[first:last] = (values[first:last] + round(share * rows)) % rows
    return _with_ids(batch, values, sparse.lengths())


def _spans(sparse: KeyedJaggedTensor) -> dict[str, tuple[int, int]]:
    """Where the ids of every feature begin and end."""
    return dict(zip(sparse.keys(), pairwise(sparse.offset_per_key()), strict=True))


def _lengths(sparse: KeyedJaggedTensor) -> torch.Tensor:
    """Ids of every feature and sample `[F, B]`."""
    return sparse.lengths().view(len(sparse.keys()), -1)


def _with_ids(batch: Batch, values: torch.Tensor, lengths: torch.Tensor) -> Batch:
    sparse = KeyedJaggedTensor(keys=batch.sparse_features.keys(), values=values, lengths=lengths)
    return Batch(batch.dense_features, sparse, batch.labels)
