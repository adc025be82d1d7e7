"""How far estimated times are from measured ones."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

METRICS = ("rmse_ms", "mape", "spearman")
"""Names of the metrics, in the order in which they are shown."""

Scores = dict[str, dict[str, float]]
"""Metrics by model."""


def error_metrics(estimated_ms: NDArray[np.float64], measured_ms: NDArray[np.float64]) -> dict[str, float]:
    """Root mean squared error in ms, mean absolute relative error as a fraction, and rank correlation.

    >>> error_metrics(np.array([1.0, 3.0]), np.array([1.0, 2.0]))["mape"]
    0.25
    """
    from scipy.stats import spearmanr

    difference = estimated_ms - measured_ms
    return {
        "rmse_ms": float(np.sqrt((difference**2).mean())),
        "mape": float(np.abs(difference / measured_ms).mean()),
        # A constant estimate ranks nothing.
        "spearman": float(spearmanr(estimated_ms, measured_ms).statistic) if np.ptp(estimated_ms) > 0 else 0.0,
    }


def mean_and_spread(runs: Iterable[dict[str, float]]) -> dict[str, float]:
    """Each metric's mean over runs, and as `<metric>_std` its standard deviation (0 for one run)."""
    found = list(runs)
    means = {name: float(np.mean([run[name] for run in found])) for name in METRICS}
    ddof = 1 if len(found) > 1 else 0
    return means | {f"{name}_std": float(np.std([run[name] for run in found], ddof=ddof)) for name in METRICS}


def render_metrics(scores: Mapping[str, float]) -> str:
    """One line for people.

    >>> render_metrics({"rmse_ms": 104.96, "mape": 0.0912, "spearman": 0.99})
    'RMSE 105.0 ms, MAPE 9.1%, Spearman 0.9900'
    """
    return f"RMSE {scores['rmse_ms']:.1f} ms, MAPE {scores['mape']:.1%}, Spearman {scores['spearman']:.4f}"
