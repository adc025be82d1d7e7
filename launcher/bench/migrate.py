"""What a migration costs: pause, bytes, bandwidth and memory, by kind of transition and size, on real ranks.

The bandwidth of a migration is what its busiest rank sends and receives over the time from the first parcel to the
last, with packing, unpacking and the copies of what stays; that of an all-to-all is as many bytes over the time of the
exchange alone. The pause also holds checksums, the building of the new shards and all that is fastened to them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from cluster.session import open_session
from cluster.worker_group import WorkerGroup
from dlrm.config import ModelConfig, ReshardConfig
from dlrm.data.schema import DataSchema, FeatureSpec
from dlrm.job import TrainJob
from launcher.bench.migrate_plans import MIXED, PAIRS, Transition, busiest_rank_bytes
from launcher.bench.migrate_ranks import MS_PER_S, Leg, Timed, time_migrations
from launcher.controller import POLL_S
from launcher.hardware import Described
from launcher.preparation import find_devices
from launcher.schema import RunConfig
from launcher.views.tables import make_table
from planner.sharding import ShardingType
from planner.tables import OptimizerKind
from planner.text import human_bytes

MIB = 1 << 20
# What a pause may take at most: so much for what does not grow with the bytes, and so many all-to-alls of these.
FIXED_PAUSE_MS, MOST_ALL_TO_ALLS = 250.0, 2.0
# What is no table costs the same in every migration, and nearly nothing.
MODEL = ModelConfig(dense_arch=[16], over_arch=[16])
NUM_DENSE = 4
SHORT_NAMES = {
    ShardingType.TABLE_WISE.value: "TW",
    ShardingType.COLUMN_WISE.value: "CW",
    ShardingType.ROW_WISE.value: "RW",
    ShardingType.DATA_PARALLEL.value: "DP",
    MIXED: MIXED,
}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class MigrateBenchmark:
    """What is measured.

    Attributes:
        num_ranks: Ranks of the group.
        sizes_mib: MiB that travel in a migration, all ranks together; a way back from replicas moves nothing.
        num_repeats: Of every migration.
    """

    num_ranks: int
    sizes_mib: tuple[int, ...]
    num_repeats: int


def run_migrate(config: RunConfig, asked: MigrateBenchmark, progress: Progress) -> dict[str, Any]:
    """What `bench migrate --json` prints: `transitions`, with `describe_leg`'s keys, and what they were measured with.

    Args:
        config: Its cluster, optimizer of tables, `resharding.chunk_bytes` and `resharding.staging` count.
        asked: Sizes and repeats.
        progress: Told of every pair of plans.

    Raises:
        ClusterError: There are not so many devices.
        WorkerFailure: A migration was given up, for lack of memory say.
    """
    config = deepcopy(config)
    config.cluster.num_workers = asked.num_ranks
    transitions: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="migrate-"))
        stack.enter_context(open_session(config.cluster.address))
        inventory, described = find_devices(config)
        group = stack.enter_context(WorkerGroup.start(inventory))
        rounds = [(mib, kinds) for mib in asked.sizes_mib for kinds in PAIRS]
        for number, (mib, kinds) in enumerate(rounds, start=1):
            optimizer = OptimizerKind(config.optimizer.sparse.kind)
            there = Transition.build(kinds, asked.num_ranks, optimizer, mib * MIB)
            job = build_job(config, there, described, folder)
            found = _time_pair(group, job, there, asked.num_repeats)
            transitions += found
            progress(f"{number}/{len(rounds)}  {mib} MiB: {'; '.join(map(_describe, found))}")
    return {
        "transitions": transitions,
        "ranks": asked.num_ranks,
        "device": inventory.slots[0].type.value,
        "optimizer": config.optimizer.sparse.kind,
        "chunk_bytes": config.resharding.chunk_bytes,
        "repeats": asked.num_repeats,
    }


def build_job(config: RunConfig, transition: Transition, described: Described, folder: str) -> TrainJob:
    """The job whose tables move; its data is never opened."""
    features = tuple(FeatureSpec(table.name, table.num_embeddings) for table in transition.tables)
    dense = tuple(f"dense_{number}" for number in range(NUM_DENSE))
    model = ModelConfig(MODEL.arch, transition.tables[0].embedding_dim, MODEL.dense_arch, MODEL.over_arch)
    return TrainJob(
        model=model,
        data=config.data,
        sparse_optimizer=config.optimizer.sparse,
        dense_optimizer=config.optimizer.dense,
        train=config.train,
        schema=DataSchema(dense, features),
        tables=transition.tables,
        plan=transition.plans[0],
        topology=described.topology,
        checkpoint_folder=folder,
        telemetry=config.telemetry,
        resharding=ReshardConfig(config.resharding.chunk_bytes, config.resharding.staging),
    )


def _time_pair(group: WorkerGroup, job: TrainJob, there: Transition, num_repeats: int) -> list[dict[str, Any]]:
    """The way there and the way back; one line where both have the same name."""
    ways = [there, there.reverse]
    optimizer = OptimizerKind(job.sparse_optimizer.kind)
    legs = [Leg(way.plans[1], way.traffic(optimizer)) for way in ways]
    group.run(time_migrations, job, legs, num_repeats)
    while not group.wait(POLL_S):
        pass
    # Rank 0 speaks for all: records and times are the slowest rank's already.
    timed: list[list[Timed]] = group.join()[0]
    chunk_bytes = job.resharding.chunk_bytes
    if there.kinds == there.reverse.kinds:
        return [
            describe_leg(there, optimizer, chunk_bytes, [each for both in zip(*timed, strict=True) for each in both])
        ]
    return [describe_leg(way, optimizer, chunk_bytes, of_way) for way, of_way in zip(ways, timed, strict=True)]


def describe_leg(way: Transition, optimizer: OptimizerKind, chunk_bytes: int, timed: Sequence[Timed]) -> dict[str, Any]:
    """One line of `transitions`; times are medians over repeats, the slowest rank's, and spreads inter-quartile ranges.

    `bandwidth_ratio` is the migration's bandwidth over that of the all-to-all beside it, `pause_bandwidth_ratio` the
    same with the whole pause as the migration's time; both null where nothing travels. `limit_ms` is 250 ms and twice
    the all-to-all; `limit_peak_bytes` one copy of the new shards of the rank that gets most, and a chunk.
    """
    busiest_bytes = busiest_rank_bytes(way.traffic(optimizer))
    pause_ms, transfer_ms, extra_bytes, announced_bytes = (
        np.array([each.record[key] for each in timed], dtype=np.float64)
        for key in ("pause_ms", "transfer_ms", "extra_peak_bytes", "announced_bytes")
    )
    all_to_all_ms = np.array([each.all_to_all_ms for each in timed])
    canary_ms = np.array([each.canary_ms for each in timed])
    limit_ms = FIXED_PAUSE_MS + MOST_ALL_TO_ALLS * float(np.median(all_to_all_ms))
    limit_peak_bytes = way.most_new_bytes(optimizer) + chunk_bytes
    ratios, pause_ratios = all_to_all_ms / transfer_ms, all_to_all_ms / pause_ms
    return {
        "from": str(way.kinds[0]),
        "to": str(way.kinds[1]),
        "moved_bytes": timed[0].record["moved_bytes"],
        "busiest_rank_bytes": busiest_bytes,
        "staging": timed[0].record["staging"],
        "pause_ms": float(np.median(pause_ms)),
        "pause_spread_ms": _quartile_range(pause_ms),
        "first_pause_ms": float(pause_ms[0]),
        "limit_ms": limit_ms,
        "is_within_limit": bool(np.median(pause_ms) <= limit_ms),
        "transfer_ms": float(np.median(transfer_ms)),
        "bytes_per_s": _bytes_per_s(busiest_bytes, transfer_ms),
        "all_to_all_ms": float(np.median(all_to_all_ms)),
        "all_to_all_bytes_per_s": _bytes_per_s(busiest_bytes, all_to_all_ms),
        "bandwidth_ratio": float(np.median(ratios)) if busiest_bytes else None,
        "bandwidth_ratio_spread": _quartile_range(ratios) if busiest_bytes else None,
        "pause_bandwidth_ratio": float(np.median(pause_ratios)) if busiest_bytes else None,
        "extra_peak_bytes": int(extra_bytes.max()),
        "announced_bytes": int(announced_bytes.max()),
        "limit_peak_bytes": limit_peak_bytes,
        "is_within_peak": bool(extra_bytes.max() <= limit_peak_bytes),
        "canary_ms": float(np.median(canary_ms)),
        "canary_spread": _quartile_range(canary_ms) / float(np.median(canary_ms)),
        "repeats": len(timed),
    }


def render_migrate(found: dict[str, Any]) -> Iterator[Table | str]:
    """The object that `run_migrate` gives, for people."""
    title = (
        f"{found['ranks']} {found['device']} ranks, {found['optimizer']}, chunks of "
        f"{human_bytes(found['chunk_bytes'])}; medians of {found['repeats']}"
    )
    columns = ("transition", "MiB", "pause ms", "limit", "transfer", "all-to-all", "ratio", "peak MiB", "limit")
    yield make_table(title, columns, map(_row, found["transitions"]))
    late = [each for each in found["transitions"] if not each["is_within_limit"]]
    large = [each for each in found["transitions"] if not each["is_within_peak"]]
    yield (
        "MiB that travelled, the slowest rank's milliseconds, and the most memory a rank needed beside its old shards; "
        f"ratio: bandwidth over that of the all-to-all. Above the limit: {len(late)} pauses, {len(large)} peaks."
    )


def _row(each: dict[str, Any]) -> tuple[str, ...]:
    ratio = each["bandwidth_ratio"]
    return (
        _name(each),
        f"{each['moved_bytes'] / MIB:.1f}",
        f"{each['pause_ms']:.0f}",
        f"{each['limit_ms']:.0f}",
        f"{each['transfer_ms']:.0f}",
        f"{each['all_to_all_ms']:.0f}",
        "-" if ratio is None else f"{ratio:.2f}",
        f"{each['extra_peak_bytes'] / MIB:.1f}",
        f"{each['limit_peak_bytes'] / MIB:.1f}",
    )


def _name(each: dict[str, Any]) -> str:
    return f"{SHORT_NAMES[each['from']]} to {SHORT_NAMES[each['to']]}"


def _describe(each: dict[str, Any]) -> str:
    ratio = each["bandwidth_ratio"]
    speed = "" if ratio is None else f", {ratio:.2f} of an all-to-all"
    return f"{_name(each)} {each['pause_ms']:.0f} ms{speed}"


def _bytes_per_s(num_bytes: int, times_ms: NDArray[np.float64]) -> float | None:
    return MS_PER_S * num_bytes / float(np.median(times_ms)) if num_bytes else None


def _quartile_range(values: NDArray[np.float64]) -> float:
    low, high = np.percentile(values, [25, 75])
    return float(high - low)
