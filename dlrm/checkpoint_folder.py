"""The folder of a checkpoint: names, and what can be read without torch.

A checkpoint is a folder `step_NNNNNNNN` of torch.distributed.checkpoint files, with the plan it was saved
under and a `progress.json`. It is written under another name and renamed when every rank is done.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dlrm.config import DenseOptimizerConfig, ModelConfig, SparseOptimizerConfig, TrainConfig
from dlrm.data.config import DataConfig
from dlrm.errors import CheckpointError
from planner.plan import ShardingPlan

PREFIX = "step_"
# Keys below `data` that change neither which rows are trained nor their order.
FREE_DATA_KEYS = (
    "path",
    "eval_path",
    "prefetch_batches",
    "max_bad_rows",
    "criteo.vocabulary_path",
    "access.num_samples",
    "access.declared",
)
PLAN, PROGRESS = "plan.json", "progress.json"


@dataclass(frozen=True)
class Progress:
    """Where training stood: steps done, the data's position (`BatchStream.position`) and what it was trained with."""

    step: int
    position: dict[str, int]
    settings: dict[str, Any]


def describe_settings(
    model: ModelConfig,
    data: DataConfig,
    sparse: SparseOptimizerConfig,
    dense: DenseOptimizerConfig,
    train: TrainConfig,
    world_size: int,
) -> dict[str, Any]:
    """Every key that must stay as it is for a resumed run to equal one that never stopped, dotted, JSON-able.

    Learning rates, lengths, and where the files are may change.
    """
    kept = {f"model.{key}": value for key, value in asdict(model).items()}
    kept |= {f"data.{key}": value for key, value in _leaves(asdict(data)) if key not in FREE_DATA_KEYS}
    kept["optimizer.sparse.kind"], kept["optimizer.dense.kind"] = sparse.kind, dense.kind
    kept["train.batch_size"], kept["train.seed"] = train.batch_size, train.seed
    kept["cluster.num_workers"] = world_size
    return kept


def check_resume(checkpoint: Path, settings: dict[str, Any], steps: int | None) -> None:
    """Raise CheckpointError where `settings` are not those of the checkpoint, or no step is left of `steps`."""
    progress = read_progress(checkpoint)
    changed = [
        f"{key} was {progress.settings.get(key)!r}, now {settings.get(key)!r}"
        for key in sorted(progress.settings.keys() | settings.keys())
        if progress.settings.get(key) != settings.get(key)
    ]
    if changed:
        raise CheckpointError(f"{checkpoint} was trained with other settings: " + "; ".join(changed))
    if steps is not None and steps <= progress.step:
        raise CheckpointError(
            f"{checkpoint} stands at step {progress.step} and train.steps is {steps}: nothing is left to train; "
            "raise train.steps"
        )


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and key != "categorical":
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def find_checkpoint(folder: Path) -> Path:
    """The newest whole checkpoint of a run's folder (its `checkpoints`, or one checkpoint, will do too).

    Raises CheckpointError.
    """
    if (folder / PROGRESS).exists():
        return folder
    found = sorted(path.parent for path in folder.glob(f"**/{PREFIX}*/{PROGRESS}"))
    if not found:
        raise CheckpointError(f"there is no whole checkpoint in {folder}: the run has neither ended nor been stopped")
    return found[-1]


def read_plan(checkpoint: Path) -> ShardingPlan:
    """The plan that the checkpoint's ranks trained under; raises CheckpointError."""
    return ShardingPlan.from_dict(_read(checkpoint / PLAN))


def read_progress(checkpoint: Path) -> Progress:
    """Where the checkpoint stands; raises CheckpointError."""
    try:
        return Progress(**_read(checkpoint / PROGRESS))
    except TypeError as error:
        raise CheckpointError(f"{checkpoint / PROGRESS} is broken: {error}") from error


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is broken: {error}") from error


def write_description(checkpoint: Path, plan: ShardingPlan, progress: Progress) -> None:
    """Put plan and progress beside the tensors."""
    (checkpoint / PLAN).write_text(json.dumps(plan.to_dict()))
    (checkpoint / PROGRESS).write_text(json.dumps(vars(progress)))
