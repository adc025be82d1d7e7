"""Trains the learned cost of lookups from measurements, and adapts a trained one to a device from a few dozen."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planner.cost.compute import ComputeModel, LookupNetwork
from planner.cost.features import WORK_TERMS, shard_features, work_terms
from planner.lookups import LookupArrays
from planner.profile import LookupMeasurement

FORWARD_BACKWARD = ("forward", "backward")
"""The outputs of a model that is trained on profiles."""


@dataclass(frozen=True)
class FitOptions:
    """How a model is trained; the same for any file of measurements.

    Attributes:
        num_members: Members of the ensemble, each with its own first weights and order of batches.
        num_steps: Steps of the optimizer: as many passes over the sets as these make.
        batch_size: Sets in a step.
        learning_rate: The peak of the one-cycle schedule. Source: Smith and Topin 2019, arXiv 1708.07120.
        weight_decay: Of the shard network's weights. Source: Loshchilov and Hutter 2019, arXiv 1711.05101.
    """

    num_members: int = 4
    num_steps: int = 1300
    batch_size: int = 128
    learning_rate: float = 1e-2
    weight_decay: float = 0.15


def fit_compute(
    lookups: LookupArrays,
    target_ms: NDArray[np.float64],
    seed: int,
    progress: Callable[[str], None] | None = None,
    outputs: tuple[str, ...] = ("total",),
    options: FitOptions | None = None,
) -> ComputeModel:
    """A model of measured sets.

    Args:
        lookups: N sets.
        target_ms: [N, K] their times; in canaries where the model is to serve devices of different speed.
        seed: Of first weights and the order of batches.
        progress: Told now and then how far it is.
        outputs: Names of the K columns.
        options: How to train; the defaults serve from a thousand sets up.
    """
    options = options or FitOptions()
    features = shard_features(lookups)
    mean, scale = features.mean(axis=0), features.std(axis=0)
    # What was the same in all sets says nothing of others: it is left out.
    scale = np.where(scale > 1e-3, scale, np.inf)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LookupNetwork(options.num_members, len(outputs), features.shape[1])
        network.unit.copy_(torch.from_numpy(np.median(target_ms, axis=0)))
        model = ComputeModel(network, mean, scale, outputs, {})
        network.log_price.data[:] = torch.from_numpy(np.log(first_prices(lookups, target_ms)))
        _train(model, lookups, torch.from_numpy(target_ms.astype(np.float32)), options, progress)
    return model


def first_prices(lookups: LookupArrays, target_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Prices [K, J] to start from, in units of a typical set: non-negative least squares on relative errors.

    A term that these leave out starts at `LEAST_PRICE` of what it would cost if it were everything.
    Source: Lawson and Hanson 1974, Solving Least Squares Problems, chapter 23 (`scipy.optimize.nnls`).
    """
    from scipy.optimize import nnls

    work = np.zeros((lookups.num_sets, len(WORK_TERMS)))
    np.add.at(work, lookups.set_index, work_terms(lookups))
    size = work.mean(axis=0)
    size = np.where(size > 0, size, 1.0)
    times = target_ms / np.median(target_ms, axis=0)
    fitted = [nnls(work / size / time[:, None], np.ones(len(work)))[0] / size for time in times.T]
    return np.maximum(fitted, LEAST_PRICE / size)


LEAST_PRICE = 0.03


def relative_loss(estimated: Tensor, measured: Tensor, unit: Tensor) -> Tensor:
    """The loss of each estimate: squared error over the time, and absolute relative error.

    The first counts most for long sets, whose noise grows with the root of the time; the second for short ones.
    Errors are in units of a typical set, `unit`.
    """
    time, error = measured / unit, (estimated - measured) / unit
    return SQUARED_WEIGHT * error.square() / (time + 4e-4) + error.abs() / (time + 2.5e-3)


SQUARED_WEIGHT = 0.9
"""Of the squared part of `relative_loss`, by 5-fold trials on the measurements of `bench cost-file`."""


