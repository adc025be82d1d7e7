"""What a run came to, from its folder alone."""

from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from launcher.run_dir import RunDir
from launcher.views.measured import Windows, describe_collectives, hottest_tables, read_windows
from launcher.views.migrations import describe_migrations
from launcher.views.report_text import render_report

__all__ = ["NoRunError", "read_report", "render_report"]


class NoRunError(Exception):
    """The folder is not that of a run."""


def read_report(path: Path) -> dict[str, Any]:
    """The report as `report --json` prints it; raises NoRunError.

    `step_ms` is of the slowest rank, over windows; `qps` is the median window's; `loss`, `ne` and `auc` are of the last
    held-out evaluation. From the telemetry, without which these are null or empty: `imbalance`, max / mean over ranks
    of forward lookups, windows of ten steps; `ranks`, the median of every figure of a rank under the last plan, with
    `work_ms` in kernels, `waiting_ms` for other ranks, and `own_share`, the work's part of the step; `collectives` and
    `tables`, see `launcher.views.measured`. `migrations`, see `launcher.views.migrations`. `verdicts` and `decisions`
    are the records of these kinds, `traces` the files of profiles.
    """
    run = RunDir(path)
    try:
        status, records = run.read_json("status.json"), list(run.records())
    except OSError:
        raise NoRunError(f"{path} is not the folder of a run: it has no status.json") from None
    except ValueError as error:
        raise NoRunError(f"{path}: status.json or records.jsonl is broken: {error}") from error
    return {
        "steps": max((record["step"] for record in records), default=status["step"]),
        **_speed_and_learning(records),
        **_telemetry(run),
        "plans": run.plans(),
        "migrations": describe_migrations(records),
        "decisions": _of_kind(records, "decision"),
        "restarts": 0,
        "verdicts": _of_kind(records, "verdict"),
        "warnings": [record["message"] for record in _of_kind(records, "warning")],
        "traces": sorted(str(path) for path in run.traces.glob("*.json.gz")),
        "result": status["status"],
        "exit_code": status["exit_code"],
        "updated_at": status["updated_at"],
        "message": status["message"],
    }


def percentile_95(values: list[float]) -> float:
    """The 95th percentile (inclusive method of `statistics.quantiles`)."""
    return quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def _of_kind(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record for record in records if record["kind"] == kind]


def _speed_and_learning(records: list[dict[str, Any]]) -> dict[str, Any]:
    windows, evaluations = _of_kind(records, "window"), _of_kind(records, "evaluation")
    held_out = evaluations[-1] if evaluations else {}
    # Runs of earlier versions have windows without it.
    step_ms = [window["step_ms"]["slowest"] for window in windows if window.get("step_ms")]
    return {
        "qps": median(window["qps"] for window in windows) if windows else None,
        "loss": held_out.get("loss"),
        "ne": held_out.get("ne"),
        "auc": held_out.get("auc"),
        "step_ms": {"median": median(step_ms), "p95": percentile_95(step_ms)} if step_ms else None,
    }


def _telemetry(run: RunDir) -> dict[str, Any]:
    """The keys that come from measured steps: of all files the imbalance, of the last one all else."""
    files = read_windows(run)
    values = [float(value) for windows in files for value in windows.imbalances]
    last = files[-1] if files else None
    plans = run.plans()
    # Every plan has a file of its own, once a step of it was measured.
    measured = plans[: len(files)] if files else plans
    return {
        "telemetry": {"num_steps": sum(windows.num_steps for windows in files)} if files else None,
        "data_wait_ms": float(np.median(last.column("data_wait_ms").max(axis=1))) if last else None,
        "imbalance": {"first": values[0], "last": values[-1], "max": max(values)} if values else None,
        "ranks": _ranks(measured, last),
        "collectives": describe_collectives(last) if last else [],
        "tables": hottest_tables(run),
    }


def _ranks(plans: list[dict[str, Any]], windows: Windows | None) -> list[dict[str, Any]]:
    """What the last of the plans gives each rank and, where it was measured, what the rank did."""
    if not plans:
        return []
    figures = _figures(windows) if windows else {}
    return [
        {
            "rank": planned["rank"],
            "node": planned["node"],
            "num_shards": planned["num_shards"],
            "planned_bytes": planned["hbm_bytes"],
            "estimated_lookup_forward_ms": planned["lookup_forward_ms"],
            **{name: float(values[planned["rank"]]) for name, values in figures.items()},
        }
        for planned in plans[-1]["ranks"]
    ]


def _figures(windows: Windows) -> dict[str, np.ndarray]:
    """Each figure of every rank [W]: the median over windows, of memory the most."""
    names = [name for name in windows.columns if not name.startswith("transfer_ms/")]
    figures = {name: windows.typical(name) for name in names}
    figures["peak_bytes"] = windows.column("peak_bytes").max(axis=0)
    return {**figures, "own_share": figures["work_ms"] / figures["step_ms"]}
