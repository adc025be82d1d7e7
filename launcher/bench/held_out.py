"""Measures fused sets, each twice, and collectives that no profile holds, with all ranks of the cluster busy."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from cluster.actors import GroupOptions
from cluster.inventory import Inventory
from cluster.microbench.job import RankMeasurements, Reporter
from cluster.microbench.repeats import summarize
from cluster.session import open_session
from cluster.worker import WorkerContext
from cluster.worker_group import WorkerGroup
from launcher.bench.baselines import Progress
from launcher.preparation import find_devices
from launcher.profiling import take_fingerprint
from launcher.run_dir import locate_runs, write_beside
from launcher.schema import RunConfig
from planner.profile import DeviceProfile, Profile, Timing
from planner.profile_file import load_profile, render_profile
from planner.tables import OptimizerKind
from planner.topology import DeviceType, Topology

SEED_OFFSET = 1_000_003
"""Added to the benchmark's seed: small numbers are what users give `profile.seed`."""

NUM_PASSES = 2
"""Over all sets, one after the other: the two measurements of a set are minutes apart."""

COLLECTIVES_SHARE = 0.5
"""Collectives of each shape for a set."""

POLL_S = 1.0
UNMEASURED = Timing(0.0, 0.0, 0)


@dataclass(frozen=True)
class HeldOutJob:
    """What every rank is asked for.

    Attributes:
        num_sets: Fused sets of each device kind, shared out over its ranks.
        num_collectives: Of each group shape.
        seed: Of both.
        optimizer: Of the lookups.
        budget_s: Of a profile: with more time it holds larger tables, and so do these sets.
        nodes: The ranks of every node.
        places: By rank, its place among the ranks of its device kind, and their number.
    """

    num_sets: int
    num_collectives: int
    seed: int
    optimizer: OptimizerKind
    budget_s: float
    nodes: tuple[tuple[int, ...], ...]
    places: tuple[tuple[int, int], ...]


def measure_held_out(config: RunConfig, num_sets: int, seed: int, progress: Progress) -> tuple[Profile, Path]:
    """What was measured, in the form of a profile without dense layers and copies, and its file in `<run.dir>/bench`.

    Raises:
        ClusterError, WorkerFailure: As `shardwright profile`.
    """
    began_s = monotonic()
    with open_session(config.cluster.address):
        inventory, described = find_devices(config)
        topology = described.topology
        job = _job(config, topology, num_sets, seed)
        measured = _measure(config, inventory, job, progress)
        fingerprint = take_fingerprint(config, inventory, topology)
    profile = Profile(
        fingerprint=fingerprint,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=monotonic() - began_s,
        topology=topology,
        devices=_devices(topology, inventory, measured),
        collectives=tuple(each for rank in measured for each in rank.collectives),
    )
    path = locate_runs(config.run.dir) / "bench" / f"held_out-{num_sets}-{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_beside(path, render_profile(profile))
    return load_profile(path), path


def measure_rank(context: WorkerContext, job: HeldOutJob) -> RankMeasurements:
    """Runs on every rank."""
    import torch

    from cluster.microbench.collectives import BACKBONE_BYTES, SHARES, draw_collectives, measure_collective
    from cluster.microbench.groups import open_groups
    from cluster.microbench.lookups import measure_lookups
    from cluster.microbench.rank import MEMORY_BYTES_PER_S, MEMORY_SHARE, MOST_MEMORY_BYTES, measure_free_bytes
    from cluster.microbench.recipes import draw_lookup_sets

    device, reporter = torch.device(context.device), Reporter(context.outbox)
    kind, (place, num_places) = DeviceType(device.type), job.places[context.rank]
    free_bytes = measure_free_bytes(device, context.local_world_size)
    most_bytes = min(MOST_MEMORY_BYTES[kind], int(job.budget_s * MEMORY_BYTES_PER_S[kind]))
    memory_bytes = min(most_bytes, int(free_bytes * MEMORY_SHARE))
    recipes = draw_lookup_sets(job.num_sets, job.seed, job.optimizer, memory_bytes, kind)[place::num_places]
    lookups = [measure_lookups(recipe, device) for recipe in reporter.count("lookups", recipes * NUM_PASSES)]

    groups = [group for group in open_groups(job.nodes, context.rank, device) if group is not None]
    # The first ones of any seed are those that every profile begins with.
    num_known = len(BACKBONE_BYTES) * len(SHARES)
    drawn = [draw_collectives(job.num_collectives, job.seed, group.size)[num_known:] for group in groups]
    found = []
    for index in reporter.count("collectives", range(job.num_collectives)):
        for group, listed in zip(groups, drawn, strict=True):
            measured = measure_collective(listed[index], group)
            found += [measured] if group.rank == 0 else []
    return RankMeasurements(free_bytes, (), (), tuple(lookups), tuple(found))


def _job(config: RunConfig, topology: Topology, num_sets: int, seed: int) -> HeldOutJob:
    kinds = [device.kind for device in topology.devices]
    return HeldOutJob(
        num_sets=num_sets,
        num_collectives=max(1, round(num_sets * COLLECTIVES_SHARE)),
        seed=SEED_OFFSET + seed,
        optimizer=OptimizerKind(config.optimizer.sparse.kind),
        budget_s=config.profile.budget_s,
        nodes=tuple(topology.ranks_of(node) for node in topology.nodes),
        places=tuple((kinds[:rank].count(kind), kinds.count(kind)) for rank, kind in enumerate(kinds)),
    )


def _measure(
    config: RunConfig, inventory: Inventory, job: HeldOutJob, progress: Progress
) -> tuple[RankMeasurements, ...]:
    cluster = config.cluster
    options = GroupOptions(start_timeout_s=cluster.start_timeout_s, collective_timeout_s=cluster.collective_timeout_s)
    with WorkerGroup.start(inventory, options) as group:
        group.run(measure_rank, job)
        told: tuple[str, int] | None = None
        while not group.wait(POLL_S):
            (drained,) = group.poll(POLL_S, ranks=[0])
            for record in drained.records[-1:]:
                part, num_done, num_planned = (record[name] for name in ("part", "num_done", "num_planned"))
                if (part, 10 * num_done // num_planned) != told:
                    told = part, 10 * num_done // num_planned
                    progress(f"held-out {part}: {num_done} of {num_planned} on rank 0")
        return group.join()


def _devices(
    topology: Topology, inventory: Inventory, measured: Sequence[RankMeasurements]
) -> tuple[DeviceProfile, ...]:
    """The ranks of each kind as one device, pass after pass of each rank."""
    ranks_of: dict[str, list[int]] = {}
    for device in topology.devices:
        ranks_of.setdefault(device.kind, []).append(device.rank)
    return tuple(
        DeviceProfile(
            kind=kind,
            name=inventory.slots[ranks[0]].name,
            free_bytes=min(measured[rank].free_bytes for rank in ranks),
            lookup_canary=summarize([each.canary_ms for rank in ranks for each in measured[rank].lookups]),
            dense_canary=UNMEASURED,
            lookups=tuple(each for rank in ranks for each in measured[rank].lookups),
            dense=(),
            copies=(),
        )
        for kind, ranks in ranks_of.items()
    )
