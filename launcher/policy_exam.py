"""How good a placement policy is on tasks that it was not trained on."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import AdditiveEstimator
from planner.errors import InfeasibleError
from planner.plan import ShardingPlan
from planner.policy.decode import best_plan
from planner.policy.network import PolicyNetwork
from planner.policy.training_tasks import TaskSource
from planner.problem import PlanningProblem
from planner.search.assignment import Assignment
from planner.search.catalogue import build_catalogue
from planner.search.heuristics import GreedyRule, Score, dim_score, lookup_score, size_lookup_score, size_score
from planner.search.local_search import LocalSearch
from planner.search.longest_processing_time import LongestProcessingTime
from planner.search.placement import build_units

RULES = (size_score, dim_score, lookup_score, size_lookup_score)
"""The greedy rules that a policy is held against."""

NUM_TASKS = 16
"""Tasks of an exam."""

POLISH_S = 5.0
"""Longest local search on a plan, which most often ends before."""


@dataclass(frozen=True, eq=False)
class Question:
    """A task with what it costs without a policy.

    Attributes:
        problem: The task.
        estimator: Prices its plans.
        processing_ms: Step of longest-processing-time's plan.
        rule_ms: Step of the best greedy rule's plan.
    """

    problem: PlanningProblem
    estimator: AdditiveEstimator
    processing_ms: float
    rule_ms: float


@dataclass(frozen=True)
class Marks:
    """Geometric means over the tasks that the policy solves.

    Attributes:
        over_processing: Step over that of longest-processing-time.
        over_rule: Step over that of the best greedy rule of each task.
        success: Share of tasks solved.
    """

    over_processing: float
    over_rule: float
    success: float

    @property
    def order(self) -> tuple[float, float]:
        """Smaller is better: failures first."""
        return -self.success, self.over_processing


@dataclass(frozen=True, eq=False)
class Exam:
    """Questions that stay the same."""

    questions: tuple[Question, ...]

    @classmethod
    def draw(cls, source: TaskSource, seed: int) -> "Exam":
        """An exam of tasks of a source that longest-processing-time and a greedy rule can solve."""
        rng, questions = np.random.default_rng(seed), list[Question]()
        while len(questions) < NUM_TASKS:
            tasks = source.draw(rng, lambda world_size, num_units: 1)
            found = _ask(tasks.problems[0], tasks.estimator)
            if found is not None:
                questions.append(found)
        return cls(tuple(questions))

    def mark(self, network: PolicyNetwork, num_samples: int = 1, seed: int = 0, is_polished: bool = False) -> Marks:
        """The marks of a policy.

        Args:
            network: The policy.
            num_samples: Episodes of which the best counts, the most likely one among them.
            seed: Of the samples.
            is_polished: Whether local search may improve each plan, for at most `POLISH_S`.
        """
        steps_ms = np.array([_answer(each, network, num_samples, seed, is_polished) for each in self.questions])
        solved = np.isfinite(steps_ms)
        processing_ms = np.array([each.processing_ms for each in self.questions])
        rule_ms = np.array([each.rule_ms for each in self.questions])
        return Marks(
            _geomean(steps_ms[solved] / processing_ms[solved]),
            _geomean(steps_ms[solved] / rule_ms[solved]),
            float(solved.mean()),
        )


def _ask(problem: PlanningProblem, estimator: AdditiveEstimator) -> Question | None:
    try:
        processing = LongestProcessingTime(estimator).plan(problem)
    except InfeasibleError:
        return None
    rules = [plan for plan in (_rule_plan(problem, score) for score in RULES) if plan is not None]
    if not rules:
        return None
    steps_ms = [estimator.estimate(problem, plan).step_ms for plan in (processing, *rules)]
    return Question(problem, estimator, steps_ms[0], min(steps_ms[1:]))


def _rule_plan(problem: PlanningProblem, score: Score) -> ShardingPlan | None:
    try:
        return GreedyRule(score).plan(problem)
    except InfeasibleError:
        return None


def _answer(question: Question, network: PolicyNetwork, num_samples: int, seed: int, is_polished: bool) -> float:
    """The step of the policy's plan; infinite where it finds none."""
    problem, estimator = question.problem, question.estimator
    try:
        plan = best_plan(network, problem, estimator, num_samples, seed)
    except InfeasibleError:
        return float("inf")
    if is_polished:
        plan = _polish(problem, estimator, plan, seed)
    return estimator.estimate(problem, plan).step_ms


def _polish(problem: PlanningProblem, estimator: AdditiveEstimator, plan: ShardingPlan, seed: int) -> ShardingPlan:
    catalogue = build_catalogue(problem, estimator, build_units(problem))
    search = LocalSearch(catalogue, time.monotonic() + POLISH_S, np.random.default_rng(seed))
    return search.polish(Assignment.of_plan(catalogue, plan)).to_plan()


def _geomean(ratios: NDArray[np.float64]) -> float:
    return float(np.exp(np.log(ratios).mean())) if len(ratios) else float("nan")
