"""The report of `shardwright bench plans` for people."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from launcher.views.tables import make_table, number

COLUMNS = ("strategy", "solved", "step ms", "common", "lookups", "gap", "gap p95", "best on", "s")


def render_plans(found: dict[str, Any]) -> Iterator[Table | str]:
    """Tables of the object that `plans.run_plans` gives, and what its figures mean."""
    common = found["common"]
    title = f"{found['tasks']} tasks on {found['ranks']} ranks, seed {found['seed']}"
    yield make_table(title, COLUMNS, (_row(name, found) for name in found["strategies"]))
    yield f"common: step ms over the {common['num_tasks']} tasks that every strategy solves which solves any"
    yield from _faults(found)
    yield from _pair_tables(found["pairs"])
    if any("measured_max_rank_ms" in each for each in found["strategies"].values()):
        yield _measured_table(found["strategies"])
    yield f"cost model: {found['cost_model']}"
    yield from found["notes"]


def _row(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    each = found["strategies"][name]
    return (
        name,
        f"{each['success']:.0%}",
        _ms(each["predicted_ms"]),
        _ms(found["common"]["predicted_ms"].get(name)),
        _ms(each["lookup_ms"]),
        _percent(each["gap_median"]),
        _percent(each["gap_p95"]),
        str(each["num_best"]),
        number(each["seconds_mean"], 2),
    )


def _faults(found: dict[str, Any]) -> Iterator[str]:
    """A line for each strategy that left tasks unsolved, with the first reason."""
    for name in found["strategies"]:
        faults = [task["faults"][name] for task in found["per_task"] if name in task["faults"]]
        if faults:
            yield f"{name}: no plan for {len(faults)} tasks; the first: {faults[0]}"


def _pair_tables(pairs: list[dict[str, Any]]) -> Iterator[Table]:
    """What the reference strategy predicts beside each other one, over the tasks that both solve."""
    rows = [
        (
            pair["other"],
            str(pair["num_tasks"]),
            _ms(pair["predicted_ms"]),
            _ms(pair["other_predicted_ms"]),
            number(pair["ratio"], 3),
            str(pair["num_worse"]),
        )
        for pair in pairs
    ]
    if pairs:
        name = pairs[0]["strategy"]
        columns = ("against", "tasks of both", f"{name} ms", "its ms", "ratio of means", "worse on")
        yield make_table(f"{name}, predicted", columns, rows)


def _measured_table(strategies: dict[str, dict[str, Any]]) -> Table:
    rows = [
        (
            name,
            number(each["measured_max_rank_ms"], 2),
            f"{each['measured_spread']:.0%}",
            str(each["measured_num_tasks"]),
            number(each["measured_ratio_vs_torchrec"], 3),
            _interval(each, "measured_ratio"),
            number(each["measured_ratio_vs_best_greedy"], 3),
            _interval(each, "measured_ratio_vs_best_greedy"),
        )
        for name, each in strategies.items()
        if "measured_max_rank_ms" in each
    ]
    columns = ("strategy", "max rank ms", "spread", "tasks", "x torchrec", "90 %", "x best rule", "90 %")
    return make_table("measured, scaled tasks", columns, rows)


def _interval(figures: dict[str, Any], name: str) -> str:
    low, high = figures[f"{name}_low"], figures[f"{name}_high"]
    return "-" if low is None or high is None else f"{low:.2f}-{high:.2f}"


def _ms(value: float | None) -> str:
    """Milliseconds with a digit behind the point, or three where they are few."""
    return number(value, 1 if value is not None and value >= 100 else 3)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
