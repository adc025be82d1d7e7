"""`shardwright bench cost-file`: our costs beside the baselines on a file of measured costs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from launcher.bench.baselines import Progress
from launcher.bench.comms_file import bench_comms
from launcher.bench.compute_file import bench_compute
from launcher.bench.cost_data import CostFileError, read_comms_costs, read_compute_costs
from launcher.bench.metrics import METRICS
from launcher.views.tables import make_table


def run_cost_file(
    costs: Path, tables: Path | None, is_comms: bool, num_seeds: int, progress: Progress
) -> tuple[dict[str, Any], list[Table | str]]:
    """The `--json` object and what people see.

    Args:
        costs: Lines of measured costs; `launcher.bench.cost_data` says in which form.
        tables: The tables that compute costs name.
        is_comms: The lines are all-to-alls.
        num_seeds: Runs to average over.
        progress: Is told how far it is.

    Raises:
        CostFileError: An option is missing or too much, or a file has another form.
        OSError: A file cannot be read.
    """
    if num_seeds < 1:
        raise CostFileError(f"--seeds is {num_seeds}, expected at least 1")
    if is_comms:
        if tables is not None:
            raise CostFileError("--tables is of no use to --comms, whose lines name no tables; leave one of them out")
        found = bench_comms(read_comms_costs(costs), num_seeds, progress)
        return found, [*(render_scores(phase, found[phase]) for phase in ("forward", "backward")), found["note"]]
    if tables is None:
        raise CostFileError("--tables is missing: compute costs name tables by number; add --tables CSV or --comms")
    scores = bench_compute(read_compute_costs(costs, tables), num_seeds, progress)
    return dict(scores), [render_scores(f"compute, {num_seeds} seeds", scores)]


def render_scores(title: str, scores: Mapping[str, Mapping[str, float]]) -> Table:
    """A row a model, each metric with its spread over seeds."""
    digits = {"rmse_ms": "{:.1f} ± {:.1f}", "mape": "{:.2%} ± {:.2%}", "spearman": "{:.4f} ± {:.4f}"}
    rows = [
        (name, *(digits[metric].format(found[metric], found[f"{metric}_std"]) for metric in METRICS))
        for name, found in scores.items()
    ]
    return make_table(title, ("model", "RMSE ms", "MAPE", "Spearman"), rows)
