"""A run's report for people."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from launcher.views.migrations import render_migrations
from launcher.views.rank_bars import TIGHT
from launcher.views.tables import make_table, number
from planner.text import human_bytes

MOST_RANKS = 32
"""Ranks that are shown one by one."""

BALANCE_COLUMNS = (
    "rank",
    "shards",
    "planned",
    "peak",
    "est. lookup",
    "lookup",
    "own work",
    "waiting",
    "step",
    "data wait",
)


def render_report(report: dict[str, Any], path: Path) -> Iterator[Table | str]:
    """The report for people: the balance of the ranks, then the figures of the run.

    Of lookups the forward pass is shown, measured beside estimated.
    """
    yield _balance(report["ranks"])
    if len(report["ranks"]) > MOST_RANKS:
        yield f"  ... and {len(report['ranks']) - MOST_RANKS} more ranks (--json lists all)"
    if report["telemetry"] is None:
        yield "no telemetry: nothing was measured in the steps of this run"
    yield from _balance_in_words(report)
    yield from _speed_in_words(report)
    if report["auc"] is not None:
        auc, ne, loss = (number(report[name], 4) for name in ("auc", "ne", "loss"))
        yield f"held-out: AUC {auc}, NE {ne}, loss {loss}"
    yield from (f"verdict at step {verdict['step']}: {verdict['message']}" for verdict in report["verdicts"])
    yield from (f"decision at step {decision['step']}: {decision['message']}" for decision in report["decisions"])
    if report["migrations"]:
        yield render_migrations(report["migrations"])
    yield from (f"warning: {message}" for message in report["warnings"])
    yield from (f"profile for ui.perfetto.dev: {trace}" for trace in report["traces"])
    since = f" (since {report['updated_at']})" if report["result"] == "running" else ""
    yield f"{report['result']}{since} after {report['steps']} steps: {path}"
    if report["message"]:
        yield report["message"].splitlines()[0]


def _balance(ranks: list[dict[str, Any]]) -> Table:
    table = make_table("balance (ms a step, lookups forward)", BALANCE_COLUMNS, map(_cells, ranks[:MOST_RANKS]), left=1)
    table.padding = TIGHT
    return table


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One rank; what was not measured is a dash."""
    measured = ("lookup_forward_ms", "work_ms", "waiting_ms", "step_ms", "data_wait_ms")
    return (
        str(row["rank"]),
        str(row["num_shards"]),
        human_bytes(row["planned_bytes"]),
        human_bytes(row["peak_bytes"]) if "peak_bytes" in row else "-",
        f"{row['estimated_lookup_forward_ms']:.2f}",
        *(number(row.get(name), 2) for name in measured),
    )


def _balance_in_words(report: dict[str, Any]) -> Iterator[str]:
    if report["imbalance"]:
        shown = report["imbalance"]
        estimated = [rank["estimated_lookup_forward_ms"] for rank in report["ranks"]]
        promised = max(estimated) * len(estimated) / sum(estimated)
        yield (
            f"imbalance of lookups (max / mean): first {shown['first']:.2f}, last {shown['last']:.2f}, "
            f"max {shown['max']:.2f}; estimated {promised:.2f}"
        )
    if report["collectives"]:
        most = max(report["collectives"], key=lambda collective: collective["waits_most"]["waiting_ms"])
        least, longest = most["waits_least"], most["waits_most"]
        yield (
            f"waiting: most in {most['name']}, rank {longest['rank']} {longest['waiting_ms']:.2f} ms, "
            f"rank {least['rank']} {least['waiting_ms']:.2f} ms; transfer {most['transfer_ms']:.2f} ms"
        )


def _speed_in_words(report: dict[str, Any]) -> Iterator[str]:
    if report["qps"] is None:
        return
    parts = [f"speed: {report['qps']:,.0f} samples/s"]
    if report["step_ms"]:
        parts.append(f"step {report['step_ms']['median']:.1f} ms (p95 {report['step_ms']['p95']:.1f})")
    if report["step_ms"] and report["data_wait_ms"] is not None:
        parts.append(f"waiting for data {report['data_wait_ms'] / report['step_ms']['median']:.1%} of it")
    yield ", ".join(parts)