def adapt_compute(
    model: ComputeModel, measurements: Sequence[LookupMeasurement], canary_ms: float | NDArray[np.float64]
) -> ComputeModel:
    """The model with its prices and bases fitted to a device, from a few dozen measurements.

    Only the logarithms of prices and bases move, the same for all members, and a penalty holds each near its old
    value unless the measurements speak against it. Corrections and interaction stay as they were learned.
    """
    lookups, target = measured_sets(measurements, canary_ms)
    adapted = copy.deepcopy(model.network).requires_grad_(False)
    _, num_outputs, _ = adapted.shape
    steps = {
        "log_price": torch.zeros(1, 1, num_outputs, adapted.log_price.shape[-1], requires_grad=True),
        "log_base": torch.zeros(1, num_outputs, requires_grad=True),
    }
    first = {name: getattr(model.network, name).detach().clone() for name in steps}
    features, work = model.inputs(lookups)
    index, times = torch.from_numpy(lookups.set_index), torch.from_numpy(target.astype(np.float32))
    optimizer = torch.optim.LBFGS(list(steps.values()), max_iter=ADAPT_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        moved = {name: first[name] + step for name, step in steps.items()}
        costs = torch.func.functional_call(adapted, moved, (features, work, index, lookups.num_sets))
        error = (costs.mean(dim=0) / times).log()
        penalty = sum(step.square().sum() for step in steps.values()) * ADAPT_PENALTY / lookups.num_sets
        total = torch.sqrt(error.square() + ROBUST**2).mean() + penalty
        total.backward()
        return total

    optimizer.step(loss)
    for name, step in steps.items():
        getattr(adapted, name).copy_(first[name] + step.detach())
    return ComputeModel(adapted, model.mean, model.scale, model.outputs, model.card)


ADAPT_STEPS = 60
ADAPT_PENALTY = 0.1
ROBUST = 0.05
"""Of `adapt_compute`: L-BFGS iterations; cost of a factor e in a price, in summed relative errors; and the relative
error above which a measurement counts by its size instead of its square, so that outliers do not steer."""


def measured_sets(
    measurements: Sequence[LookupMeasurement], canary_ms: float | NDArray[np.float64]
) -> tuple[LookupArrays, NDArray[np.float64]]:
    """Sets and their times [N, 2], forward and backward, in canaries: of one speed for all, or of one each [N]."""
    times = np.array([(each.forward.median_ms, each.backward.median_ms) for each in measurements])
    canaries = np.broadcast_to(np.asarray(canary_ms, dtype=np.float64), len(measurements))
    return LookupArrays.of([each.lookups for each in measurements]), times / canaries[:, None]


def _train(
    model: ComputeModel,
    lookups: LookupArrays,
    target: Tensor,
    options: FitOptions,
    progress: Callable[[str], None] | None,
) -> None:
    batches = _Batches(model, lookups, target, options)
    network, num_epochs = model.network, max(1, round(options.num_steps / batches.num_steps))
    num_steps, told_every = num_epochs * batches.num_steps, max(1, num_epochs // 10)
    optimizer = torch.optim.AdamW(_parameter_groups(network, options), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, total_steps=num_steps)
    for epoch in range(num_epochs):
        for features, work, index, times in batches.shuffled():
            costs = network(features, work, index, times.shape[1])
            loss = relative_loss(costs, times, network.unit).mean(dim=(1, 2)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if progress is not None and (epoch + 1) % told_every == 0:
            progress(f"epoch {epoch + 1}/{num_epochs}, loss {loss.item() / options.num_members:.3f}")


class _Batches:
    """Random batches, other ones for each member, of as many sets."""

    def __init__(self, model: ComputeModel, lookups: LookupArrays, target: Tensor, options: FitOptions) -> None:
        self.options, self.target = options, target
        features, work = model.inputs(lookups)
        order = np.argsort(lookups.set_index, kind="stable")
        counts = np.bincount(lookups.set_index, minlength=lookups.num_sets)
        self.order, self.counts = torch.from_numpy(order), torch.from_numpy(counts)
        self.starts = self.counts.cumsum(0) - self.counts
        self.features, self.work = features[0], work[0]
        self.num_steps = -(-lookups.num_sets // options.batch_size)

    def shuffled(self) -> Any:
        """Features [E, S, F], work [E, S, J], set of each shard [E, S] and times [E, n, K], one pass over all sets."""
        members = range(self.options.num_members)
        orders = torch.stack([torch.randperm(len(self.counts)) for _ in members])
        for chosen in orders.split(self.options.batch_size, dim=1):
            parts = [self._shards_of(sets) for sets in chosen]
            most = max(len(shards) for shards, _ in parts)
            # Missing shards have no work; a bag of their own, after the last set, takes what else they add.
            shards = torch.stack([_pad(shards, most, 0) for shards, _ in parts])
            index = torch.stack([_pad(index, most, chosen.shape[1]) for _, index in parts])
            yield self.features[shards], self.work[shards], index, self.target[chosen]

    def _shards_of(self, sets: Tensor) -> tuple[Tensor, Tensor]:
        counts = self.counts[sets]
        index = torch.repeat_interleave(torch.arange(len(sets)), counts)
        within = torch.arange(len(index)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        return self.order[self.starts[sets][index] + within], index


def _pad(values: Tensor, length: int, fill: int) -> Tensor:
    """The values, extended to a length."""
    return torch.nn.functional.pad(values, (0, length - len(values)), value=fill)


def _parameter_groups(network: LookupNetwork, options: FitOptions) -> list[dict[str, Any]]:
    """Weights decay; prices, bases and biases do not, since nothing speaks for their being small."""
    decays = {name: "weight" in name for name, _ in network.named_parameters()}
    return [
        {
            "params": [each for name, each in network.named_parameters() if decays[name] is is_decayed],
            "weight_decay": options.weight_decay if is_decayed else 0.0,
        }
        for is_decayed in (True, False)
    ]
