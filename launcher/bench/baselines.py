"""What a learned compute cost must beat: TorchRec's formulas, least squares on bytes, NeuroShard's network.

Each is fitted to the same sets and gives milliseconds [N] of N fused sets.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from planner.lookups import LookupArrays

PENALTIES = ((128, 1.0), (64, 1.15), (0, 1.75))
"""TorchRec's factor for rows of at least so many columns. Source: TorchRec 1.8 `planner.constants`, block penalties."""

MIN_LOOKUP_COLS = 32
"""TorchRec takes narrower rows for this wide. Source: TorchRec 1.8 `TableWiseEvaluator`, `use_min_dim_for_lookup`."""

BACKWARD_FACTOR = 2.0
"""Backward over forward. Source: TorchRec 1.8 `planner.constants.BWD_COMPUTE_MULTIPLIER`."""

ID_BYTES = 8
"""An int64 id."""

POOLED_BYTES = 4
"""A column of a pooled row, fp32."""

EPOCHS = 1_000
"""Source: NeuroShard (arXiv 2305.01868), `train_compute_cost_model.py`, as are the batch and learning rate."""

BATCH_SETS = 512
"""Samples of a training batch."""

LEARNING_RATE = 1e-3
"""Of Adam."""

Progress = Callable[[str], None]
"""Is told in a line how far a benchmark is."""


def prefixed(progress: Progress, prefix: str) -> Progress:
    """The same, with words before every line."""
    return lambda text: progress(prefix + text)


@dataclass(frozen=True)
class TorchRecLookups:
    """TorchRec's estimate of the lookups of table-wise shards, times the constant that suits the data best.

    Given the right batch, pooling factors and widths; bandwidth is part of the constant.
    """

    ms_per_byte: float

    @classmethod
    def fit(cls, lookups: LookupArrays, target_ms: NDArray[np.float64]) -> Self:
        """The constant of least mean relative error."""
        return cls(best_constant(_set_sums(torchrec_bytes(lookups), lookups), target_ms))

    def predict_ms(self, lookups: LookupArrays) -> NDArray[np.float64]:
        """Forward and backward ms [N] of fused sets."""
        return self.ms_per_byte * _set_sums(torchrec_bytes(lookups), lookups)


def torchrec_bytes(lookups: LookupArrays) -> NDArray[np.float64]:
    """Bytes [S] of forward and backward that TorchRec's planner divides by the bandwidth.

    Ids, rows gathered and pooled rows written, times a penalty for narrow rows. Source: TorchRec 1.8
    `planner.estimator.TableWiseEvaluator`, `_default_fwd_comp` and `_default_bwd_comp` without coefficients.
    """
    ids = lookups.samples * lookups.ids_per_sample
    gathered = ids * np.maximum(lookups.num_cols, MIN_LOOKUP_COLS) * lookups.weight_bytes
    pooled = lookups.samples * lookups.num_features * lookups.num_cols * POOLED_BYTES
    penalty = np.select([lookups.num_cols >= columns for columns, _ in PENALTIES], [factor for _, factor in PENALTIES])
    return np.asarray((np.ceil(ids * ID_BYTES) + gathered + pooled) * penalty * (1 + BACKWARD_FACTOR))


