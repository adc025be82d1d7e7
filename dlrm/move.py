"""Carries out the controller's command to move the tables, and says what came of it."""

import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from dlrm.reshard.migration import Migrated
from dlrm.reshard.vote import Fault
from dlrm.rig import Rig
from planner.plan import ShardingPlan
from planner.text import human_bytes

MS_PER_S = 1e3
# What is said of a migration as the most of any rank: times in ms, then bytes.
MOST = ("pause_ms", "transfer_ms", "announced_bytes", "extra_peak_bytes")
TOO_LATE = Fault(None, "the job was over before it could begin")


def move(rig: Rig, command: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Move to the plan of a command between two steps; gives the record of it, alike on all ranks. Collective.

    The pause runs from here, where nothing is in flight, to being ready for the next step.
    """
    began_s = time.perf_counter()
    migrated = rig.migrate(ShardingPlan.from_dict(command["plan"]))
    pause_ms = MS_PER_S * (time.perf_counter() - began_s)
    own = [pause_ms, migrated.transfer_ms, migrated.announced_bytes, migrated.extra_peak_bytes]
    most = torch.tensor(own, dtype=torch.float64)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return migration_record(command, step, migrated.fault, _figures(migrated, most.tolist()))


def decline(command: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The record of a command that came too late to be carried out."""
    return migration_record(command, step, TOO_LATE, {"moved_bytes": 0, "staging": None, **dict.fromkeys(MOST, 0)})


def migration_record(
    command: Mapping[str, Any], step: int, fault: Fault | None, figures: Mapping[str, Any]
) -> dict[str, Any]:
    """What came of a migration: `is_committed`, or a fault and the rank that had it first, and its figures."""
    if fault is None:
        message = f"{human_bytes(figures['moved_bytes'])} moved, training paused for {figures['pause_ms']:.0f} ms"
    else:
        where = "" if fault.rank is None else f" on rank {fault.rank}"
        message = f"not moved, the plan stays as it was: {fault.text}{where}"
    return {
        "kind": "migration",
        "step": step,
        "move": command["move"],
        "reason": command["reason"],
        "is_committed": fault is None,
        **figures,
        "fault": None if fault is None else fault.text,
        "fault_rank": None if fault is None else fault.rank,
        "message": message,
    }


def _figures(migrated: Migrated, most: list[float]) -> dict[str, Any]:
    figures: dict[str, Any] = dict(zip(MOST, most, strict=True))
    figures |= {name: int(value) for name, value in figures.items() if name.endswith("_bytes")}
    moved_bytes = migrated.moved_bytes if migrated.fault is None else 0
    return {"moved_bytes": moved_bytes, "staging": migrated.staging, **figures}
