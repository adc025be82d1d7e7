"""Measures a cluster: every kind of device and link of a job, with all its ranks busy at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cluster.actors import GroupOptions
from cluster.errors import ClusterError, WorkerFailure
from cluster.inventory import Inventory
from cluster.microbench.job import RankJob, RankMeasurements
from cluster.microbench.repeats import summarize
from cluster.worker import WorkerContext
from cluster.worker_group import WorkerGroup
from planner.profile import DeviceProfile, Profile
from planner.tables import OptimizerKind
from planner.topology import Topology

POLL_S = 0.5
LEAST_SECONDS = 2.0
"""For the measuring itself where the start has used up the budget; said by the profile's own `seconds`."""

STOP_S = 4.0
"""Kept of the budget for the last measurement to end, the workers to go and Ray to stop."""


@dataclass(frozen=True)
class ProfileOptions:
    """What to measure and for how long.

    Attributes:
        optimizer: Fused into the lookups.
        budget_s: Time for everything, counted from `began_s`.
        began_s: On this process's monotonic clock.
        seed: Of what is measured; another one draws other sets, chains and messages.
        group: Time limits of the workers.
    """

    optimizer: OptimizerKind
    budget_s: float
    began_s: float
    seed: int
    group: GroupOptions


Progress = Callable[[str, int, int], None]
"""Called with a part's name, how many measurements it has, and how many would leave nothing to learn."""


def profile_cluster(
    topology: Topology,
    inventory: Inventory,
    fingerprint: dict[str, str],
    options: ProfileOptions,
    progress: Progress,
) -> Profile:
    """Measures all devices and links of a job on workers of its own. Needs an open session.

    Args:
        topology: The devices in rank order; its names of device kinds are those of the profile.
        inventory: The same devices as Ray knows them.
        fingerprint: What the profile is to be valid for.
        options: What to measure and for how long.
        progress: Told now and then how far rank 0 is.

    Raises:
        ClusterError: A device cannot be measured: which and why (reason `profile`), or what `WorkerGroup.start` raises.
    """
    with WorkerGroup.start(inventory, options.group) as group:
        left_s = options.budget_s - STOP_S - (time.monotonic() - options.began_s)
        kinds = [device.kind for device in topology.devices]
        places = tuple((kinds[:rank].count(kind), kinds.count(kind)) for rank, kind in enumerate(kinds))
        nodes = tuple(topology.ranks_of(node) for node in topology.nodes)
        group.run(measure_rank, options.optimizer, options.seed, nodes, places, max(LEAST_SECONDS, left_s))
        while not group.wait(POLL_S):
            _relay(group, progress)
        try:
            measured = group.join()
        except WorkerFailure as failure:
            raise _cannot_measure(topology, inventory, failure) from failure
    return Profile(
        fingerprint=fingerprint,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - options.began_s,
        topology=topology,
        devices=tuple(
            _merge(kind, inventory, [rank for rank, each in enumerate(kinds) if each == kind], measured)
            for kind in dict.fromkeys(kinds)
        ),
        collectives=tuple(each for rank in measured for each in rank.collectives),
    )


def measure_rank(
    context: WorkerContext,
    optimizer: OptimizerKind,
    seed: int,
    nodes: tuple[tuple[int, ...], ...],
    places: tuple[tuple[int, int], ...],
    seconds: float,
) -> RankMeasurements:
    """Runs on every rank; `places` are its place among the ranks of its device kind, and their number."""
    deadline_s = time.monotonic() + seconds  # before FBGEMM is imported, which takes seconds
    try:
        from cluster.microbench.rank import measure_all
    except (ImportError, OSError) as error:
        raise ClusterError(f"importing the kernels: {error}", reason="profile") from error

    place, num_places = places[context.rank]
    return measure_all(context, RankJob(optimizer, nodes, place, num_places, deadline_s, seed))


def _relay(group: WorkerGroup, progress: Progress) -> None:
    """Tells the newest of what rank 0 has reported."""
    (drained,) = group.poll(POLL_S, ranks=[0])
    if drained.records:
        newest = drained.records[-1]
        progress(newest["part"], newest["num_done"], newest["num_planned"])


def _merge(
    kind: str, inventory: Inventory, ranks: Sequence[int], measured: Sequence[RankMeasurements]
) -> DeviceProfile:
    """What the ranks of one kind measured, as one."""
    parts = [measured[rank] for rank in ranks]
    lookups = tuple(each for part in parts for each in part.lookups)
    dense = tuple(each for part in parts for each in part.dense)
    return DeviceProfile(
        kind=kind,
        name=inventory.slots[ranks[0]].name,
        free_bytes=min(part.free_bytes for part in parts),
        lookup_canary=summarize([each.canary_ms for each in lookups]),
        dense_canary=summarize([each.canary_ms for each in dense]),
        lookups=lookups,
        dense=dense,
        copies=tuple(each for part in parts for each in part.copies),
    )


def _cannot_measure(topology: Topology, inventory: Inventory, failure: WorkerFailure) -> ClusterError:
    """The error of a rank that failed, by its kind of device."""
    rank = failure.rank
    kind, name = topology.devices[rank].kind, inventory.slots[rank].name
    why = failure.error_message if failure.error_reason == "profile" else str(failure)
    return ClusterError(
        f"The device kind {kind} ({name}) cannot be measured, seen on rank {rank} of node {failure.host} "
        f"({failure.node_id[:8]}): {why}\nLog of the rank: {failure.log_path}. Mend it there, or plan without "
        "measurements: profile.enabled=false.",
        reason="profile",
    )
