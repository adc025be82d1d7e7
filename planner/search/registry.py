"""Strategies by name, and the one way to make a plan with them."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from planner.check import check
from planner.cost.analytic import AnalyticEstimator
from planner.cost.estimator import AdditiveEstimator, PlanCost
from planner.errors import InfeasibleError, PlanningError
from planner.memory import rank_bytes
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.remedies import explain
from planner.search.bound import lower_bound_ms
from planner.search.exact import ExactSearch
from planner.search.heuristics import (
    GreedyRule,
    RandomPlacement,
    dim_score,
    lookup_score,
    size_lookup_score,
    size_score,
)
from planner.search.longest_processing_time import LongestProcessingTime
from planner.search.neuroshard import NeuroShardSearch
from planner.search.placement import build_units, check_total
from planner.search.portfolio import Maker, Portfolio
from planner.text import did_you_mean

if TYPE_CHECKING:
    from planner.policy.decode import PolicyStrategy

PORTFOLIO_SAMPLES = 16
"""Episodes of the policy of which the portfolio polishes the best."""

BUDGET_S = 6.0
"""Seconds of a search unless told otherwise: 1,000 tables on 128 devices are planned within ten in all."""


class Strategy(Protocol):
    """A way to find a plan."""

    def plan(self, problem: PlanningProblem) -> ShardingPlan:
        """A plan that places every table; raises InfeasibleError where it finds none."""
        ...


class TorchRecOnDemand:
    """TorchRec's own planner; TorchRec is imported by the first plan, since that takes seconds."""

    def plan(self, problem: PlanningProblem) -> ShardingPlan:
        """The plan of `torchrec_bridge.TorchRecStrategy`."""
        check_total(problem, build_units(problem))
        from planner.torchrec_bridge import TorchRecStrategy

        return TorchRecStrategy().plan(problem)


@dataclass(frozen=True)
class PolicyOnDemand:
    """The trained policy; torch is imported by the first plan, since that takes seconds.

    Attributes:
        estimator: As in `policy.decode.PolicyStrategy`.
        num_samples: As there.
        seed: As there.
    """

    estimator: AdditiveEstimator
    num_samples: int
    seed: int

    def plan(self, problem: PlanningProblem) -> ShardingPlan:
        """The best plan of its episodes."""
        return self._strategy().plan(problem)

    def candidates(self, problem: PlanningProblem) -> list[ShardingPlan]:
        """The plans of its episodes, the best first."""
        return self._strategy().candidates(problem)

    def _strategy(self) -> "PolicyStrategy":
        from planner.policy.decode import PolicyStrategy

        return PolicyStrategy(self.estimator, self.num_samples, self.seed)


@dataclass(frozen=True)
class SearchSettings:
    """What a search is told besides the problem.

    Attributes:
        estimator: Guides the search where it goes by cost, prices the plan and its bound.
        budget_s: Seconds that a search which could go on takes at most.
        seed: The same seed gives the same plan, as far as the budget does not cut it off.
        has_policy: Whether the policy takes part in the portfolio; it loads torch, as learned costs do anyway.
    """

    estimator: AdditiveEstimator = field(default_factory=AnalyticEstimator)
    budget_s: float = BUDGET_S
    seed: int = 0
    has_policy: bool = False


def _portfolio(settings: SearchSettings) -> Portfolio:
    policy = PolicyOnDemand(settings.estimator, PORTFOLIO_SAMPLES, settings.seed)
    makers: dict[str, Maker] = {"policy": policy.candidates} if settings.has_policy else {}
    return Portfolio(settings.estimator, settings.budget_s, settings.seed, makers)


