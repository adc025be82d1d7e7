"""Trains the policy in the estimated decision process: first it imitates a rule, then it betters itself.

1. Imitation: a greedy rule plays (`env.Candidates.greedy_actions`), the policy learns its decisions by cross-entropy.
2. REINFORCE, `NUM_ROLLOUTS` episodes a task, which share a temper. The advantage of decision t of episode i is

       a_it = mean over j != i of (J_j - L_jt) - (J_i - L_it)

   with J the final step and L_t the step to expect before the decision if the rest spread evenly. The others' mean is
   the leave-one-out baseline, and L depends on nothing that decision t or a later one does, so the gradient keeps its
   expectation while what earlier decisions did is taken out of its variance. Log-probabilities are of the very masks
   that the actions were drawn under.

Source: Williams 1992, Simple Statistical Gradient-Following Algorithms; Kool et al. 2019, Buy 4 REINFORCE Samples, Get
a Baseline for Free! (ICLR workshop), section 2, for the baseline.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planner.policy.env import Episodes, Temper
from planner.policy.network import SEES_ALL, Blindness, Logits, PolicyNetwork, entropy, log_probability
from planner.policy.observation import Observation
from planner.policy.rollout import Outcome, Trajectory, follow_rule, record, sample
from planner.policy.tasks import Tasks
from planner.policy.training_tasks import TaskSource

NUM_ROLLOUTS = 8
"""Episodes of one task, all of one temper, that are each other's baseline."""

MOST_TASKS = 8
"""Tasks of one update."""

CELLS, CHUNK_CELLS = 20_000, 20_000
"""Units x ranks x episodes of one update at most, and of one backward pass, which bounds time and memory."""

IMITATION_SHARE = 0.03
"""Of the time."""

IMITATED_TASKS = 4
"""Times as many tasks in an update of imitation, which plays each once."""

LEARNING_RATE, FIRST_RATE = 3e-3, 0.05
"""Adam's, falling to `FIRST_RATE` of it along a cosine over each of the two stages."""

ENTROPY_PRICE = 2e-3
"""Worth of a nat in units of a typical advantage: keeps samples apart, which best-of-K lives on."""

MOST_GRADIENT = 1.0
"""Norm that gradients are scaled down to."""

DEAD_PRICE = 0.5
"""What a dead episode's step is above the worst of its task's others, in levels."""


@dataclass(frozen=True)
class Update:
    """What one update did.

    Attributes:
        stage: `imitation` or `reinforcement`.
        index: Updates before it in all.
        elapsed: Share of the training's time that is over, 0 to 1.
        loss: Of the stage.
        entropy: Mean nats of a decision.
        gradient: Norm before it was cut.
        level_ratio: Mean final step over the even level of the task.
        dead: Share of episodes that found no room.
        spread: Standard deviation of a task's final steps over their mean.
    """

    stage: str
    index: int
    elapsed: float
    loss: float
    entropy: float
    gradient: float
    level_ratio: float
    dead: float
    spread: float


Follow = Callable[[Update, PolicyNetwork], None]
"""Is told of every update."""


def train_policy(
    source: TaskSource, seed: int, budget_s: float, follow: Follow, blindness: Blindness = SEES_ALL
) -> PolicyNetwork:
    """A network trained on tasks of a source for so many seconds.

    The same seed draws the same tasks and noise; how many updates the time allows depends on the machine.

    Args:
        source: Draws tasks.
        seed: Of first weights, tasks and noise.
        budget_s: Wall-clock time.
        follow: Is told of every update.
        blindness: What the policy is not shown.
    """
    torch.manual_seed(seed)
    trainer = _Trainer(PolicyNetwork(blindness), source, seed, follow)
    started = time.monotonic()
    imitate_s = IMITATION_SHARE * budget_s
    for stage, begin_s, end_s in (("imitation", 0.0, imitate_s), ("reinforcement", imitate_s, budget_s)):
        while (elapsed_s := time.monotonic() - started) < end_s:
            progress = (elapsed_s - begin_s) / (end_s - begin_s)
            trainer.update(stage, progress, elapsed_s / budget_s)
    return trainer.network


