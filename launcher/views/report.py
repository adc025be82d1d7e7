"""What a run came to, from its folder alone."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from rich.table import Table

from launcher.run_dir import RunDir
from launcher.views.tables import make_table, number
from planner.text import human_bytes

MOST_RANKS = 32


class NoRunError(Exception):
    """The folder is not that of a run."""


def read_report(path: Path) -> dict[str, Any]:
    """The report as `report --json` prints it; raises NoRunError.

    `step_ms` is of the slowest rank, over windows; `imbalance` is max / mean over ranks of measured forward
    lookups; `ranks` holds every timing of a rank, the median over windows; `qps` is the median window's. `loss`,
    `ne` and `auc` are of the last held-out evaluation.
    """
    run = RunDir(path)
    try:
        status, records = run.read_json("status.json"), list(run.records())
    except OSError:
        raise NoRunError(f"{path} is not the folder of a run: it has no status.json") from None
    except ValueError as error:
        raise NoRunError(f"{path}: status.json or records.jsonl is broken: {error}") from error
    windows = [record for record in records if record["kind"] == "window"]
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    held_out = evaluations[-1] if evaluations else {}
    imbalances = [value for value in map(window_imbalance, windows) if value is not None]
    step_ms = [max(column(window, "step_ms")) for window in windows]
    return {
        "steps": max((record["step"] for record in records), default=status["step"]),
        "qps": median(window["qps"] for window in windows) if windows else None,
        "loss": held_out.get("loss"),
        "ne": held_out.get("ne"),
        "auc": held_out.get("auc"),
        "step_ms": {"median": median(step_ms), "p95": percentile_95(step_ms)} if step_ms else None,
        "data_wait_ms": median(max(column(w, "data_wait_ms")) for w in windows) if windows else None,
        "imbalance": ({"first": imbalances[0], "last": imbalances[-1], "max": max(imbalances)} if imbalances else None),
        "ranks": _ranks(windows, run),
        "plans": run.plans(),
        "migrations": [],
        "restarts": 0,
        "warnings": [record["message"] for record in records if record["kind"] == "warning"],
        "result": status["status"],
        "exit_code": status["exit_code"],
        "updated_at": status["updated_at"],
        "message": status["message"],
    }


def render_report(report: dict[str, Any], path: Path) -> Iterator[Table | str]:
    """The report for people: the balance of the ranks, then the figures of the run.

    Of lookups the forward pass is shown, measured beside estimated.
    """
    yield make_table("balance", _BALANCE_COLUMNS, _balance_rows(report), left=1)
    if report["imbalance"]:
        shown = report["imbalance"]
        estimated = [rank["estimated_lookup_forward_ms"] for rank in report["ranks"]]
        promised = max(estimated) * len(estimated) / sum(estimated)
        yield (
            f"imbalance of lookups (max / mean): first {shown['first']:.2f}, last {shown['last']:.2f}, "
            f"max {shown['max']:.2f}; estimated {promised:.2f}"
        )
    if report["step_ms"]:
        share = report["data_wait_ms"] / report["step_ms"]["median"]
        yield (
            f"speed: {report['qps']:,.0f} samples/s, step {report['step_ms']['median']:.1f} ms "
            f"(p95 {report['step_ms']['p95']:.1f}), waiting for data {share:.1%} of it"
        )
    if report["auc"] is not None:
        auc, ne, loss = (number(report[name], 4) for name in ("auc", "ne", "loss"))
        yield f"held-out: AUC {auc}, NE {ne}, loss {loss}"
    yield from (f"warning: {message}" for message in report["warnings"])
    since = f" (since {report['updated_at']})" if report["result"] == "running" else ""
    yield f"{report['result']}{since} after {report['steps']} steps: {path}"
    if report["message"]:
        yield report["message"].splitlines()[0]


def column(window: dict[str, Any], name: str) -> list[float]:
    """One timing of a window, a value a rank."""
    index = window["columns"].index(name)
    return [row[index] for row in window["ranks"]]


def window_imbalance(window: dict[str, Any]) -> float | None:
    """Max / mean over ranks of the window's forward lookups; None where no rank looked anything up."""
    values = column(window, "lookup_forward_ms")
    mean = sum(values) / len(values)
    return max(values) / mean if mean > 0 else None


def percentile_95(values: list[float]) -> float:
    """The 95th percentile (inclusive method of `statistics.quantiles`)."""
    return quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


_BALANCE_COLUMNS = (
    "rank",
    "shards",
    "planned",
    "peak",
    "est. lookup fwd ms",
    "lookup fwd ms",
    "step ms",
    "data wait ms",
)


def _ranks(windows: list[dict[str, Any]], run: RunDir) -> list[dict[str, Any]]:
    plans = run.plans()
    if not windows or not plans:
        return []
    rows = []
    for planned in plans[-1]["ranks"]:
        rank = planned["rank"]
        rows.append(
            {
                "rank": rank,
                "node": planned["node"],
                "num_shards": planned["num_shards"],
                "planned_bytes": planned["hbm_bytes"],
                "estimated_lookup_forward_ms": planned["lookup_forward_ms"],
                **{name: median(column(w, name)[rank] for w in windows) for name in windows[0]["columns"]},
            }
        )
    return rows


def _balance_rows(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for row in report["ranks"][:MOST_RANKS]:
        yield (
            str(row["rank"]),
            str(row["num_shards"]),
            human_bytes(row["planned_bytes"]),
            human_bytes(row["peak_bytes"]),
            f"{row['estimated_lookup_forward_ms']:.2f}",
            f"{row['lookup_forward_ms']:.2f}",
            f"{row['step_ms']:.2f}",
            f"{row['data_wait_ms']:.2f}",
        )
