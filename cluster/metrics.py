"""Mirrors a few figures of a run to Ray's metrics, which every node offers to Prometheus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# What a run shows, as `ray_shardwright_<name>{run=...}`.
FIGURES = {
    "step_ms_slowest": "Step time of the slowest rank, in ms",
    "step_ms_mean": "Step time, mean of all ranks, in ms",
    "samples_per_s": "Samples trained per second by all ranks",
    "lookup_imbalance": "Time of embedding lookups: slowest rank over mean, 1 is even",
    "work_imbalance": "Time of a rank's own work: slowest rank over mean, 1 is even",
    "waiting_share": "Share of the step that ranks wait for the last to arrive at a collective, mean of all ranks",
}
# What it shows of its ranks, as `ray_shardwright_rank_<name>{run=..., rank=...}`.
RANK_FIGURES = {
    "lookup_ms": "Time of a rank's embedding lookups, forward and backward, in ms a step",
    "work_ms": "Time of a rank's own work in ms a step",
    "waiting_ms": "Time that a rank waits for the last to arrive at a collective, in ms a step",
}
# More ranks are shown as three numbers: Prometheus keeps a time series for every value of a tag, and nobody tells more
# lines than this apart in a chart. TensorBoard goes over to quantiles at the same number.
MOST_RANKS = 32


class RunMetrics:
    """The gauges of one run; make it once this process is connected to Ray.

    Ray's node agent passes values on every 10 s unless told otherwise, under its prefix `ray_`, at
    `http://<node>:<MetricsExportPort>/metrics` of the node that this process runs on.
    """

    def __init__(self, run_name: str) -> None:
        """Registers the metrics; `run_name` becomes their tag `run`."""
        from ray.util.metrics import Gauge

        run = {"run": run_name}
        self._figures = {
            name: Gauge(f"shardwright_{name}", text, ("run",)).set_default_tags(run) for name, text in FIGURES.items()
        }
        self._rank_figures = {
            name: Gauge(f"shardwright_rank_{name}", text, ("run", "rank")).set_default_tags(run)
            for name, text in RANK_FIGURES.items()
        }
        self._verdicts = Gauge("shardwright_verdicts", "Verdicts on the run so far, by cause", ("run", "cause"))
        self._verdicts.set_default_tags(run)
        self._num_verdicts: dict[str, int] = {}

    def show(self, figures: Mapping[str, float], ranks: Mapping[str, Sequence[float]] | None = None) -> None:
        """Sets the newest values; those not named keep theirs.

        Args:
            figures: Values by names of FIGURES.
            ranks: One value a rank by names of RANK_FIGURES; beyond MOST_RANKS the tag `rank` is `max`, `mean`, `min`.
        """
        for name, value in figures.items():
            self._figures[name].set(float(value))
        for name, values in (ranks or {}).items():
            for rank, value in _tag_ranks(values).items():
                self._rank_figures[name].set(value, {"rank": rank})
        self._show_verdicts()

    def count_verdict(self, cause: str) -> None:
        """Counts one more verdict with this cause.

        The count is kept here and set, not added up by Ray's agent, which counts twice what a busy node sends twice.
        """
        self._num_verdicts[cause] = self._num_verdicts.get(cause, 0) + 1
        self._show_verdicts()

    def _show_verdicts(self) -> None:
        for cause, count in self._num_verdicts.items():
            self._verdicts.set(count, {"cause": cause})


def _tag_ranks(values: Sequence[float]) -> dict[str, float]:
    """Values by their tag: every rank, or of many the most, the mean and the least."""
    array = np.asarray(values, dtype=float)
    if len(array) <= MOST_RANKS:
        return {str(rank): float(value) for rank, value in enumerate(array)}
    return {"max": float(array.max()), "mean": float(array.mean()), "min": float(array.min())}
