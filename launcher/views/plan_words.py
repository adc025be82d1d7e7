"""What is said of a plan in words: its step, how far from the best it can be at most, where it comes from."""

from typing import Any

from launcher.priced_plan import PINNED, REPLANNED, REQUESTED, RESUMED
from planner.search.best_move import Move

# Source: style of the field; the long names stand in JSON.
ABBREVIATIONS = {
    "data_parallel": "DP",
    "table_wise": "TW",
    "column_wise": "CW",
    "row_wise": "RW",
    "table_row_wise": "TWRW",
}

GIVEN = {
    PINNED: "pinned by a file: checked and priced, not searched",
    RESUMED: "of the checkpoint: checked and priced, not searched",
    REPLANNED: "of the running job's re-plan, priced as corrected by what was measured",
    REQUESTED: "handed in to the running job: checked and priced, not searched",
}

NO_MOVE = "best single move: none; no move, split, merge or other type of one table shortens the step"


def summary(plan: dict[str, Any]) -> str:
    """Three lines on a plan (`plan --json`): step and imbalance, lower bound and gap, strategy and time."""
    step = f"estimated step {plan['estimated_step_ms']:.2f} ms, imbalance {plan['imbalance']:.2f}"
    return "\n".join([step, bound_words(plan), origin(plan)])


def bound_words(plan: dict[str, Any]) -> str:
    """How far the step is above what no plan can beat."""
    if plan["lower_bound_ms"] <= 0:
        return "lower bound: none is known for these costs"
    return (
        f"lower bound {plan['lower_bound_ms']:.2f} ms, which no plan can beat: "
        f"at most {percent(plan['gap'])} above the best there is"
    )


def origin(plan: dict[str, Any]) -> str:
    """Who found the plan, how and how fast: `by portfolio: beam + local search in 2.31 s`."""
    strategy = plan["strategy"]
    if strategy in GIVEN:
        return GIVEN[strategy]
    way = "" if plan["winner"] == strategy else f": {plan['winner']}"
    return f"by {strategy}{way} in {plan['plan_seconds']:.2f} s"


def move_words(move: Move) -> str:
    """A single change and what it is worth: `table cat_3 from rank 1 to rank 0: 26.10 -> 24.90 ms (-4.6 %)`."""
    names = f"table{'s' if len(move.tables) > 1 else ''} {', '.join(move.tables)}"
    before_ms = move.step_ms + move.gain_ms
    gain = percent(-move.gain_ms / before_ms)
    return f"best single move: {names} {move.change}: {before_ms:.2f} -> {move.step_ms:.2f} ms ({gain})"


def percent(share: float) -> str:
    """A share with one decimal.

    >>> percent(0.0456)
    '4.6 %'
    """
    return f"{100 * share:.1f} %"
