"""The policy: one small network that points at (sharding option, rank), whatever the number of tables and ranks.

    shards   e_s = net(type, size and share of work of shard s);  set of rank w: S_w = sum of share_s e_s
    ranks    r_w = net(rank w as it stands, S_w);                 context c = mean and maximum over ranks of r_w
    options  q_o = net(option o, table, state, c)
    pairs    h_ow = net(what a shard of option o does to rank w, r_w, q_o)
    draws    P(rank w first | o) = softmax of linear(h_ow) over ranks that may be drawn
    choice   P(o) = softmax of net(q_o, sum over w of P(w | o) h_ow) over legal options

Further ranks of an option are drawn without replacement by the same z: P(second = v | first = w) is the softmax
without w (Plackett and Luce). Sums and softmaxes make it equivariant to the order of ranks and free of all numbers.

Source: Vinyals et al. 2015, Pointer Networks (arXiv 1506.03134), section 2.3, for pointing; Zaheer et al. 2017, Deep
Sets (arXiv 1703.06114), theorem 2, for sets; Plackett 1975, The Analysis of Permutations, for ordered draws.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.policy.env import OWN_WORK_PRICE
from planner.policy.observation import (
    COST_COLUMNS,
    DEVICE_FEATURES,
    GLOBAL_FEATURES,
    OPTION_FEATURES,
    PAIR_FEATURES,
    Observation,
)
from planner.policy.task_features import SHARD_FEATURES, TABLE_FEATURES

WIDTH, PAIR_WIDTH, SHARD_WIDTH = 64, 32, 16
"""Widths of hidden layers, of those of the many pairs, and of a shard's embedding."""

FEATURES = {
    "pair": PAIR_FEATURES,
    "option": OPTION_FEATURES,
    "device": DEVICE_FEATURES,
    "glob": GLOBAL_FEATURES,
    "table": TABLE_FEATURES,
}
"""Columns of each part of an `Observation`."""

FIRST_SLOPE, FIRST_WEIGHT = 50.0, 0.1
"""Where the policy starts: 2 % of an average table cost a factor of e in probability, and what the network adds is
a tenth of what torch would draw. So it begins as a greedy rule with noise, and learns where to depart from it."""

BLOCKED = -1e9
"""Logit of what is not legal: its probability is exactly 0 in float32."""


class Logits(NamedTuple):
    """Unnormalised log-probabilities, `BLOCKED` where not legal.

    Attributes:
        option: [..., O].
        rank: [..., O, W].
    """

    option: Tensor
    rank: Tensor


@dataclass(frozen=True)
class Blindness:
    """What an ablated policy is not shown.

    Attributes:
        costs: Nothing that the cost model says of candidates and ranks.
        table: Nothing of the table that is being placed.
    """

    costs: bool = False
    table: bool = False


SEES_ALL = Blindness()
"""No ablation."""


class PolicyNetwork(nn.Module):
    """The network of this module's docstring."""

    def __init__(self, blindness: Blindness = SEES_ALL) -> None:
        """Draws first weights from torch's generator."""
        super().__init__()
        self.shard = nn.Sequential(nn.Linear(len(SHARD_FEATURES), 32), nn.SiLU(), nn.Linear(32, SHARD_WIDTH))
        self.rank = nn.Sequential(nn.Linear(len(DEVICE_FEATURES) + SHARD_WIDTH, WIDTH), nn.SiLU())
        others = len(TABLE_FEATURES) + len(GLOBAL_FEATURES) + 2 * WIDTH
        self.option = nn.Sequential(nn.Linear(len(OPTION_FEATURES) + others, WIDTH), nn.SiLU())
        self.pair = nn.Linear(len(PAIR_FEATURES), PAIR_WIDTH)
        self.pair_rank = nn.Linear(WIDTH, PAIR_WIDTH, bias=False)
        self.pair_option = nn.Linear(WIDTH, PAIR_WIDTH, bias=False)
        self.pair_deep = nn.Linear(PAIR_WIDTH, PAIR_WIDTH)
        self.draw = nn.Linear(PAIR_WIDTH, 1)
        last = nn.Linear(WIDTH, 1)
        self.choose = nn.Sequential(nn.Linear(WIDTH + PAIR_WIDTH, WIDTH), nn.SiLU(), last)
        self.pair_skip = _skip(PAIR_FEATURES, {"level_by_table": 1.0, "own_by_table": OWN_WORK_PRICE})
        self.option_skip = _skip(OPTION_FEATURES, {"key_by_table": 1.0})
        with torch.no_grad():
            self.draw.weight *= FIRST_WEIGHT
            last.weight *= FIRST_WEIGHT
        for name, columns in FEATURES.items():
            self.register_buffer(f"seen_{name}", _seen(name, columns, blindness))

    def embed_shards(self, features: Tensor) -> Tensor:
        """What shards [..., S] add to the set of their rank [..., SHARD_WIDTH]: their share of work times e_s."""
        return features[..., :1] * self.shard(features)

    def forward(self, seen: Observation, sets: Tensor) -> Logits:
        """Logits of a state and of the sets [..., W, SHARD_WIDTH] that its ranks hold."""
        pair, option, device, glob, table = (self._masked(seen, name) for name in FEATURES)
        ranks = self.rank(torch.cat([device, sets], dim=-1))
        context = torch.cat([ranks.mean(dim=-2), ranks.amax(dim=-2), glob, table], dim=-1).unsqueeze(-2)
        options = self.option(torch.cat([option, context.expand(*option.shape[:-1], -1)], dim=-1))
        hidden = self.pair(pair) + self.pair_rank(ranks).unsqueeze(-3) + self.pair_option(options).unsqueeze(-2)
        hidden = F.silu(self.pair_deep(F.silu(hidden)))
        logits = (self.draw(hidden) + self.pair_skip(pair)).squeeze(-1).masked_fill(~seen.may_draw, BLOCKED)
        pointed = (logits.softmax(dim=-1).unsqueeze(-2) @ hidden).squeeze(-2)
        chosen = (self.choose(torch.cat([options, pointed], dim=-1)) + self.option_skip(option)).squeeze(-1)
        return Logits(chosen.masked_fill(~seen.is_legal, BLOCKED), logits)

    def _masked(self, seen: Observation, name: str) -> Tensor:
        columns: Tensor = getattr(seen, name)
        shown: Tensor = getattr(self, f"seen_{name}")
        return columns * shown


