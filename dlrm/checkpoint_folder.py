"""The folder of a checkpoint: names, and what can be read without torch.

A checkpoint is a folder `step_NNNNNNNN` of torch.distributed.checkpoint files, with the plan it was saved
under and a `progress.json`. It is written under another name and renamed when every rank is done.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from dlrm.errors import CheckpointError
from planner.plan import ShardingPlan

PREFIX = "step_"
PLAN, PROGRESS = "plan.json", "progress.json"


@dataclass(frozen=True)
class Progress:
    """Where training stood: steps done, and the data's position (`BatchStream.position`)."""

    step: int
    position: dict[str, int]


def find_checkpoint(folder: Path) -> Path:
    """The newest whole checkpoint below a run's `checkpoints` folder; raises CheckpointError."""
    found = sorted(path for path in folder.glob(f"{PREFIX}*") if (path / PROGRESS).exists())
    if not found:
        raise CheckpointError(f"there is no whole checkpoint in {folder}: the run has not been stopped after a step")
    return found[-1]


def read_plan(checkpoint: Path) -> ShardingPlan:
    """The plan that the checkpoint's ranks trained under."""
    return ShardingPlan.from_dict(json.loads((checkpoint / PLAN).read_text()))


def read_progress(checkpoint: Path) -> Progress:
    """Where the checkpoint stands."""
    return Progress(**json.loads((checkpoint / PROGRESS).read_text()))


def write_description(checkpoint: Path, plan: ShardingPlan, progress: Progress) -> None:
    """Put plan and progress beside the tensors."""
    (checkpoint / PLAN).write_text(json.dumps(plan.to_dict()))
    (checkpoint / PROGRESS).write_text(json.dumps(vars(progress)))
