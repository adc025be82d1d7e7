"""Greedy strategies by a rule's score, and random placement."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.memory import capacity_bytes
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.search.placement import (
    Choice,
    Unit,
    build_units,
    first_fit,
    run_passes,
)

Score = Callable[[PlanningProblem], NDArray[np.float64]]
"""Gives the score [T] of each table."""


def size_score(problem: PlanningProblem) -> NDArray[np.float64]:
    """Elements of each table [T]. Source: AutoShard, arXiv 2208.06399, section 5.1, size-based greedy."""
    return problem.arrays.num_rows * problem.arrays.num_cols


def dim_score(problem: PlanningProblem) -> NDArray[np.float64]:
    """Pooled columns of each table [T]. Source: AutoShard, dim-based greedy."""
    return problem.arrays.num_features * problem.arrays.num_cols


def lookup_score(problem: PlanningProblem) -> NDArray[np.float64]:
    """Columns x ids per sample of each table [T]. Source: AutoShard, lookup-based greedy."""
    return problem.arrays.num_cols * problem.arrays.ids_per_sample


def size_lookup_score(problem: PlanningProblem) -> NDArray[np.float64]:
    """Lookup score x log10 of the rows [T]. Source: AutoShard, size-lookup-based greedy."""
    return lookup_score(problem) * np.log10(problem.arrays.num_rows)


@dataclass(frozen=True)
class GreedyRule:
    """Tables by descending score, each to the rank with the smallest sum of scores that has room.

    A unit that fits whole on no rank is split in the order of `placement.SPLIT_ORDER`; each shard carries an
    equal part of its score.

    Attributes:
        score: Score of each table.
    """

    score: Score

    def plan(self, problem: PlanningProblem) -> ShardingPlan:
        """The plan of the rule; raises InfeasibleError."""
        scores = self.score(problem)
        units = build_units(problem)
        score_of = {unit.names: float(sum(scores[problem.index_of[name]] for name in unit.names)) for unit in units}
        units = tuple(sorted(units, key=lambda unit: -score_of[unit.names]))

        def one_pass(order: Sequence[Unit]) -> list[Choice]:
            free_bytes, sums = capacity_bytes(problem), np.zeros(problem.topology.world_size)
            choices = []
            for unit in order:
                choice = first_fit(problem, unit, free_bytes, sums)
                ranks = np.asarray(choice.ranks)
                free_bytes[ranks] -= choice.option.slot_bytes(problem)
                sums[ranks] += score_of[unit.names] / len(ranks)
                choices.append(choice)
            return choices

        return run_passes(problem, units, one_pass)


@dataclass(frozen=True)
class RandomPlacement:
    """Tables in random order on random ranks that have room: the floor that every strategy must beat.

    Attributes:
        seed: The same seed gives the same plan.
    """

    seed: int = 0

    def plan(self, problem: PlanningProblem) -> ShardingPlan:
        """A random plan; raises InfeasibleError."""
        rng = np.random.default_rng(self.seed)
        units = build_units(problem)
        units = tuple(units[index] for index in rng.permutation(len(units)))

        def one_pass(order: Sequence[Unit]) -> list[Choice]:
            free_bytes, choices = capacity_bytes(problem), []
            for unit in order:
                choice = first_fit(problem, unit, free_bytes, rng.random(problem.topology.world_size))
                free_bytes[np.asarray(choice.ranks)] -= choice.option.slot_bytes(problem)
                choices.append(choice)
            return choices

        return run_passes(problem, units, one_pass)
