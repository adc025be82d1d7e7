"""Migrations on one rank, each beside an all-to-all of as many bytes; both timed alike."""

import ctypes
import gc
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dlrm.errors import DlrmError
from dlrm.job import TrainJob
from launcher.bench.steps import measure_canary
from planner.plan import ShardingPlan

if TYPE_CHECKING:
    from dlrm.place import Place
    from dlrm.rig import Rig

FLOAT_BYTES = 4
MS_PER_S = 1e3

Traffic = Sequence[Sequence[int]]
"""Bytes [W, W] that each rank sends to each."""


@dataclass(frozen=True)
class Leg:
    """One way between two plans.

    Attributes:
        plan: Where it leads.
        traffic: What travels.
    """

    plan: ShardingPlan
    traffic: Traffic


@dataclass(frozen=True)
class Timed:
    """One migration, alike on all ranks.

    Attributes:
        record: Of the migration, as a run's record has it.
        all_to_all_ms: Of the same bytes from the same ranks to the same, just before; the slowest rank's.
        canary_ms: Of a fixed product and gather before both, this rank's.
    """

    record: dict[str, Any]
    all_to_all_ms: float
    canary_ms: float


def time_migrations(place: "Place", job: TrainJob, legs: Sequence[Leg], num_repeats: int) -> list[list[Timed]]:
    """Go all legs in turn, so many times; [leg][repeat]. Collective.

    The job's own plan is where the last leg leads. Nothing is trained between two migrations: the first weights and an
    empty optimizer travel as any others.

    Raises:
        DlrmError: A migration was given up, for lack of memory say.
    """
    # The commands that only read their options need no torch.
    import torch

    from dlrm.rig import Rig

    assert legs[-1].plan == job.plan
    device = torch.device(place.device)
    rig = Rig(place, job, device)
    try:
        found: list[list[Timed]] = [[] for _ in legs]
        for _ in range(num_repeats):
            for timed, leg in zip(found, legs, strict=True):
                timed.append(_time_leg(rig, leg, job.resharding.chunk_bytes, device))
    finally:
        rig.close()
    # A model and its process groups hold each other; the next one needs the memory.
    del rig
    gc.collect()
    return found


def _time_leg(rig: "Rig", leg: Leg, chunk_bytes: int, device: Any) -> Timed:
    import torch.distributed as dist

    from dlrm.move import move

    release_freed_memory()
    canary_ms = measure_canary()
    all_to_all_ms = time_all_to_all(leg.traffic, chunk_bytes, device)
    dist.barrier()
    record = move(rig, {"plan": leg.plan.to_dict(), "move": 0, "reason": "bench migrate"}, step=0)
    if not record["is_committed"]:
        raise DlrmError(f"bench migrate: {record['message']}", "resharding")
    return Timed(record, all_to_all_ms, canary_ms)


def release_freed_memory() -> None:
    """Give freed memory of the host back to the system, where the C library can.

    Or a migration fills what the one before left behind, takes nothing new, and no peak is seen.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def time_all_to_all(traffic: Traffic, chunk_bytes: int, device: Any) -> float:
    """Milliseconds in which the slowest rank has exchanged this, round by round as a migration does. Collective.

    In each round a rank sends and receives at most half of `chunk_bytes`, the limit of a migration's, from memory that
    has been used before; all rounds are alike. Nothing is packed or unpacked.
    """
    import torch
    import torch.distributed as dist

    rank = dist.get_rank()
    sums = [sum(row) for row in traffic] + [sum(column) for column in zip(*traffic, strict=True)]
    num_rounds = math.ceil(max(sums) / (chunk_bytes // 2))
    if not num_rounds:
        return 0.0
    sent = [round(num_bytes / num_rounds / FLOAT_BYTES) for num_bytes in traffic[rank]]
    received = [round(row[rank] / num_rounds / FLOAT_BYTES) for row in traffic]
    outgoing, incoming = torch.ones(sum(sent), device=device), torch.zeros(sum(received), device=device)
    _synchronise(device)
    dist.barrier()
    began_s = time.perf_counter()
    for _ in range(num_rounds):
        dist.all_to_all_single(incoming, outgoing, received, sent)
    _synchronise(device)
    slowest_ms = torch.tensor(MS_PER_S * (time.perf_counter() - began_s), dtype=torch.float64)
    dist.all_reduce(slowest_ms, dist.ReduceOp.MAX)
    return float(slowest_ms)


def _synchronise(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
