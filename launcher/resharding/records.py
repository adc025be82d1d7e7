"""Records of what was decided about a running job's plan, and of what came of it."""

from typing import Any

from planner.cost.estimator import PlanCost
from planner.replan import Decision, Outcome

VERDICT, REQUEST, ROLLBACK = "verdict", "request", "rollback"
"""What asked for another plan: a finding of the watch, a user, a move that made the job slower."""

MOVE, NO, ADVISED = "move", "no", "advised"
"""What was answered."""

_SAID = {MOVE: "moving: ", NO: "", ADVISED: "advice, nothing moves: "}


def decision_record(
    step: int,
    move: int | None,
    trigger: str,
    subject: tuple[str | None, int | None],
    answer: str,
    decision: Decision,
) -> dict[str, Any]:
    """The record of a decision, also of a no.

    Args:
        step: The newest step that was known.
        move: Number of the move that was asked of the workers; None where none was.
        trigger: One of `VERDICT`, `REQUEST`, `ROLLBACK`.
        subject: Cause and rank of the finding; None where there is none.
        answer: One of `MOVE`, `NO`, `ADVISED`.
        decision: The figures.
    """
    cause, rank = subject
    return {
        "kind": "decision",
        "step": step,
        "move": move,
        "trigger": trigger,
        "cause": cause,
        "rank": rank,
        "answer": answer,
        "reason": decision.reason,
        "predicted_gain_ms": decision.predicted_gain_ms,
        "moved_bytes": decision.moved_bytes,
        "price_ms": decision.price_ms,
        "remaining_steps": decision.remaining_steps,
        "step_ms": decision.step_ms,
        "planned_step_ms": None if decision.expected is None else decision.expected.step_ms,
        "message": f"{_name(trigger, cause, rank)}: {_SAID[answer]}{decision.reason}",
    }


def refusal(step_ms: float, reason: str, expected: PlanCost | None = None) -> Decision:
    """A no that no search came to, for a reason: nothing is moved, nothing gained."""
    return Decision(
        is_move=False,
        plan=None,
        expected=expected,
        step_ms=step_ms,
        predicted_gain_ms=0.0,
        moved_bytes=0,
        price_ms=0.0,
        remaining_steps=None,
        reason=f"no: {reason}",
    )


def outcome_record(step: int, move: int, outcome: Outcome, is_rolled_back: bool) -> dict[str, Any]:
    """The record that holds what a move was to gain a step against what it did."""
    return {
        "kind": "outcome",
        "step": step,
        "move": move,
        "promised_gain_ms": outcome.promised_gain_ms,
        "realised_gain_ms": outcome.realised_gain_ms,
        "is_rolled_back": is_rolled_back,
        "message": f"move {move}: {outcome.message}{'; it is taken back' if is_rolled_back else ''}",
    }


def _name(trigger: str, cause: str | None, rank: int | None) -> str:
    """What a decision is about, in a word or two."""
    if cause is None:
        return trigger
    return cause if rank is None else f"{cause} on rank {rank}"
