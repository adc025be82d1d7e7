"""The learned cost of fused lookups: a set network that can only grow when a shard is added.

For outputs k (forward, backward), members e of the ensemble, shards s of a set and work terms j:

    embed    z_s = softplus(net(x_s)) [H],  c_skj = correction of term j
    sums     A_k = sum_s sum_j price_kj work_sj exp(2 tanh(c_skj / 2)),   Z = sum_s z_s
    cost_k   = canary_ms unit_k (base_k + A_k exp(r_k(Z)))

Prices and bases are positive, and r is a network with no negative weight and rising activations. So a cost is
positive, invariant under permutations, never smaller when a shard is added, defined for any number of shards,
and, as r is 0 without
shards, never below base_k + A_k, which is linear in sums over shards: what a lower bound needs. Shards of a
fused set disturb each other more the more there are, so r has no need to fall. A device enters by its canary, the
time of one fixed lookup: on a device that is slower throughout, everything takes so many times longer.

Source: Zaheer et al. 2017, Deep Sets (arXiv 1703.06114), theorem 2, for the sum; NeuroShard (arXiv 2305.01868),
section 3, for its use on tables; Daniels and Velikova 2010 for networks that are monotone by their weights' signs.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from planner.cost.features import WORK_TERMS, shard_features, work_terms
from planner.errors import PlanningError
from planner.lookups import LookupArrays

HIDDEN, POOLED, RISING = 64, 16, 32
"""Widths: of the shard network, of its pooled output, and of each kind of activation in r."""

MOST_CORRECTION = 2.0
"""A correction changes a term by at most e^2, seven times either way: the physical order of magnitude stays."""

FIRST_PRICE, FIRST_BASE = 0.05, 0.002
"""Where prices and bases start, in units of a typical set, whose shards have a work of about 20 together."""

FORMAT = 1
"""Version of the file; another one is refused."""


class LookupNetwork(nn.Module):
    """E members with K outputs each, for shards with F features; the module's docstring gives the formulas.

    Attributes:
        shape: (E, K, F).
        unit: [K], canaries that a typical set takes: costs are learned in these.
    """

    unit: Tensor

    def __init__(self, num_members: int, num_outputs: int, num_features: int) -> None:
        """Draws first weights from torch's generator; prices start at `FIRST_PRICE`."""
        super().__init__()
        self.shape = (num_members, num_outputs, num_features)
        num_corrections = num_outputs * len(WORK_TERMS)
        self.layers = nn.ModuleList(
            _Members(num_members, inputs, outputs)
            for inputs, outputs in ((num_features, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, num_corrections + POOLED))
        )
        rise = (_Members(num_members, POOLED, 2 * RISING), _Members(num_members, 2 * RISING, num_outputs))
        for layer in rise:
            layer.weight.data *= 1 / math.sqrt(layer.weight.shape[1])
        self.rise = nn.ModuleList(rise)
        self.log_price = nn.Parameter(torch.full((num_members, 1, num_outputs, len(WORK_TERMS)), FIRST_PRICE).log())
        self.log_base = nn.Parameter(torch.full((num_members, num_outputs), FIRST_BASE).log())
        self.register_buffer("unit", torch.ones(num_outputs))

    @property
    def num_loads(self) -> int:
        """L: columns of `embed`, K + H."""
        return self.shape[1] + POOLED

    def forward(self, features: Tensor, work: Tensor, set_index: Tensor, num_sets: int) -> Tensor:
        """Costs [E, N, K] of N sets; shards with a set [E or 1, S] of N or more belong to none."""
        loads = self.embed(features, work)
        index = set_index.expand(loads.shape[:2]).unsqueeze(-1).expand_as(loads)
        sums = loads.new_zeros(loads.shape[0], num_sets + 1, loads.shape[-1]).scatter_add(1, index, loads)
        return self.cost(sums[:, :num_sets])

    def embed(self, features: Tensor, work: Tensor) -> Tensor:
        """Additive loads [E, S, L] of shards from features [E or 1, S, F] and work [E or 1, S, J]: A_k, then z."""
        num_members, num_outputs, _ = self.shape
        hidden = features.expand(num_members, -1, -1)
        for layer in self.layers[:-1]:
            hidden = F.silu(layer(hidden))
        hidden = self.layers[-1](hidden)
        corrections, pooled = hidden.split([hidden.shape[-1] - POOLED, POOLED], dim=-1)
        corrections = corrections.unflatten(-1, (num_outputs, len(WORK_TERMS)))
        factors = torch.exp(MOST_CORRECTION * torch.tanh(corrections / MOST_CORRECTION))
        priced = (work.unsqueeze(-2) * self.log_price.exp() * factors).sum(dim=-1)
        return torch.cat([priced, F.softplus(pooled)], dim=-1)

    def cost(self, loads: Tensor) -> Tensor:
        """Costs [E, N, K], in canaries, of summed loads [E, N, L]; an empty set costs its base."""
        priced, pooled = loads.split([self.shape[1], POOLED], dim=-1)
        return self.unit * (self.log_base.exp().unsqueeze(1) + priced * torch.exp(self._rise(pooled)))

    def floor(self) -> tuple[Tensor, Tensor]:
        """What a cost cannot be below: base [E, K], and the factor [E, K] of the priced loads without interaction."""
        return self.unit * self.log_base.exp(), self.unit.expand(self.shape[:2])

    def _rise(self, pooled: Tensor) -> Tensor:
        """r [E, N, K] of pooled sums [E, N, H] >= 0: 0 without shards, never falls, at most 4."""
        nothing = torch.zeros(self.shape[0], 1, POOLED)
        return self._bounded(torch.log1p(pooled)) - self._bounded(nothing)

    def _bounded(self, sizes: Tensor) -> Tensor:
        """A rising function [E, N, K] of sizes [E, N, H], within (-2, 2)."""
        first, second = (cast(_Members, layer) for layer in self.rise)
        hidden = first.rising(sizes)
        hidden = torch.cat([F.softplus(hidden[..., :RISING]), torch.tanh(hidden[..., RISING:])], dim=-1)
        return 2 * torch.tanh(second.rising(hidden) / 2)


