"""The policy as a strategy: the most likely placement, or the best of many samples."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from planner.cost.estimator import AdditiveEstimator
from planner.errors import InfeasibleError
from planner.plan import ShardingPlan
from planner.policy.env import Episodes, Temper
from planner.policy.network import PolicyNetwork
from planner.policy.preparation import build_tasks
from planner.policy.rollout import Outcome, join_outcomes, play, sample
from planner.policy.tasks import Tasks
from planner.policy.weights_file import SHIPPED, load_policy
from planner.problem import PlanningProblem
from planner.search.placement import MAX_PASSES, Unit, check_total, no_room
from planner.text import render_bytes

CELLS = 60_000
"""Episodes x options x ranks that are played at once, which bounds memory and stays within caches."""


@dataclass(frozen=True)
class PolicyStrategy:
    """Places tables by the trained policy.

    The first episode takes the most likely action at every step, the others are sampled, each with a temper of its own
    (`env.Temper`); the shortest estimated step wins. A unit that finds no room in the first episode is placed first in
    another round, as greedy rules do.

    Attributes:
        estimator: Prices what the policy sees and ends with; the policy serves any.
        num_samples: Episodes; 1 is the most likely one alone.
        seed: The same gives the same plans.
        weights: A file of `pretrain policy`; None takes the shipped one.
    """

    estimator: AdditiveEstimator
    num_samples: int = 1
    seed: int = 0
    weights: Path | None = None

    def plan(self, problem: PlanningProblem) -> ShardingPlan:
        """The best plan; raises InfeasibleError, and PlanningError (reason `weights`) for unreadable weights."""
        return best_plan(self._network(), problem, self.estimator, self.num_samples, self.seed)

    def candidates(self, problem: PlanningProblem) -> list[ShardingPlan]:
        """All different plans that were found, the best first; raises as `plan`."""
        tasks, found = place(self._network(), problem, self.estimator, self.num_samples, self.seed)
        plans = (tasks.build_plan(0, option, draws) for option, draws in zip(found.option, found.draws, strict=True))
        return list(dict.fromkeys(plans))

    def _network(self) -> PolicyNetwork:
        return load_policy(self.weights or SHIPPED).network


def best_plan(
    network: PolicyNetwork, problem: PlanningProblem, estimator: AdditiveEstimator, num_samples: int, seed: int
) -> ShardingPlan:
    """The plan of the shortest estimated step among the policy's episodes; raises InfeasibleError."""
    tasks, found = place(network, problem, estimator, num_samples, seed)
    return tasks.build_plan(0, found.option[0], found.draws[0])


def place(
    network: PolicyNetwork, problem: PlanningProblem, estimator: AdditiveEstimator, num_samples: int, seed: int
) -> tuple[Tasks, Outcome]:
    """The task of a problem and its complete episodes, the shortest step first; raises InfeasibleError."""
    tasks = build_tasks([problem], estimator)
    check_total(problem, tasks.units[0])
    for _ in range(MAX_PASSES):
        outcome = _play_all(network, tasks, num_samples, seed)
        complete = np.flatnonzero(outcome.num_placed == tasks.num_units)
        if len(complete):
            return tasks, outcome.take(complete[np.argsort(outcome.step_ms[complete], kind="stable")])
        stranded = int(outcome.num_placed[0])
        tasks = tasks.placed_first([stranded])
        if stranded == 0:
            break
    raise _stranded(problem, tasks.units[0][0], outcome.free_bytes[0])


def _play_all(network: PolicyNetwork, tasks: Tasks, num_samples: int, seed: int) -> Outcome:
    """The most likely episode of the calm temper, then sampled ones of any temper."""
    temper = Temper.draw(np.random.default_rng(seed), num_samples)
    generator = torch.Generator().manual_seed(seed)
    at_once = max(1, CELLS // (tasks.options.type_code.shape[-1] * tasks.world_size))
    temperature = torch.ones(num_samples)
    temperature[0] = 0.0
    task = np.zeros(num_samples, dtype=np.int64)
    played = []
    for at in range(0, num_samples, at_once):
        part = slice(at, at + at_once)
        episodes = Episodes(tasks, task[part], temper.take(part))
        played.append(play(network, episodes, sample(network, temperature[part], generator)))
    return join_outcomes(played)


def _stranded(problem: PlanningProblem, unit: Unit, free_bytes: NDArray[np.int64]) -> InfeasibleError:
    """The error that tells which unit found no room, and by how much its closest option misses."""
    missed = no_room(problem, unit, free_bytes)
    return InfeasibleError(
        f"table {unit.label} found no room in {MAX_PASSES} rounds of the policy: the closest option misses "
        f"{render_bytes(missed.shortfall_bytes)} on rank {missed.rank}",
        shortfall_bytes=missed.shortfall_bytes,
        table=unit.names[0],
    )
