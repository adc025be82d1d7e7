"""What a run says of itself: flat JSON-able records, each with a `kind` and the step it was made at."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from dlrm.metrics import MetricValues, compute_metrics
from dlrm.step_columns import STEP
from dlrm.window import Window


def window_record(window: Window) -> dict[str, Any]:
    """One window of training: metrics and samples a second of all ranks, and how far their steps lie apart.

    Without telemetry `step_ms` is the time of the window over its steps, alike for all.
    """
    values, span = compute_metrics(window.metrics), window.span
    ranks_ms = window.steps[..., STEP].mean(axis=0) if len(window.steps) else [1e3 * span.seconds / span.num_steps]
    return _finite(
        {
            "kind": "window",
            "step": span.step,
            "total_steps": span.total_steps,
            "epoch": span.epoch,
            **asdict(values),
            "qps": values.samples / span.seconds,
            "step_ms": {
                "fastest": float(np.min(ranks_ms)),
                "median": float(np.median(ranks_ms)),
                "slowest": float(np.max(ranks_ms)),
            },
        }
    )


def evaluation_record(values: MetricValues, step: int) -> dict[str, Any]:
    """Metrics of the held-out samples after `step`."""
    return _finite({"kind": "evaluation", "step": step, **asdict(values)})


def warning_record(message: str, step: int) -> dict[str, Any]:
    """Something that a user should know."""
    return {"kind": "warning", "step": step, "message": message}


def note_record(message: str, step: int) -> dict[str, Any]:
    """Something that a user asked for and may want to know the whereabouts of."""
    return {"kind": "note", "step": step, "message": message}


def links_record(send_ms: np.ndarray, step: int) -> dict[str, Any]:
    """What a probe found of the links: `send_ms` [W, W], a row a sender; null where nothing was sent."""
    rows = [[round(ms, 4) if math.isfinite(ms) else None for ms in row] for row in send_ms.tolist()]
    return {"kind": "links", "step": step, "send_ms": rows}


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: they become null."""
    is_number = {key: not isinstance(value, float) or math.isfinite(value) for key, value in record.items()}
    return {key: value if is_number[key] else None for key, value in record.items()}