class _Members(nn.Module):
    """One linear layer a member of the ensemble: [E, N, I] to [E, N, O]."""

    def __init__(self, num_members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_members, inputs, outputs) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(num_members, 1, outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, inputs, self.weight)

    def rising(self, inputs: Tensor) -> Tensor:
        """The layer with the absolute values of its weights: it never falls when an input grows."""
        return torch.baddbmm(self.bias, inputs, self.weight.abs())


@dataclass(frozen=True, eq=False)
class ComputeModel:
    """A trained network with all that its inputs need; its outputs are in milliseconds.

    Attributes:
        network: The ensemble.
        mean: float64 [F], subtracted from features.
        scale: float64 [F], divides them then.
        outputs: Names of the K outputs, such as forward and backward.
        card: What it was trained on and how good it is, for people.
    """

    network: LookupNetwork
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    outputs: tuple[str, ...]
    card: dict[str, Any]

    @property
    def num_loads(self) -> int:
        """Columns of `loads`: E x (K + H)."""
        return self.network.shape[0] * self.network.num_loads

    @torch.no_grad()
    def loads(self, lookups: LookupArrays) -> NDArray[np.float32]:
        """Additive figures [S, num_loads] of shards: a set's are the sum of its shards'."""
        features, work = self.inputs(lookups)
        return self.network.embed(features, work).transpose(0, 1).flatten(1).numpy()

    @torch.no_grad()
    def cost_ms(self, loads: NDArray[Any], canary_ms: float = 1.0) -> NDArray[np.float32]:
        """Milliseconds [..., K] of summed loads [..., num_loads], the mean of the members."""
        return self._members_ms(loads, canary_ms).mean(axis=0)

    @torch.no_grad()
    def spread(self, loads: NDArray[Any]) -> NDArray[np.float32]:
        """How much the members differ [..., K]: their standard deviation over their mean."""
        members = self._members_ms(loads, 1.0)
        return members.std(axis=0) / members.mean(axis=0)

    def predict_ms(self, lookups: LookupArrays, canary_ms: float = 1.0) -> NDArray[np.float32]:
        """Milliseconds [N, K] of whole sets."""
        return self.cost_ms(self.sum_loads(lookups), canary_ms)

    def sum_loads(self, lookups: LookupArrays) -> NDArray[np.float32]:
        """Loads [N, num_loads] of whole sets."""
        sums = np.zeros((lookups.num_sets, self.num_loads), dtype=np.float32)
        np.add.at(sums, lookups.set_index, self.loads(lookups))
        return sums

    @torch.no_grad()
    def linear_floor(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Constants [K] and prices [K, num_loads] of a linear function that no cost, in canaries, is below."""
        num_members, num_outputs, _ = self.network.shape
        base, factor = (each.double().numpy() for each in self.network.floor())
        prices = np.zeros((num_outputs, num_members, self.network.num_loads))
        for output in range(num_outputs):
            prices[output, :, output] = factor[:, output] / num_members
        return base.mean(axis=0), prices.reshape(num_outputs, -1)

    def inputs(self, lookups: LookupArrays) -> tuple[Tensor, Tensor]:
        """Standardised features [1, S, F] and work [1, S, J] of shards."""
        features = (shard_features(lookups) - self.mean) / self.scale
        return (
            torch.from_numpy(features.astype(np.float32))[None],
            torch.from_numpy(work_terms(lookups).astype(np.float32))[None],
        )

    def save(self, path: Path) -> None:
        """Write the weights as an npz of plain arrays, beside and renamed."""
        arrays = {f"network.{name}": tensor.numpy() for name, tensor in self.network.state_dict().items()}
        about = {"format": FORMAT, "shape": self.network.shape, "outputs": self.outputs, "card": self.card}
        beside = path.with_name(f".{path.name}.partial")
        with beside.open("wb") as file:
            np.savez(file, about=np.array(json.dumps(about)), mean=self.mean, scale=self.scale, **arrays)
        beside.rename(path)

    @classmethod
    def load(cls, path: Path) -> "ComputeModel":
        """The model of a file that `save` wrote; raises PlanningError (reason `weights`) for any other."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            about = json.loads(str(arrays.pop("about")))
            if about["format"] != FORMAT:
                raise ValueError(f"format {about['format']}, expected {FORMAT}")
            network = LookupNetwork(*about["shape"])
            prefix = "network."
            weights = {key[len(prefix) :]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith(prefix)}
            network.load_state_dict(weights)
            return cls(network, arrays["mean"], arrays["scale"], tuple(about["outputs"]), about["card"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError, BadZipFile) as error:
            raise PlanningError(
                f"cost weights {path}: cannot be read: {error}; make them with `shardwright pretrain cost`",
                reason="weights",
            ) from error

    def _members_ms(self, loads: NDArray[Any], canary_ms: float) -> NDArray[np.float32]:
        num_members = self.network.shape[0]
        flat = np.ascontiguousarray(loads, dtype=np.float32).reshape(-1, num_members, self.network.num_loads)
        costs = self.network.cost(torch.from_numpy(flat).transpose(0, 1))
        return costs.numpy().reshape(num_members, *loads.shape[:-1], -1) * np.float32(canary_ms)