def _skip(columns: tuple[str, ...], prices: Mapping[str, float]) -> nn.Linear:
    """A linear layer past the network that starts as: `FIRST_SLOPE` x price less for one more in a column."""
    layer = nn.Linear(len(columns), 1, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        for name, price in prices.items():
            layer.weight[0, columns.index(name)] = -FIRST_SLOPE * price
    return layer


def _seen(name: str, columns: tuple[str, ...], blindness: Blindness) -> Tensor:
    """1 for each column that is shown, 0 for others."""
    hidden = set(COST_COLUMNS.get(name, ())) if blindness.costs else set()
    if blindness.table and name == "table":
        hidden |= set(columns)
    return torch.tensor([float(column not in hidden) for column in columns])


def draw_actions(
    logits: Logits, num_draws: Tensor, temperature: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Options [B] and drawn ranks [B, D] in order, D the most that any option needs.

    Gumbel noise turns the largest logits into a draw without replacement. Source: Kool et al. 2019, Stochastic Beams
    and Where to Find Them (arXiv 1903.06059), section 2.3.

    Args:
        logits: Of B states.
        num_draws: [B, O], ranks that each option draws.
        temperature: [B], of the noise: 1 samples, 0 takes the most likely.
        generator: Where the noise comes from.
    """
    option = (logits.option + temperature[:, None] * _gumbel(logits.option, generator)).argmax(dim=-1)
    ranks = logits.rank[torch.arange(len(option)), option]
    noisy = ranks + temperature[:, None] * _gumbel(ranks, generator)
    most = max(1, int(num_draws.max()))
    return option, noisy.topk(most, dim=-1).indices


def log_probability(logits: Logits, num_draws: Tensor, option: Tensor, draws: Tensor) -> Tensor:
    """Log-probability [B] of options [B] and ordered draws [B, D] under the masks of the logits.

    Args:
        logits: Of B states.
        num_draws: [B], ranks that the chosen option draws.
        option: [B].
        draws: [B, D]; those beyond `num_draws` mean nothing.
    """
    episodes = torch.arange(len(option))
    total = logits.option.log_softmax(dim=-1)[episodes, option]
    left = logits.rank[episodes, option]
    for index in range(int(num_draws.max())):
        drawn = draws[:, index : index + 1]
        one = (left.gather(-1, drawn).squeeze(-1) - left.logsumexp(dim=-1)) * (index < num_draws)
        total = total + one
        left = left.scatter(-1, drawn, BLOCKED)
    return total


def entropy(logits: Logits) -> Tensor:
    """Entropy [B] of the option, plus that of the first rank, the expected one over options."""
    of_option = logits.option.log_softmax(dim=-1)
    of_rank = logits.rank.log_softmax(dim=-1)
    probability = of_option.exp()
    rank_entropy = -(of_rank.exp() * of_rank).sum(dim=-1)
    return (probability * (rank_entropy - of_option)).sum(dim=-1)


def _gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(like.shape, generator=generator).clamp_min(1e-20)
    return -(-uniform.log()).clamp_min(1e-20).log()
