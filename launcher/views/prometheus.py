"""The newest figures of a run for Prometheus, through Ray."""

from typing import Any

from cluster.imbalance.signals import split_steps
from cluster.metrics import RunMetrics
from cluster.telemetry import Block
from launcher.views.balance_page import imbalance
from launcher.views.base import Observer


class Mirror(Observer):
    """Shows the means of every block that is delivered as gauges, and counts verdicts."""

    def __init__(self, run_name: str) -> None:
        self._metrics = RunMetrics(run_name)

    def show(self, record: dict[str, Any]) -> None:
        """See Observer."""
        if record["kind"] == "window":
            self._metrics.show({"samples_per_s": record["qps"]})
        elif record["kind"] == "verdict" and not record["is_over"]:
            self._metrics.count_verdict(record["cause"])

    def show_block(self, block: Block) -> None:
        """See Observer."""
        if block.name != "steps":
            return
        columns = list(block.labels["columns"])
        signals = split_steps(block.steps, block.rows, columns)
        step_ms = block.rows[..., columns.index("step_ms")].mean(axis=0)
        ranks = {
            "lookup_ms": signals.lookup_ms.mean(axis=0),
            "work_ms": signals.work_ms.mean(axis=0),
            "waiting_ms": signals.waiting_ms.sum(axis=2).mean(axis=0),
        }
        forward_ms = block.rows[..., columns.index("lookup_forward_ms")].mean(axis=0)
        figures = {
            "step_ms_slowest": step_ms.max(),
            "step_ms_mean": step_ms.mean(),
            "waiting_share": ranks["waiting_ms"].mean() / step_ms.mean(),
        }
        even = {**imbalance("lookup_imbalance", forward_ms), **imbalance("work_imbalance", ranks["work_ms"])}
        figures |= {tag.removeprefix("balance/"): value for tag, value in even.items()}
        self._metrics.show(figures, {name: values.tolist() for name, values in ranks.items()})