def best_constant(estimates: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    """c of least mean |c estimate / target - 1|: the median of target / estimate, weighted by its inverse."""
    ratio = target / estimates
    order = np.argsort(ratio)
    weights = np.cumsum(1 / ratio[order])
    return float(ratio[order][np.searchsorted(weights, weights[-1] / 2)])


@dataclass(frozen=True, eq=False)
class ByteLeastSquares:
    """Non-negative least squares on counts and bytes of a set, of least squared relative error."""

    figures: NDArray[np.float64]

    @classmethod
    def fit(cls, lookups: LookupArrays, target_ms: NDArray[np.float64]) -> Self:
        """Milliseconds of each unit of `byte_features`."""
        return cls(relative_nnls(byte_features(lookups), target_ms))

    def predict_ms(self, lookups: LookupArrays) -> NDArray[np.float64]:
        """Forward and backward ms [N] of fused sets."""
        return np.asarray(byte_features(lookups) @ self.figures)


def byte_features(lookups: LookupArrays) -> NDArray[np.float64]:
    """Per set [N, 6]: one, tables, rows gathered, bytes gathered, pooled bytes, bytes of distinct rows."""
    ids = lookups.samples * lookups.ids_per_sample
    row_bytes = lookups.num_cols * lookups.weight_bytes
    columns = (
        np.ones(len(lookups)),
        ids,
        ids * row_bytes,
        lookups.samples * lookups.num_features * lookups.num_cols * POOLED_BYTES,
        lookups.distinct_rows * row_bytes,
    )
    sums = [_set_sums(column, lookups) for column in columns]
    return np.stack([np.ones(lookups.num_sets), *sums], axis=1)


def relative_nnls(features: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Non-negative figures [K] that minimise the sum of (features [N, K] x figures / target - 1)^2."""
    from scipy.optimize import nnls

    relative = features / target[:, None]
    scale = np.sqrt((relative**2).mean(axis=0))
    scale[scale == 0] = 1.0
    figures, _ = nnls(relative / scale, np.ones(len(target)))
    return np.asarray(figures / scale)


class NeuroShardNetwork:
    """NeuroShard's compute cost network, trained again: 20-128-32 a table, sum, 32-64-1 a set.

    Source: NeuroShard (arXiv 2305.01868), `compute_cost_model.py` and `utils.dict2tensor`: reuse bins,
    columns, pooling factor and rows, normalised; mean squared error, Adam, best epoch by validation.
    """

    def __init__(self, lookups: LookupArrays) -> None:
        """A new network, normalised to these sets."""
        features = _neuroshard_features(lookups)
        self._mean, self._scale = features.mean(dim=0), features.std(dim=0) + 1e-6
        width = features.shape[1]
        self._table = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU())
        self._set = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))

    @classmethod
    def fit(
        cls,
        lookups: LookupArrays,
        target_ms: NDArray[np.float64],
        validation: tuple[LookupArrays, NDArray[np.float64]],
        seed: int,
        epochs: int = EPOCHS,
        progress: Progress | None = None,
    ) -> Self:
        """The weights of the epoch with the least squared error on the validation sets."""
        torch.manual_seed(seed)
        model = cls(lookups)
        inputs, starts = model._inputs(lookups)
        held_out = model._inputs(validation[0])

        def loss(sets: torch.Tensor) -> torch.Tensor:
            shards, index = gather_sets(starts, sets)
            estimated = model._forward(inputs[shards], index, len(sets))
            return nn.functional.mse_loss(estimated, targets[sets])

        def held_out_loss() -> float:
            estimated = model._forward(held_out[0], _index_of(held_out[1]), validation[0].num_sets)
            return float(nn.functional.mse_loss(estimated, held_out_targets))

        targets, held_out_targets = (torch.tensor(each, dtype=torch.float32) for each in (target_ms, validation[1]))
        train_network(nn.ModuleList([model._table, model._set]), loss, held_out_loss, len(targets), epochs, progress)
        return model

    @torch.no_grad()
    def predict_ms(self, lookups: LookupArrays) -> NDArray[np.float64]:
        """Forward and backward ms [N] of fused sets."""
        inputs, starts = self._inputs(lookups)
        return self._forward(inputs, _index_of(starts), lookups.num_sets).double().numpy()

    def _inputs(self, lookups: LookupArrays) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised features [S, 20] in the order of sets, and where each set starts [N + 1]."""
        order = np.argsort(lookups.set_index, kind="stable")
        counts = np.bincount(lookups.set_index, minlength=lookups.num_sets)
        starts = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))
        return ((_neuroshard_features(lookups) - self._mean) / self._scale)[torch.from_numpy(order)], starts

    def _forward(self, inputs: torch.Tensor, index: torch.Tensor, num_sets: int) -> torch.Tensor:
        sums = torch.zeros(num_sets, 32).index_add(0, index, self._table(inputs))
        estimated: torch.Tensor = self._set(sums).squeeze(1)
        return estimated


def train_network(
    network: nn.Module,
    loss: Callable[[torch.Tensor], torch.Tensor],
    held_out_loss: Callable[[], float],
    num_samples: int,
    epochs: int,
    progress: Progress | None = None,
) -> None:
    """Adam over shuffled batches; afterwards the network has the weights of its best epoch.

    Args:
        network: What is trained.
        loss: Of the samples at these positions [B].
        held_out_loss: Of the validation samples.
        num_samples: How many there are to train on.
        epochs: Passes over them.
        progress: Is told the state ten times.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    best, best_state = float("inf"), {}
    for epoch in range(1, epochs + 1):
        for batch in torch.randperm(num_samples).split(BATCH_SETS):
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()
        with torch.no_grad():
            found = held_out_loss()
        if found < best:
            best, best_state = found, {name: value.clone() for name, value in network.state_dict().items()}
        if progress is not None and epoch % max(1, epochs // 10) == 0:
            progress(f"epoch {epoch} of {epochs}: validation RMSE {found**0.5:.1f} ms, best {best**0.5:.1f} ms")
    network.load_state_dict(best_state)


def gather_sets(starts: torch.Tensor, sets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the shards of some sets [B], and which of them each belongs to.

    >>> gather_sets(torch.tensor([0, 2, 5]), torch.tensor([1, 0]))
    (tensor([2, 3, 4, 0, 1]), tensor([0, 0, 0, 1, 1]))
    """
    counts = starts[sets + 1] - starts[sets]
    index = torch.repeat_interleave(torch.arange(len(sets)), counts)
    first = torch.cumsum(counts, 0) - counts
    return starts[sets][index] + torch.arange(len(index)) - first[index], index


def _index_of(starts: torch.Tensor) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())


def _neuroshard_features(lookups: LookupArrays) -> torch.Tensor:
    """Features [S, 20] as they are measured, not normalised."""
    columns = (lookups.num_cols, lookups.ids_per_sample, lookups.num_rows)
    return torch.tensor(np.column_stack([lookups.reuse, *columns]), dtype=torch.float32)


def _set_sums(figures: NDArray[np.float64], lookups: LookupArrays) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = np.bincount(lookups.set_index, figures, lookups.num_sets).astype(np.float64)
    return sums
