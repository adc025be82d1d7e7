"""The learned cost of fused lookups: a set network that can only grow when a shard is added, and is convex.

For outputs k (forward, backward), members e of the ensemble, shards s of a set, work terms j and hinges h:

    embed    c_skj, p_sh = net(x_s)            corrections and mixtures of shard s
    loads    A_k = sum_s sum_j price_kj work_sj exp(2 tanh(c_skj / 2))
             Z_h = sum_s (sum_k a_sk) softplus(p_sh),  a_sk what shard s adds to A_k
    cost_k   = canary_ms unit_k (base_k + A_k + sum_h slope_hk (softplus(Z_h - bend_h) - softplus(-bend_h)))

Prices, bases and slopes are positive. So a cost is positive, invariant under permutations, never smaller when a
shard is added, defined for any number of shards, and a convex function of sums over shards: shards of a fused set
disturb each other more the more there are (compute_8 of csharding: a table costs a fifth less alone than among 15).
Convexity is what a lower bound needs: no way to spread the same loads over ranks beats the even one (Jensen 1906),
and every tangent is a valid linear floor. A device enters by its canary, the time of one fixed lookup: on a device
that is slower throughout, everything takes so many times longer.

Source: Zaheer et al. 2017, Deep Sets (arXiv 1703.06114), theorem 2, for the sum; NeuroShard (arXiv 2305.01868),
section 3, for its use on tables; Amos et al. 2017, Input Convex Neural Networks (arXiv 1609.07152), for convexity by
the signs of weights.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from planner.cost.features import WORK_TERMS, shard_features, work_terms
from planner.errors import PlanningError
from planner.lookups import LookupArrays
from planner.weights_file import NETWORK, UNREADABLE, read_weights, save_weights

HIDDEN, NUM_HINGES = 64, 8
"""Widths: of the shard network, and of the interaction."""

FIRST_LOG_SLOPE, LAST_BEND = -3.0, 6.0
"""Where slopes start, with a spread to tell hinges apart, and over which loads bends start out evenly spaced."""

MOST_CORRECTION = 2.0
"""A correction changes a term by at most e^2, seven times either way: the physical order of magnitude stays."""

FIRST_PRICE, FIRST_BASE = 0.05, 0.002
"""Where prices and bases start, in units of a typical set, whose shards have a work of about 20 together."""

FORMAT = 2
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
            for inputs, outputs in ((num_features, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, num_corrections + NUM_HINGES))
        )
        self.log_price = nn.Parameter(torch.full((num_members, 1, num_outputs, len(WORK_TERMS)), FIRST_PRICE).log())
        self.log_base = nn.Parameter(torch.full((num_members, num_outputs), FIRST_BASE).log())
        self.log_slope = nn.Parameter(FIRST_LOG_SLOPE + 0.3 * torch.randn(num_members, NUM_HINGES, num_outputs))
        self.bend = nn.Parameter(torch.linspace(0.0, LAST_BEND, NUM_HINGES).repeat(num_members, 1))
        self.register_buffer("unit", torch.ones(num_outputs))

    @property
    def num_loads(self) -> int:
        """L: columns of `embed`, K + H."""
        return self.shape[1] + NUM_HINGES

    def forward(self, features: Tensor, work: Tensor, set_index: Tensor, num_sets: int) -> Tensor:
        """Costs [E, N, K] of N sets; shards with a set [E or 1, S] of N or more belong to none."""
        loads = self.embed(features, work)
        index = set_index.expand(loads.shape[:2]).unsqueeze(-1).expand_as(loads)
        sums = loads.new_zeros(loads.shape[0], num_sets + 1, loads.shape[-1]).scatter_add(1, index, loads)
        return self.cost(sums[:, :num_sets])

    def embed(self, features: Tensor, work: Tensor) -> Tensor:
        """Additive loads [E, S, L] of shards from features [E or 1, S, F] and work [E or 1, S, J]: A_k, then Z_h."""
        num_members, num_outputs, _ = self.shape
        hidden = features.expand(num_members, -1, -1)
        for layer in self.layers[:-1]:
            hidden = F.silu(layer(hidden))
        hidden = self.layers[-1](hidden)
        corrections, mixtures = hidden.split([hidden.shape[-1] - NUM_HINGES, NUM_HINGES], dim=-1)
        corrections = corrections.unflatten(-1, (num_outputs, len(WORK_TERMS)))
        factors = torch.exp(MOST_CORRECTION * torch.tanh(corrections / MOST_CORRECTION))
        priced = (work.unsqueeze(-2) * self.log_price.exp() * factors).sum(dim=-1)
        return torch.cat([priced, priced.sum(dim=-1, keepdim=True) * F.softplus(mixtures)], dim=-1)

    def cost(self, loads: Tensor) -> Tensor:
        """Costs [E, N, K], in canaries, of summed loads [E, N, L]; an empty set costs its base."""
        priced, hinged = loads.split([self.shape[1], NUM_HINGES], dim=-1)
        bend = self.bend.unsqueeze(1)
        excess = F.softplus(hinged - bend) - F.softplus(-bend)
        return self.unit * (self.log_base.exp().unsqueeze(1) + priced + excess @ self.log_slope.exp())

    def slopes(self, loads: Tensor) -> Tensor:
        """Derivatives [E, K, L] of the costs by loads, at loads [E, L]."""
        _, num_outputs, _ = self.shape
        of_priced = torch.eye(num_outputs).expand(len(loads), -1, -1)
        steepness = torch.sigmoid(loads[:, num_outputs:] - self.bend)
        of_hinged = (steepness.unsqueeze(-1) * self.log_slope.exp()).transpose(1, 2)
        return self.unit[:, None] * torch.cat([of_priced, of_hinged], dim=-1)


class _Members(nn.Module):
    """One linear layer a member of the ensemble: [E, N, I] to [E, N, O]."""

    def __init__(self, num_members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_members, inputs, outputs) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(num_members, 1, outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, inputs, self.weight)


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

    @property
    def base(self) -> NDArray[np.float64]:
        """Costs [K], in canaries, of an empty set: what a kernel takes for being launched."""
        costs = self.cost_ms(np.zeros((1, self.num_loads)))[0]
        return costs.astype(np.float64)

    @torch.no_grad()
    def tangent(self, loads: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Constants [K] and prices [K, num_loads] of the tangent at summed loads [num_loads]: no cost is below it."""
        num_members, num_outputs, _ = self.network.shape
        at = torch.from_numpy(loads.reshape(num_members, -1).astype(np.float32))
        prices = self.network.slopes(at).double().numpy() / num_members
        prices = prices.transpose(1, 0, 2).reshape(num_outputs, -1)
        return self.cost_ms(loads[None])[0].astype(np.float64) - prices @ loads, prices

    def inputs(self, lookups: LookupArrays) -> tuple[Tensor, Tensor]:
        """Standardised features [1, S, F] and work [1, S, J] of shards."""
        features = (shard_features(lookups) - self.mean) / self.scale
        return (
            torch.from_numpy(features.astype(np.float32))[None],
            torch.from_numpy(work_terms(lookups).astype(np.float32))[None],
        )

    def save(self, path: Path) -> None:
        """Write the weights as an npz of plain arrays, beside and renamed."""
        arrays = {f"{NETWORK}{name}": tensor.numpy() for name, tensor in self.network.state_dict().items()}
        about = {"format": FORMAT, "shape": self.network.shape, "outputs": self.outputs, "card": self.card}
        save_weights(path, about, arrays | {"mean": self.mean, "scale": self.scale})

    @classmethod
    def load(cls, path: Path) -> "ComputeModel":
        """The model of a file that `save` wrote; raises PlanningError (reason `weights`) for any other."""
        try:
            about, arrays = read_weights(path, FORMAT)
            network = LookupNetwork(*about["shape"])
            weights = {
                name.removeprefix(NETWORK): torch.from_numpy(array)
                for name, array in arrays.items()
                if name.startswith(NETWORK)
            }
            network.load_state_dict(weights)
            return cls(network, arrays["mean"], arrays["scale"], tuple(about["outputs"]), about["card"])
        except UNREADABLE as error:
            raise PlanningError(
                f"cost weights {path}: cannot be read: {error}; make them with `shardwright pretrain cost`",
                reason="weights",
            ) from error

    def _members_ms(self, loads: NDArray[Any], canary_ms: float) -> NDArray[np.float32]:
        num_members = self.network.shape[0]
        flat = np.ascontiguousarray(loads, dtype=np.float32)
        flat = flat.reshape(flat.size // self.num_loads, num_members, self.network.num_loads)
        costs = self.network.cost(torch.from_numpy(flat).transpose(0, 1))
        return costs.numpy().reshape(num_members, *loads.shape[:-1], costs.shape[-1]) * np.float32(canary_ms)
