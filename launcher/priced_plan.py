"""A plan together with what priced it, so that changes of it can be priced too; and plans that files pin down."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from planner.cost.step import StepEstimator
from planner.errors import PlanningError
from planner.plan import ShardingPlan
from planner.search.best_move import Move, best_move
from planner.search.registry import PlanResult

PINNED, RESUMED = "pinned", "resumed"
"""What stands for a strategy where a plan comes from a file, or from the checkpoint to go on from."""

REPLANNED, REQUESTED = "replan", "request"
"""The same for a plan that a running job moved to: by its controller's decision, or handed in by a user."""

POLISHING = ("portfolio", REPLANNED, REQUESTED)
"""Strategies that spend their budget on single changes as well: what they leave is not looked for once more. Nor is it
in what a running job moved to: the search would keep its controller from the workers for seconds."""


@dataclass(frozen=True)
class PricedPlan(PlanResult):
    """A checked plan with the estimator that priced it.

    Attributes:
        estimator: Gave `cost` and `lower_bound_ms`.
    """

    estimator: StepEstimator

    @classmethod
    def of(cls, planned: PlanResult, estimator: StepEstimator) -> "PricedPlan":
        """The plan with its estimator."""
        return cls(**vars(planned), estimator=estimator)

    @property
    def is_polished(self) -> bool:
        """Whether the search has tried single changes itself."""
        return self.strategy in POLISHING

    @cached_property
    def best_move(self) -> Move | None:
        """The best single change; None where none is found that helps. Takes seconds on large clusters."""
        return best_move(self.problem, self.plan, self.estimator)

    def to_dict(self) -> dict[str, Any]:
        """What `plan --json` prints: `best_move` is looked for in plans that are not polished."""
        return super().to_dict() if self.is_polished else {**super().to_dict(), "best_move": self._move()}

    def _move(self) -> dict[str, Any] | None:
        move = self.best_move
        if move is None:
            return None
        return {
            "table": ", ".join(move.tables),
            "change": move.change,
            "step_ms": move.step_ms,
            "gain_ms": move.gain_ms,
        }


def read_pinned(path: Path) -> ShardingPlan:
    """The plan that a file holds: what `plan --json` printed, or one of a run's `plans/`.

    Raises:
        OSError: The file cannot be read.
        PlanningError: It holds no plan (reason `plan`).
    """
    try:
        found = json.loads(path.read_text())
        # `plan --json` tells the ranks one by one, a checkpoint only how many there are.
        world_size = found["world_size"] if "world_size" in found else len(found["ranks"])
        return ShardingPlan.from_dict({"world_size": world_size, "tables": found["tables"]})
    except (ValueError, KeyError, TypeError, PlanningError) as error:
        raise PlanningError(
            f"{path} holds no plan ({error!r}); expected what `plan --json` prints, or a file of runs/NAME/plans/",
            reason="plan",
        ) from error
