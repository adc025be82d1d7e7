"""The one writer of a run's TensorBoard events."""

from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from launcher.preparation import Task
from launcher.views.heatmap import draw_heat_map
from launcher.views.plan import gathered_bytes, plan_markdown
from launcher.views.report import window_imbalance
from planner.search.registry import PlanResult

# Beyond this many ranks a chart shows fastest, mean and slowest instead of a line a rank.
MOST_RANK_LINES = 32
METRICS = ("loss", "ne", "auc", "calibration")
# Columns that have a line a rank, and their tags; of the other phases the slowest rank is shown.
RANK_TAGS = {
    "peak_bytes": "peak_bytes",
    "step_ms": "step_ms",
    "data_wait_ms": "data_wait_ms",
    "lookup_forward_ms": "lookup_ms",
}


class TensorBoardView:
    """Writes windows, evaluations, warnings and plans as events; the tags are listed in the README."""

    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(str(folder), flush_secs=5)

    def show_plan(self, planned: PlanResult, task: Task, step: int = 0) -> None:
        """A plan as text and as a heat map of ranks x tables."""
        self._writer.add_text("plan/tables", plan_markdown(planned), step)
        image = draw_heat_map(gathered_bytes(planned, task.tables))
        self._writer.add_image("plan/gathered_bytes_rank_x_table", image, step, dataformats="HWC")
        self._writer.add_scalar("plan/estimated_step_ms", planned.cost.step_ms, step)
        self._writer.add_scalar("plan/estimated_imbalance", planned.cost.imbalance, step)
        self._writer.flush()

    def show(self, record: dict[str, Any]) -> None:
        """See Observer."""
        kind, step = record["kind"], record["step"]
        if kind == "warning":
            self._writer.add_text("events/warning", record["message"], step)
            return
        group = "held_out" if kind == "evaluation" else "train"
        for name in METRICS:
            if record[name] is not None:
                self._writer.add_scalar(f"{group}/{name}", record[name], step)
        if kind == "window":
            self._writer.add_scalar("speed/qps", record["qps"], step)
            self._show_ranks(record, step)

    def _show_ranks(self, record: dict[str, Any], step: int) -> None:
        for index, column in enumerate(record["columns"]):
            values = [row[index] for row in record["ranks"]]
            if column in RANK_TAGS:
                self._show_lines(RANK_TAGS[column], values, step)
            if column.endswith("_ms") and column != "step_ms":
                self._writer.add_scalar(f"phase_ms/{column.removesuffix('_ms')}", max(values), step)
        imbalance = window_imbalance(record)
        if imbalance is not None:
            self._writer.add_scalar("balance/lookup_imbalance", imbalance, step)

    def _show_lines(self, tag: str, values: list[float], step: int) -> None:
        if len(values) <= MOST_RANK_LINES:
            lines = {f"rank_{rank:02d}": value for rank, value in enumerate(values)}
        else:
            lines = {"fastest": min(values), "mean": sum(values) / len(values), "slowest": max(values)}
        for name, value in lines.items():
            self._writer.add_scalar(f"{tag}/{name}", value, step)

    def close(self) -> None:
        """Write what is left and close the file."""
        self._writer.close()
