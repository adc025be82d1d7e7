"""The one writer of a run's TensorBoard events."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from cluster.imbalance.signals import split_steps
from cluster.telemetry import Block
from launcher.priced_plan import PricedPlan
from launcher.schema import RunConfig
from launcher.views.balance_page import LAYOUT, Promise, block_scalars, resharding_scalars
from launcher.views.base import Observer
from launcher.views.cost_map import draw_cost_map, lookup_ms_by_table
from launcher.views.event_text import decision_markdown, links_markdown, migration_markdown, verdict_markdown
from launcher.views.plan import gathered_bytes, plan_markdown
from launcher.views.run_results import main_keys, results
from launcher.views.work_map import WorkMap

METRICS = ("loss", "ne", "auc", "calibration")


class TensorBoardView(Observer):
    """Writes windows, evaluations, measured steps, events and plans; the tags are listed in the README.

    A poll of the workers gives one point a tag, whatever it brings. What was shown is in the file after `flush`.
    """

    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(str(folder), flush_secs=5)
        self._writer.add_custom_scalars(LAYOUT)
        self._promise: Promise | None = None
        self._work_map = WorkMap()
        self._last_step = 0

    def show_plan(self, planned: PricedPlan, step: int) -> None:
        """A plan as text and as heat maps of ranks x tables; from now on its promise stands beside what is measured."""
        self._promise = Promise.of(planned.cost)
        self._writer.add_text("plan/tables", plan_markdown(planned), step)
        placed = [table.name for table in planned.plan.tables]
        gathered = draw_cost_map(gathered_bytes(planned, planned.problem.workload.tables), placed, "B")
        self._image("plan/gathered_bytes_rank_x_table", gathered, step)
        named = [table.name for table in planned.problem.workload.tables]
        self._image("plan/lookup_ms_rank_x_table", draw_cost_map(lookup_ms_by_table(planned), named, "ms"), step)
        scalars = {"plan/estimated_step_ms": planned.cost.step_ms, "plan/estimated_imbalance": planned.cost.imbalance}
        self._scalars(scalars, step)
        self.flush()

    def show(self, record: dict[str, Any]) -> None:
        """See Observer."""
        step = record["step"]
        # A verdict names the step that made it certain, which may lie behind the newest window.
        self._last_step = max(self._last_step, step)
        match record["kind"]:
            case "window":
                self._scalars({**_metrics("train", record), "speed/qps": record["qps"]}, step)
            case "evaluation":
                self._scalars(_metrics("held_out", record), step)
            case "warning" | "note" as kind:
                self._writer.add_text(f"events/{kind}", record["message"], step)
            case "verdict":
                self._writer.add_text("events/verdict", verdict_markdown(record), step)
            case "links":
                self._writer.add_text("events/links", links_markdown(record), step)
            case "decision" | "migration" | "outcome":
                self._show_resharding(record, step)

    def show_block(self, block: Block) -> None:
        """See Observer."""
        if block.name != "steps" or not len(block.steps):
            return
        step, columns = int(block.steps[-1]), list(block.labels["columns"])
        signals = split_steps(block.steps, block.rows, columns)
        self._scalars(block_scalars(block, signals, self._promise), step)
        step_ms = block.rows[..., columns.index("step_ms")]
        for name, values in (("step_ms", step_ms), ("work_ms", signals.work_ms), ("ids", signals.ids)):
            self._writer.add_histogram(f"spread/{name}", values.ravel(), step)
        self._work_map.add(block.steps, signals.work_ms)
        self._last_step = step
        if self._work_map.is_due:
            self._draw_work()

    def show_results(self, config: RunConfig, report: Mapping[str, Any]) -> None:
        """At the end of a run: its main keys and what it came to (`read_report`), for the hparams page."""
        found = results(report)
        self._scalars(found, self._last_step)
        for summary in hparams(main_keys(config, len(report["ranks"])), found):
            self._writer.file_writer.add_summary(summary)

    def flush(self) -> None:
        """See Observer."""
        self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        if self._work_map.has_news:
            self._draw_work()
        self._writer.close()

    def _show_resharding(self, record: dict[str, Any], step: int) -> None:
        """A decision, a migration or its outcome as text; the figures of plans that trained as scalars."""
        self._scalars(resharding_scalars(record), step)
        match record["kind"]:
            case "decision":
                self._writer.add_text("events/decision", decision_markdown(record), step)
            case "migration":
                self._writer.add_text("events/migration", migration_markdown(record), step)
            case "outcome":
                self._writer.add_text("events/outcome", record["message"], step)

    def _draw_work(self) -> None:
        self._image("balance/work_rank_x_time", self._work_map.draw(), self._last_step)

    def _image(self, tag: str, pixels: np.ndarray, step: int) -> None:
        self._writer.add_image(tag, pixels, step, dataformats="HWC")

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        """Many scalars as one event, which costs a tenth of an event each."""
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._writer.file_writer.add_summary(summary, step)


def _metrics(group: str, record: dict[str, Any]) -> dict[str, float]:
    """The metrics that there are, by tag."""
    return {f"{group}/{name}": record[name] for name in METRICS if record[name] is not None}
