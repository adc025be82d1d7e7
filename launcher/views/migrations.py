"""Migrations of a run in its report: what was decided, what it cost, what it came to."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from launcher.views.rank_bars import TIGHT
from launcher.views.tables import make_table, number
from planner.text import human_bytes

MIGRATION_COLUMNS = ("step", "asked by", "moved", "pause ms", "extra memory", "gain ms promised", "realised", "result")

FROM_DECISION = ("trigger", "cause", "rank", "reason", "predicted_gain_ms", "price_ms", "remaining_steps")
"""Of a migration's keys those that the decision for it holds."""


def describe_migrations(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every migration, in order: its record with the figures of its decision and of its outcome.

    `realised_gain_ms` is null where a migration was not compared with its promise: it was not committed, took another
    one back, or the run or a user's next plan was quicker than `resharding.settle_steps`.
    """
    decisions = {record["move"]: record for record in records if record["kind"] == "decision"}
    outcomes = {record["move"]: record for record in records if record["kind"] == "outcome"}
    return [
        _join(record, decisions.get(record["move"], {}), outcomes.get(record["move"], {}))
        for record in records
        if record["kind"] == "migration"
    ]


def render_migrations(migrations: Sequence[dict[str, Any]]) -> Table:
    """Migrations for people, one a row."""
    table = make_table("migrations", MIGRATION_COLUMNS, map(_cells, migrations), left=2)
    table.padding = TIGHT
    return table


def _join(migration: dict[str, Any], decision: dict[str, Any], outcome: dict[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in migration.items() if key != "kind"}
    found |= {key: decision.get(key, found.get(key)) for key in FROM_DECISION}
    found["realised_gain_ms"] = outcome.get("realised_gain_ms")
    return {**found, "is_rolled_back": outcome.get("is_rolled_back", False)}


def _cells(migration: dict[str, Any]) -> tuple[str, ...]:
    asked_by = migration["trigger"] or "-"
    if migration["cause"]:
        asked_by = migration["cause"] + ("" if migration["rank"] is None else f" {migration['rank']}")
    return (
        str(migration["step"]),
        asked_by,
        human_bytes(migration["moved_bytes"]),
        number(migration["pause_ms"], 0),
        human_bytes(migration["extra_peak_bytes"]),
        number(migration["predicted_gain_ms"], 2),
        number(migration["realised_gain_ms"], 2),
        _result(migration),
    )


def _result(migration: dict[str, Any]) -> str:
    if not migration["is_committed"]:
        return "failed"
    return "taken back" if migration["is_rolled_back"] else "made"
