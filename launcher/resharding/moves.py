"""Moves of a running job from one plan to another: what was asked of the workers, and whether it was worth it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.imbalance.best_of import BEST_OF
from dlrm.records import warning_record
from launcher.priced_plan import PricedPlan
from launcher.resharding.memory import PlanMemory, StepTimes
from launcher.resharding.records import VERDICT
from planner.cost.estimator import PlanCost
from planner.plan import ShardingPlan
from planner.replan import Outcome, judge_move

UNSETTLED_STEPS = 10
"""First steps after a migration, which are not compared: allocators and caches are still cold in them."""


@dataclass(frozen=True, eq=False)
class Move:
    """What was asked of the workers.

    Attributes:
        number: Of the move; the first is 1.
        trigger: What asked for it, see `launcher.resharding.records`.
        planned: The plan to move to, priced.
        promised_gain_ms: A step.
        before: Steps before it; none where nothing was measured.
        request: Name of the user's request, if one asked.
    """

    number: int
    trigger: str
    planned: PricedPlan
    promised_gain_ms: float
    before: StepTimes
    request: str | None = None


@dataclass(frozen=True, eq=False)
class SettlingMove:
    """A move that was made and is yet to be compared with what it promised.

    Attributes:
        move: The move.
        previous: The plan before it.
        step: The last one under that plan.
    """

    move: Move
    previous: PricedPlan
    step: int

    def judge(self, memory: PlanMemory, settle_steps: int) -> Outcome | None:
        """What it came to, once so many steps were seen; None before. At the speed that the fleet had before."""
        after, before = memory.times(self.step + UNSETTLED_STEPS + 1).first(settle_steps), self.move.before
        if len(after) < settle_steps:
            return None
        # Each is the best of BEST_OF steps: those of overlapping stretches would count the same luck several times.
        before_ms, after_ms = before.step_ms[::BEST_OF], after.at_speed_of(before)[::BEST_OF]
        return judge_move(before_ms, after_ms, self.move.promised_gain_ms)

    def is_taken_back(self, outcome: Outcome) -> bool:
        """Whether the plan before trains again: after a loss, unless a user asked for the move or it takes one back."""
        return outcome.is_loss and self.move.trigger == VERDICT


def price_plan(present: PricedPlan, plan: ShardingPlan, cost: PlanCost, name: str) -> PricedPlan:
    """A plan to move to; no bound is known for costs that were corrected, and none is searched for while a job runs."""
    return PricedPlan(
        problem=present.problem,
        plan=plan,
        strategy=name,
        winner=name,
        cost=cost,
        lower_bound_ms=0.0,
        plan_seconds=0.0,
        estimator=present.estimator,
    )


def failure_record(move: Move, migration: Mapping[str, Any]) -> dict[str, Any]:
    """The warning of a migration that was not committed: why, and that the old plan trains on."""
    where = "" if migration["fault_rank"] is None else f" (rank {migration['fault_rank']})"
    cause = migration["fault"] or migration["message"]
    return warning_record(
        f"move {move.number} was not made, the plan before trains on: {cause}{where}", migration["step"]
    )