class _Trainer:
    """The network with its optimizer and its sources of chance."""

    def __init__(self, network: PolicyNetwork, source: TaskSource, seed: int, follow: Follow) -> None:
        self.network = network
        self.source = source
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
        self.follow = follow
        self.num_updates = 0

    def update(self, stage: str, progress: float, elapsed: float) -> None:
        """One update on newly drawn tasks."""
        imitates = stage == "imitation"
        tasks = self.source.draw(self.rng, num_imitated if imitates else num_tasks)
        repeats = 1 if imitates else NUM_ROLLOUTS
        task = np.repeat(np.arange(len(tasks.problems)), repeats)
        temper = Temper.draw(self.rng, len(tasks.problems)).repeated(repeats)
        decide = follow_rule if imitates else sample(self.network, torch.ones(len(task)), self.generator)
        played = record(self.network, Episodes(tasks, task, temper), decide)
        weights = np.ones(played.expected_ms.shape) if imitates else advantages(tasks, played)
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (FIRST_RATE + (1 - FIRST_RATE) * (1 + math.cos(math.pi * progress)) / 2)
        loss, nats, gradient = self._learn(played, torch.from_numpy(weights.astype(np.float32)), imitates)
        final_ms = final_steps_ms(tasks, played.outcome).reshape(len(tasks.problems), -1)
        self.follow(
            Update(
                stage,
                self.num_updates,
                elapsed,
                loss,
                nats,
                gradient,
                float((final_ms / tasks.level_ms[:, None]).mean()),
                float((played.outcome.num_placed < tasks.num_units).mean()),
                float((final_ms.std(axis=1) / final_ms.mean(axis=1)).mean()),
            ),
            self.network,
        )
        self.num_updates += 1

    def _learn(self, played: Trajectory, weights: Tensor, imitates: bool) -> tuple[float, float, float]:
        """One step of the optimizer on weighted log-probabilities; gives loss, entropy and gradient norm."""
        num_episodes, num_units, world_size = played.held.shape
        chunk = max(1, CHUNK_CELLS // (num_units * world_size))
        total = max(1, int(played.counts.sum()))
        self.optimizer.zero_grad()
        loss, nats = 0.0, 0.0
        for start in range(0, num_episodes, chunk):
            part = played.episodes(start, start + chunk)
            logits, chosen = self._judge(part)
            counts = part.counts.flatten()
            gain = (weights[start : start + chunk].flatten() * chosen * counts).sum() / total
            of_entropy = (entropy(logits) * counts).sum() / total
            goal = -gain if imitates else -gain - ENTROPY_PRICE * of_entropy
            goal.backward()
            loss, nats = loss + float(goal.detach()), nats + float(of_entropy.detach())
        gradient = torch.nn.utils.clip_grad_norm_(self.network.parameters(), MOST_GRADIENT)
        self.optimizer.step()
        return loss, nats, float(gradient)

    def _judge(self, played: Trajectory) -> tuple[Logits, Tensor]:
        """Logits of all decisions [B T], and log-probabilities [B T] of what was done."""
        seen = Observation(*(values.flatten(0, 1) for values in vars(played.seen).values()))
        logits = self.network(seen, played.sets(self.network).flatten(0, 1))
        option = torch.from_numpy(played.outcome.option).flatten()
        draws = torch.from_numpy(played.outcome.draws).flatten(0, 1)
        num_draws = seen.num_draws[torch.arange(len(option)), option]
        return logits, log_probability(logits, num_draws, option, draws)


def num_tasks(world_size: int, num_units: int) -> int:
    """Tasks of one update of reinforcement."""
    return max(1, min(MOST_TASKS, CELLS // (world_size * num_units * NUM_ROLLOUTS)))


def num_imitated(world_size: int, num_units: int) -> int:
    """Tasks of one update of imitation."""
    return IMITATED_TASKS * num_tasks(world_size, num_units)


def final_steps_ms(tasks: Tasks, outcome: Outcome) -> NDArray[np.float64]:
    """Final steps [B], by which episodes are judged; of dead ones `DEAD_PRICE` above the worst of their task."""
    is_dead = outcome.num_placed < tasks.num_units
    worst = np.zeros(len(tasks.problems))
    np.maximum.at(worst, outcome.task, outcome.step_ms)
    return np.where(is_dead, worst[outcome.task] + DEAD_PRICE * tasks.level_ms[outcome.task], outcome.step_ms)


def advantages(tasks: Tasks, played: Trajectory) -> NDArray[np.float64]:
    """Advantages [B, T] of this module's docstring, over their root mean square."""
    outcome = played.outcome
    cost = (final_steps_ms(tasks, outcome)[:, None] - played.expected_ms) / tasks.level_ms[outcome.task, None]
    cost = cost.reshape(len(tasks.problems), -1, cost.shape[1])
    others = (cost.sum(axis=1, keepdims=True) - cost) / max(1, cost.shape[1] - 1)
    gain = (others - cost).reshape(played.expected_ms.shape)
    return np.asarray(gain / max(1e-6, float(np.sqrt(np.square(gain).mean()))))
