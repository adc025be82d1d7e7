"""What a run says of itself: flat JSON-able records, each with a `kind` and the step it was made at."""

import math
from dataclasses import asdict
from typing import Any

from dlrm.exchange import SHARED_COLUMNS, Window
from dlrm.metrics import MetricValues, compute_metrics


def window_record(window: Window, step: int, epoch: int, total_steps: int | None, seconds: float) -> dict[str, Any]:
    """One window of training: metrics and samples a second of all ranks, and `columns` of every rank in `ranks`."""
    values = compute_metrics(window.metrics)
    return _finite(
        {
            "kind": "window",
            "step": step,
            "total_steps": total_steps,
            "epoch": epoch,
            **asdict(values),
            "qps": values.samples / seconds,
            "columns": list(SHARED_COLUMNS),
            "ranks": window.shared.tolist(),
        }
    )


def evaluation_record(values: MetricValues, step: int) -> dict[str, Any]:
    """Metrics of the held-out samples after `step`."""
    return _finite({"kind": "evaluation", "step": step, **asdict(values)})


def warning_record(message: str, step: int) -> dict[str, Any]:
    """Something that a user should know."""
    return {"kind": "warning", "step": step, "message": message}


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: they become null."""
    is_number = {key: not isinstance(value, float) or math.isfinite(value) for key, value in record.items()}
    return {key: value if is_number[key] else None for key, value in record.items()}
