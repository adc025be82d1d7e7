"""Whole episodes: the policy places one unit after the other, all episodes at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planner.policy.env import Actions, Candidates, Episodes
from planner.policy.network import SHARD_WIDTH, PolicyNetwork, draw_actions
from planner.policy.observation import Observation, observe


@dataclass(frozen=True, eq=False)
class Outcome:
    """How B episodes ended.

    Attributes:
        task: int64 [B].
        step_ms: float64 [B], estimated step of what was placed.
        num_placed: int64 [B], units; all of the task's unless a unit found no room.
        option: int64 [B, T].
        draws: int64 [B, T, D], ranks in order.
        free_bytes: int64 [B, W], what was left on each rank.
    """

    task: NDArray[np.int64]
    step_ms: NDArray[np.float64]
    num_placed: NDArray[np.int64]
    option: NDArray[np.int64]
    draws: NDArray[np.int64]
    free_bytes: NDArray[np.int64]

    def take(self, episodes: NDArray[np.int64] | slice) -> "Outcome":
        """Some of the episodes, in this order."""
        return Outcome(*(values[episodes] for values in vars(self).values()))


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What an update learns from: B episodes of T decisions.

    Attributes:
        outcome: How they ended.
        seen: Observations [B, T, ...].
        held: bool [B, T, W], ranks that each decision put shards on.
        shard: float32 [B, T, F], features of a shard of the chosen option.
        counts: bool [B, T], decisions of living episodes that had a choice.
        expected_ms: float64 [B, T], the step to expect before each decision (`env.Candidates`).
    """

    outcome: Outcome
    seen: Observation
    held: Tensor
    shard: Tensor
    counts: Tensor
    expected_ms: NDArray[np.float64]

    def sets(self, network: PolicyNetwork) -> Tensor:
        """The sets [B, T, W, SHARD_WIDTH] that ranks held before each decision, embedded anew."""
        added = self.held.unsqueeze(-1) * network.embed_shards(self.shard).unsqueeze(-2)
        return added.cumsum(dim=1) - added

    def episodes(self, start: int, stop: int) -> "Trajectory":
        """Some of the episodes."""
        at = slice(start, stop)
        seen = Observation(*(values[at] for values in vars(self.seen).values()))
        others = (self.held[at], self.shard[at], self.counts[at], self.expected_ms[at])
        return Trajectory(self.outcome.take(at), seen, *others)


Decide = Callable[[Candidates, Observation, Tensor], Actions]
"""Chooses the actions of a step from the candidates, the observation and the ranks' sets [B, W, SHARD_WIDTH]."""


def sample(network: PolicyNetwork, temperature: Tensor, generator: torch.Generator) -> Decide:
    """Decisions of the policy with noise of temperatures [B]: 1 samples, 0 takes the most likely."""

    def decide(found: Candidates, seen: Observation, sets: Tensor) -> Actions:
        option, draws = draw_actions(network(seen, sets), seen.num_draws, temperature, generator)
        return Actions(option.numpy(), draws.numpy())

    return decide


def follow_rule(found: Candidates, seen: Observation, sets: Tensor) -> Actions:
    """Decisions of the greedy rule (`env.Candidates.greedy_actions`): what the policy imitates first."""
    return found.greedy_actions()


@torch.no_grad()
def play(network: PolicyNetwork, episodes: Episodes, decide: Decide) -> Outcome:
    """Plays episodes that were just started to their end."""
    sets = _no_sets(episodes)
    actions = []
    while not episodes.is_done:
        found = episodes.candidates()
        action = decide(found, observe(episodes, found), sets)
        shard, held = _place(episodes, action)
        sets += held.unsqueeze(-1) * network.embed_shards(shard).unsqueeze(-2)
        actions.append(action)
    return _outcome(episodes, actions)


@torch.no_grad()
def record(network: PolicyNetwork, episodes: Episodes, decide: Decide) -> Trajectory:
    """As `play`, with all that an update needs."""
    sets = _no_sets(episodes)
    actions, seen, held, shards, counts, expected = [], [], [], [], [], []
    while not episodes.is_done:
        found = episodes.candidates()
        seen.append(observe(episodes, found))
        expected.append(found.expected_ms)
        counts.append(torch.from_numpy(_has_choice(found)))
        actions.append(decide(found, seen[-1], sets))
        shard, on_ranks = _place(episodes, actions[-1])
        sets += on_ranks.unsqueeze(-1) * network.embed_shards(shard).unsqueeze(-2)
        held.append(on_ranks)
        shards.append(shard)
    parts = zip(*(vars(each).values() for each in seen), strict=True)
    stacked = Observation(*(torch.stack(each, dim=1) for each in parts))
    return Trajectory(
        _outcome(episodes, actions),
        stacked,
        torch.stack(held, dim=1),
        torch.stack(shards, dim=1),
        torch.stack(counts, dim=1),
        np.stack(expected, axis=1),
    )


def join_outcomes(outcomes: Sequence[Outcome]) -> Outcome:
    """Episodes of several plays, one after another."""
    most = max(each.draws.shape[-1] for each in outcomes)
    padded = [replace(each, draws=_widened(each.draws, most)) for each in outcomes]
    return Outcome(*(np.concatenate(parts) for parts in zip(*(vars(each).values() for each in padded), strict=True)))


def _widened(draws: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Draws [..., D] with D raised to `most`."""
    return np.pad(draws, [*[(0, 0)] * (draws.ndim - 1), (0, most - draws.shape[-1])])


def _no_sets(episodes: Episodes) -> Tensor:
    return torch.zeros(len(episodes.task), episodes.tasks.world_size, SHARD_WIDTH)


def _place(episodes: Episodes, action: Actions) -> tuple[Tensor, Tensor]:
    """Acts; gives the features [B, F] of a chosen shard and the ranks [B, W] that hold one."""
    shard = episodes.tasks.shards[episodes.task, episodes.step, action.option]
    return torch.from_numpy(shard), torch.from_numpy(episodes.act(action))


def _has_choice(found: Candidates) -> NDArray[np.bool_]:
    """Decisions [B] with more than one legal action."""
    options, ranks = found.is_legal.sum(axis=-1), found.may_draw.sum(axis=-1)
    several = (found.is_legal & (ranks > 1) & (found.options.num_draws > 0)).any(axis=-1)
    return (options > 1) | several


def _outcome(episodes: Episodes, actions: list[Actions]) -> Outcome:
    most = max(action.draws.shape[1] for action in actions)
    return Outcome(
        episodes.task,
        episodes.step_ms,
        episodes.num_placed,
        np.stack([action.option for action in actions], axis=1),
        np.stack([_widened(action.draws, most) for action in actions], axis=1),
        episodes.free_bytes,
    )
