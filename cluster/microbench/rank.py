"""What one rank measures of a profile, side by side with all others: dense layers, copies, lookups, collectives."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

from cluster.errors import ClusterError
from cluster.host import measure_memory
from cluster.microbench.collectives import draw_collectives, measure_collective
from cluster.microbench.dense import draw_chains, measure_copies, measure_dense
from cluster.microbench.groups import open_groups
from cluster.microbench.job import RankJob, RankMeasurements, Reporter
from cluster.microbench.lookups import measure_lookups
from cluster.microbench.recipes import LookupRecipe, draw_lookup_sets
from cluster.microbench.repeats import Limits
from cluster.worker import WorkerContext
from planner.profile import CollectiveMeasurement
from planner.topology import DeviceType

NUM_DENSE, NUM_COLLECTIVES = 48, 120
"""When so many are exact enough there is nothing left to learn: chains a device kind, collectives a shape."""

LOOKUPS_PER_S = 4
"""Sets that are drawn for a second of the whole time, for each device kind: about twice what a core can measure."""

DENSE_END, LOOKUPS_END = 0.15, 0.75
"""Shares of the time after which the next part begins; a part that ends early leaves its time to the later ones."""

LEAST_LOOKUPS, LEAST_DENSE, LEAST_COLLECTIVES = 4, 3, 8
"""What each rank measures even if there is no time."""

REPEATS_SHARE = 1 / 50
"""Share of the time that one set may take, and at most one second."""

MEMORY_SHARE = 0.25
MEMORY_BYTES_PER_S = {DeviceType.CPU: 2**22, DeviceType.CUDA: 2**33}
MOST_MEMORY_BYTES = {DeviceType.CPU: 2**30, DeviceType.CUDA: 2**33}
"""For the weights of a set: past these sizes a larger table is hardly slower, and host pages take long to get."""

T = TypeVar("T")


def measure_all(context: WorkerContext, job: RankJob) -> RankMeasurements:
    """Measures everything on this rank until there is nothing left to learn or the time is over.

    Raises:
        ClusterError: The device cannot be measured, and why (reason `profile`).
    """
    device, began_s = torch.device(context.device), time.monotonic()
    seconds = max(0.0, job.deadline_s - began_s)
    limits = Limits(seconds=min(1.0, seconds * REPEATS_SHARE))
    reporter = Reporter(context.outbox)
    with _named("memory"):
        free_bytes = measure_free_bytes(device, context.local_world_size)
    with _named("dense layers and copies"):
        chains = draw_chains(NUM_DENSE, job.seed, DeviceType(device.type))[job.place :: job.num_places]
        chosen = _until(began_s + DENSE_END * seconds, LEAST_DENSE, reporter.count("dense", chains))
        dense = [measure_dense(samples, sizes, device, limits) for samples, sizes in chosen]
        copies = measure_copies(device, Limits(seconds=limits.seconds / 10)) if job.place == 0 else []
    with _named(f"lookups with {job.optimizer}"):
        recipes = _draw_lookups(job, DeviceType(device.type), free_bytes, seconds)
        chosen_sets = _until(began_s + LOOKUPS_END * seconds, LEAST_LOOKUPS, reporter.count("lookups", recipes))
        lookups = [measure_lookups(recipe, device, limits) for recipe in chosen_sets]
    collectives = _measure_collectives(context, job, device, reporter)
    return RankMeasurements(free_bytes, tuple(dense), tuple(copies), tuple(lookups), tuple(collectives))


def measure_free_bytes(device: torch.device, local_world_size: int) -> int:
    """Gives the free memory of the GPU, or this rank's share of the node's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return measure_memory().available_bytes // local_world_size


def _draw_lookups(job: RankJob, kind: DeviceType, free_bytes: int, seconds: float) -> list[LookupRecipe]:
    """This rank's part of the random sets."""
    most_bytes = min(MOST_MEMORY_BYTES[kind], int(seconds * MEMORY_BYTES_PER_S[kind]))
    memory_bytes = min(most_bytes, int(free_bytes * MEMORY_SHARE))
    count = max(LEAST_LOOKUPS * job.num_places, int(seconds * LOOKUPS_PER_S))
    return draw_lookup_sets(count, job.seed, job.optimizer, memory_bytes, kind)[job.place :: job.num_places]


def _measure_collectives(
    context: WorkerContext,
    job: RankJob,
    device: torch.device,
    reporter: Reporter,
) -> list[CollectiveMeasurement]:
    """The collectives of all shapes in turn; the ranks agree before each whether there is still time."""
    groups = open_groups(job.nodes, context.rank, device)
    found = []
    recipes = [draw_collectives(NUM_COLLECTIVES, job.seed, group.size) if group else None for group in groups]
    for index in reporter.count("collectives", range(LEAST_COLLECTIVES + NUM_COLLECTIVES if groups else 0)):
        if index >= LEAST_COLLECTIVES and _is_any_late(job.deadline_s):
            break
        for group, listed in zip(groups, recipes, strict=True):
            if group is None or listed is None:
                continue
            measured = measure_collective(listed[index], group)
            found += [measured] if group.rank == 0 else []
    return found


def _is_any_late(deadline_s: float) -> bool:
    """Whether the time of any rank is over; all ranks get the same answer."""
    is_late = torch.tensor([float(time.monotonic() > deadline_s)])
    dist.all_reduce(is_late, dist.ReduceOp.MAX)
    return bool(is_late.item())


def _until(deadline_s: float, least: int, items: Iterable[T]) -> Iterator[T]:
    """The items as long as there is time, and at least `least` of them."""
    for index, item in enumerate(items):
        if index >= least and time.monotonic() > deadline_s:
            return
        yield item


@contextmanager
def _named(part: str) -> Iterator[None]:
    """Turns any failure inside into one that says which part it was."""
    try:
        yield
    except Exception as error:
        raise ClusterError(f"measuring {part}: {type(error).__name__}: {error}", reason="profile") from error