STRATEGIES: dict[str, Callable[[SearchSettings], Strategy]] = {
    "portfolio": _portfolio,
    "policy": lambda settings: PolicyOnDemand(settings.estimator, 1, settings.seed),
    "policy_best_of_64": lambda settings: PolicyOnDemand(settings.estimator, 64, settings.seed),
    "neuroshard": lambda settings: NeuroShardSearch(settings.estimator),
    "longest_processing_time": lambda settings: LongestProcessingTime(settings.estimator),
    "size_greedy": lambda _: GreedyRule(size_score),
    "dim_greedy": lambda _: GreedyRule(dim_score),
    "lookup_greedy": lambda _: GreedyRule(lookup_score),
    "size_lookup_greedy": lambda _: GreedyRule(size_lookup_score),
    "exact": lambda settings: ExactSearch(settings.estimator, settings.budget_s),
    "torchrec": lambda _: TorchRecOnDemand(),
    "random": lambda settings: RandomPlacement(settings.seed),
}
"""Builders of all strategies by the name that the command line knows."""


@dataclass(frozen=True)
class PlanResult:
    """A checked plan with what it is expected to cost.

    Attributes:
        problem: What was planned.
        plan: The plan.
        strategy: Name of the strategy that was asked.
        winner: How it found it: a portfolio's best search, otherwise the strategy itself.
        cost: Its estimated cost.
        lower_bound_ms: No legal plan's estimated step is shorter.
        plan_seconds: Time the strategy took.
    """

    problem: PlanningProblem
    plan: ShardingPlan
    strategy: str
    winner: str
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
            "winner": self.winner,
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


def build_strategy(name: str, settings: SearchSettings) -> Strategy:
    """The strategy of a name.

    Raises:
        PlanningError: There is none (reason `strategy`).
    """
    if name not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise PlanningError(
            f"strategy {name!r} is not one of {known}{did_you_mean(name, STRATEGIES)}", reason="strategy"
        )
    return STRATEGIES[name](settings)


def find_plan(problem: PlanningProblem, name: str, settings: SearchSettings | None = None) -> PlanResult:
    """A checked plan by the named strategy, in one attempt.

    Args:
        problem: What to plan.
        name: One of `STRATEGIES`.
        settings: Those of a search without a profile if None.

    Raises:
        InfeasibleError: No plan was found; the message tells the shortfall.
        PlanningError: The strategy is not known or cannot express the problem, or its plan breaks a rule.
    """
    settings = settings or SearchSettings()
    strategy = build_strategy(name, settings)
    started = time.perf_counter()
    plan, winner = _run(strategy, name, problem)
    return appraise(problem, plan, name, settings.estimator, time.perf_counter() - started, winner)


def make_plan(problem: PlanningProblem, name: str, settings: SearchSettings | None = None) -> PlanResult:
    """What `find_plan` gives; where it finds none, up to `remedies.BUDGET_S` go into changes that would help.

    Raises:
        InfeasibleError: No plan was found; the message tells the shortfall and remedies that were tried.
        PlanningError: As `find_plan`.
    """
    settings = settings or SearchSettings()
    try:
        return find_plan(problem, name, settings)
    except InfeasibleError as error:
        quick = "longest_processing_time" if name == "portfolio" else name
        raise explain(problem, build_strategy(quick, settings).plan, error) from error


def appraise(
    problem: PlanningProblem,
    plan: ShardingPlan,
    name: str,
    estimator: AdditiveEstimator | None = None,
    plan_seconds: float = 0.0,
    winner: str | None = None,
) -> PlanResult:
    """Checks a plan, wherever it comes from, and prices it; raises PlanningError where it breaks a rule."""
    prices = estimator or AnalyticEstimator()
    check(plan, problem)
    cost, bound_ms = prices.estimate(problem, plan), lower_bound_ms(problem, prices)
    return PlanResult(problem, plan, name, winner or name, cost, bound_ms, plan_seconds)


def _run(strategy: Strategy, name: str, problem: PlanningProblem) -> tuple[ShardingPlan, str]:
    """A strategy's plan, and what to call the way to it."""
    if isinstance(strategy, Portfolio):
        found = strategy.compete(problem)
        return found.assignment.to_plan(), found.name
    return strategy.plan(problem), name
