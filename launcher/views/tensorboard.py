"""The one writer of a run's TensorBoard events."""

from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from launcher.preparation import Task
from launcher.views.heatmap import draw_heat_map
from launcher.views.plan import gathered_bytes, plan_markdown
from planner.search.registry import PlanResult

# Beyond this many ranks a chart shows fastest, mean and slowest instead of a line a rank.
MOST_RANK_LINES = 32
METRICS = ("loss", "ne", "auc", "calibration")


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
            mean = sum(values) / len(values)
            if len(values) <= MOST_RANK_LINES:
                for rank, value in enumerate(values):
                    self._writer.add_scalar(f"{column}/rank_{rank:02d}", value, step)
            else:
                for name, value in (("fastest", min(values)), ("mean", mean), ("slowest", max(values))):
                    self._writer.add_scalar(f"{column}/{name}", value, step)
            if column == "lookup_ms" and mean > 0:
                self._writer.add_scalar("balance/lookup_imbalance", max(values) / mean, step)

    def close(self) -> None:
        """Write what is left and close the file."""
        self._writer.close()
