"""Saves and restores weights, optimizer state and the place in the data; a checkpoint is whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from dlrm.checkpoint_folder import PREFIX, Progress, read_progress, write_description
from dlrm.errors import CheckpointError
from dlrm.exchange import first_rank_where
from planner.plan import ShardingPlan


def save_checkpoint(
    folder: Path,
    model: DistributedModelParallel,
    optimizer: CombinedOptimizer,
    plan: ShardingPlan,
    progress: Progress,
) -> Path:
    """Write a checkpoint below `folder`; all ranks together. Returns its path; raises CheckpointError on every rank."""
    final = folder / f"{PREFIX}{progress.step:08d}"
    beside = folder / f".{final.name}.part"
    with _told(f"{final} cannot be written"):
        dcp.save(_state(model, optimizer), checkpoint_id=beside)
    fault = _commit(beside, final, plan, progress) if dist.get_rank() == 0 else None
    device = next(model.parameters()).device
    if first_rank_where(fault is not None, dist.get_rank(), dist.get_world_size(), device) is not None:
        raise CheckpointError(f"{final} cannot be written: {fault or 'rank 0 could not finish it'}")
    return final


def _commit(beside: Path, final: Path, plan: ShardingPlan, progress: Progress) -> OSError | None:
    """Describe the checkpoint and give it its name; what goes wrong is returned, since all ranks must hear of it."""
    try:
        write_description(beside, plan, progress)
        os.replace(beside, final)
    except OSError as error:
        return error
    return None


def load_checkpoint(checkpoint: Path, model: DistributedModelParallel, optimizer: CombinedOptimizer) -> Progress:
    """Put a checkpoint's values into a model that is sharded under its plan; all ranks together.

    Raises CheckpointError where the checkpoint is not that of this model, plan and number of ranks.
    """
    # Adam and Adagrad make their state at the first step; restoring needs it there.
    optimizer.init_state()
    state, optimizer_state = _state(model, optimizer), optimizer.state_dict()
    with _told(f"{checkpoint} cannot be restored"):
        dcp.load(state, checkpoint_id=checkpoint)
    model.load_state_dict(state["model"])
    optimizer_state["state"].update(state["optimizer"])
    optimizer.load_state_dict(optimizer_state)
    progress = read_progress(checkpoint)
    # The fused kernels count steps themselves: Adam's bias correction depends on it.
    optimizer.set_optimizer_step(progress.step)
    return progress


def _state(model: DistributedModelParallel, optimizer: CombinedOptimizer) -> dict[str, Any]:
    """What is kept: without empty optimizer states (SGD), which only one rank would write."""
    kept = {name: entry for name, entry in optimizer.state_dict()["state"].items() if entry}
    return {"model": model.state_dict(), "optimizer": kept}


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn torch's exception, which `except Exception` does not catch, into ours."""
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise CheckpointError(f"{what}: {cause} (rank {rank})") from error
