"""The report of `shardwright bench detect` for people."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from launcher.views.tables import make_table, number

COLUMNS = ("detector", "F1", "false in 10k", "right cause", "delay steps", "us a point")
KIND_COLUMNS = ("source", "kind", "ranks", "runs", "found", "false", "cause", "rank", "delay", "since off")


def render_detect(found: dict[str, Any]) -> Iterator[Table | str]:
    """Tables of the object that `detect.run_detect` gives, and what its figures mean."""
    yield make_table("detectors", COLUMNS, (_row(name, found) for name in found["thresholds"]))
    default = found["default"]
    lines = [line for line in found["breakdown"] if line["detector"] == default]
    yield make_table(f"{default}, by kind", KIND_COLUMNS, (_kind_row(line) for line in lines), left=2)
    yield "false in 10k: wrong verdicts in 10,000 clean steps; delay: steps until a fault is certain"
    yield "us a point: processor time of the whole watch, per step and rank"
    yield "since off: steps between a fault's first and the first that is told"


def _row(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    each = found[name]
    return (
        f"{name} (default)" if name == found["default"] else name,
        number(each["f1"], 3),
        number(each["false_alarms_per_10k"], 2),
        _share(each["cause_accuracy"]),
        number(each["delay_steps_median"], 0),
        number(each["us_per_point"], 2),
    )


def _kind_row(line: dict[str, Any]) -> tuple[str, ...]:
    has_fault = line["faults"] > 0
    return (
        line["source"],
        line["kind"],
        str(line["ranks"]),
        str(line["runs"]),
        str(line["found"]) if has_fault else "-",
        str(line["false"]),
        *(str(line[name]) if has_fault else "-" for name in ("right_cause", "right_rank")),
        number(line["delay_steps_median"], 0),
        number(line["since_error_steps_median"], 0),
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
