"""Strategies by name, and the one way to make a plan with them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from planner.check import check
from planner.cost.analytic import AnalyticEstimator
from planner.cost.estimator import AdditiveEstimator, PlanCost
from planner.errors import InfeasibleError, PlanningError
from planner.memory import rank_bytes
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.remedies import explain
from planner.search.bound import lower_bound_ms
from planner.search.heuristics import (
    GreedyRule,
    RandomPlacement,
    dim_score,
    lookup_score,
    size_lookup_score,
    size_score,
)
from planner.search.longest_processing_time import LongestProcessingTime
from planner.text import did_you_mean


class Strategy(Protocol):
    """A way to find a plan."""

    def plan(self, problem: PlanningProblem) -> ShardingPlan:
        """A plan that places every table; raises InfeasibleError where it finds none."""
        ...


class TorchRecOnDemand:
    """TorchRec's own planner; TorchRec is imported by the first plan, since that takes seconds."""

    def plan(self, problem: PlanningProblem) -> ShardingPlan:
        """The plan of `torchrec_bridge.TorchRecStrategy`."""
        from planner.torchrec_bridge import TorchRecStrategy

        return TorchRecStrategy().plan(problem)


STRATEGIES: dict[str, Callable[[AdditiveEstimator], Strategy]] = {
    "longest_processing_time": LongestProcessingTime,
    "size_greedy": lambda _: GreedyRule(size_score),
    "dim_greedy": lambda _: GreedyRule(dim_score),
    "lookup_greedy": lambda _: GreedyRule(lookup_score),
    "size_lookup_greedy": lambda _: GreedyRule(size_lookup_score),
    "torchrec": lambda _: TorchRecOnDemand(),
    "random": lambda _: RandomPlacement(),
}
"""Builders of all strategies by the name that the command line knows; a search uses the estimator it is given."""


@dataclass(frozen=True)
class PlanResult:
    """A checked plan with what it is expected to cost.

    Attributes:
        problem: What was planned.
        plan: The plan.
        strategy: Name of the strategy that found it.
        cost: Its estimated cost.
        lower_bound_ms: No legal plan's estimated step is shorter.
        plan_seconds: Time the strategy took.
    """

    problem: PlanningProblem
    plan: ShardingPlan
    strategy: str
    cost: PlanCost
    lower_bound_ms: float
    plan_seconds: float

    @property
    def gap(self) -> float:
        """How far the step is above the bound, 0.1 for 10 %."""
        return self.cost.step_ms / self.lower_bound_ms - 1.0 if self.lower_bound_ms > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that `plan --json` prints."""
        return {
            "strategy": self.strategy,
            "estimated_step_ms": self.cost.step_ms,
            "max_rank_ms": self.cost.max_rank_ms,
            "mean_rank_ms": self.cost.mean_rank_ms,
            "imbalance": self.cost.imbalance,
            "lower_bound_ms": self.lower_bound_ms,
            "gap": self.gap,
            "plan_seconds": self.plan_seconds,
            "ranks": self._ranks(),
            "tables": self.plan.to_dict()["tables"],
        }

    def _ranks(self) -> list[dict[str, Any]]:
        num_shards = [0] * self.plan.world_size
        for placement in self.plan.tables:
            for shard in placement.shards:
                num_shards[shard.rank] += shard.num_rows > 0
        used = rank_bytes(self.problem, self.plan)
        return [
            {
                "rank": device.rank,
                "node": device.node,
                "hbm_bytes": used[device.rank],
                "lookup_ms": float(self.cost.lookup_ms[device.rank]),
                "lookup_forward_ms": float(self.cost.phase("lookup_forward")[device.rank]),
                "comms_ms": float(self.cost.comms_ms[device.rank]),
                "total_ms": float(self.cost.total_ms[device.rank]),
                "num_shards": num_shards[device.rank],
            }
            for device in self.problem.topology.devices
        ]


def build_strategy(name: str, estimator: AdditiveEstimator) -> Strategy:
    """The strategy of a name, to search with an estimator.

    Raises:
        PlanningError: There is none (reason `strategy`).
    """
    if name not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise PlanningError(
            f"strategy {name!r} is not one of {known}{did_you_mean(name, STRATEGIES)}", reason="strategy"
        )
    return STRATEGIES[name](estimator)


def find_plan(problem: PlanningProblem, name: str, estimator: AdditiveEstimator | None = None) -> PlanResult:
    """A checked plan by the named strategy, in one attempt.

    Args:
        problem: What to plan.
        name: One of `STRATEGIES`.
        estimator: Guides the search where it goes by cost, prices the plan and its bound; the analytic one if None.

    Raises:
        InfeasibleError: No plan was found; the message tells the shortfall.
        PlanningError: The strategy is not known or cannot express the problem, or its plan breaks a rule.
    """
    prices = estimator or AnalyticEstimator()
    strategy = build_strategy(name, prices)
    started = time.perf_counter()
    plan = strategy.plan(problem)
    return appraise(problem, plan, name, time.perf_counter() - started, prices)


def make_plan(problem: PlanningProblem, name: str, estimator: AdditiveEstimator | None = None) -> PlanResult:
    """What `find_plan` gives; where it finds none, up to `remedies.BUDGET_S` go into changes that would help.

    Raises:
        InfeasibleError: No plan was found; the message tells the shortfall and remedies that were tried.
        PlanningError: As `find_plan`.
    """
    try:
        return find_plan(problem, name, estimator)
    except InfeasibleError as error:
        strategy = build_strategy(name, estimator or AnalyticEstimator())
        raise explain(problem, strategy.plan, error) from error


def appraise(
    problem: PlanningProblem,
    plan: ShardingPlan,
    name: str,
    plan_seconds: float = 0.0,
    estimator: AdditiveEstimator | None = None,
) -> PlanResult:
    """Checks a plan, wherever it comes from, and prices it; raises PlanningError where it breaks a rule."""
    prices = estimator or AnalyticEstimator()
    check(plan, problem)
    return PlanResult(
        problem, plan, name, prices.estimate(problem, plan), lower_bound_ms(problem, prices), plan_seconds
    )
