"""Strategies side by side on the terminal: a bar while they plan, a table of what they found."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from launcher.comparison import Begin, Outcome
from launcher.views.plan_words import bound_words, percent
from launcher.views.rank_bars import TIGHT
from launcher.views.tables import make_table
from planner.search.registry import PlanResult
from planner.text import human_bytes

COLUMNS = ("strategy", "step ms", "max rank ms", "its lookups", "imbalance", "gap", "most memory", "plan s")


@contextmanager
def follow_strategies(console: Console, names: Sequence[str]) -> Iterator[Begin]:
    """A bar of the strategies until the context ends; nothing where the output is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("planning", total=len(names))
        yield lambda name: bar.update(task, description=f"planning with {name}", completed=names.index(name))


def render_comparison(outcomes: Sequence[Outcome]) -> Iterator[Table | str]:
    """A row a strategy that found a plan, the winner in words, the bound; then why the others found none.

    `its lookups` are those of the rank with the most own work.
    """
    found = [outcome.planned for outcome in outcomes if outcome.planned]
    if found:
        table = make_table("strategies, the best first", COLUMNS, map(_row, found))
        table.padding = TIGHT
        yield table
        yield f"winner: {_winner(found)}"
        yield bound_words(found[0].to_dict())
    for outcome in outcomes:
        if outcome.fault:
            yield f"no plan by {outcome.strategy}: {outcome.fault}"


def _row(planned: PlanResult) -> tuple[str, ...]:
    plan = planned.to_dict()
    return (
        planned.strategy,
        f"{plan['estimated_step_ms']:.3f}",
        f"{plan['max_rank_ms']:.3f}",
        f"{planned.cost.lookup_ms[planned.cost.total_ms.argmax()]:.3f}",
        f"{plan['imbalance']:.2f}",
        percent(plan["gap"]),
        human_bytes(max(rank["hbm_bytes"] for rank in plan["ranks"])),
        f"{plan['plan_seconds']:.2f}",
    )


def _winner(found: Sequence[PlanResult]) -> str:
    """The best plan's strategy, how it won, and by how much of a step."""
    best, *others = found
    way = "" if best.winner == best.strategy else f" ({best.winner})"
    if not others:
        return f"{best.strategy}{way}, the only one with a plan"
    ahead = percent(1 - best.cost.step_ms / others[0].cost.step_ms)
    return f"{best.strategy}{way}, {ahead} shorter than {others[0].strategy}"
