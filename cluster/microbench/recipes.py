"""Which fused lookups to measure: random sets that cover what a job may ask of a kernel, within time and memory."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cluster.microbench.sampling import latin_hypercube, spread
from planner.lookups import state_bytes
from planner.tables import OptimizerKind
from planner.topology import DeviceType

MOST_SHARDS = 40
ROWS = (3.0, 5e6)
IDS_PER_BAG = (0.1, 100.0)
MOST_IDS = (1.0, IDS_PER_BAG[1])
"""Every set has its own upper end of `IDS_PER_BAG`, from this range: else few sets would have many samples."""

SKEWS = (0.0, 1.3)
SAMPLES = (128, 65_536)
WIDE_COLS = (1.0, 64.0)
"""Columns that are no power of two, in fours."""

POWERS = (4, 8, 16, 32, 64, 128, 256)
"""Columns that most tables have."""

SHARE_OF_POWERS = 0.7
SHARE_OF_ONE_WIDTH = 0.5
"""Sets whose shards all have the same columns, as the tables of a DLRM."""

SHARE_OF_ONE_ID = 0.25
"""Sets with exactly one id a bag, as Criteo has."""

SHARE_OF_SHARED = 0.1
MOST_FEATURES = 4
"""Shards that several features share, and by how many."""

WORK_MS = {DeviceType.CPU: (1.0, 300.0), DeviceType.CUDA: (20.0, 20_000.0)}
"""Range of `work_ms`. A GPU does a few hundred times as much at a time; below that it only waits for launches."""


@dataclass(frozen=True)
class ShardRecipe:
    """One shard to look up.

    Attributes:
        num_rows: Rows.
        num_cols: Columns, a multiple of 4.
        ids_per_sample: Mean over all bags of a sample together.
        num_features: Bags a sample.
        skew: Exponent of the Zipf law of the ids, 0 for uniform ones.
        is_ragged: Whether bags have Poisson lengths; otherwise they are as equal as the mean allows.
    """

    num_rows: int
    num_cols: int
    ids_per_sample: float
    num_features: int
    skew: float
    is_ragged: bool


@dataclass(frozen=True)
class LookupRecipe:
    """A fused set to measure.

    Attributes:
        samples: Samples of a batch.
        optimizer: Fused into the backward pass.
        shards: At least one.
        seed: Of its ids.
    """

    samples: int
    optimizer: OptimizerKind
    shards: tuple[ShardRecipe, ...]
    seed: int


def draw_lookup_sets(
    count: int,
    seed: int,
    optimizer: OptimizerKind,
    memory_bytes: int,
    device_type: DeviceType = DeviceType.CPU,
) -> list[LookupRecipe]:
    """Gives `count` random sets of 1 to 40 shards, two thirds of them of 1 to 12.

    Args:
        count: Number of sets.
        seed: Of the draw; the same arguments give the same sets.
        optimizer: Of all sets.
        memory_bytes: What the weights and optimizer state of one set may take; the largest shards lose rows to fit.
        device_type: A GPU is given larger batches.
    """
    rng = np.random.default_rng(seed)
    size, work, width, kind, most_ids = latin_hypercube(rng, count, 5).T
    num_shards = np.floor((MOST_SHARDS + 1) ** size).astype(int)
    shares = np.split(latin_hypercube(rng, int(num_shards.sum()), 7), np.cumsum(num_shards)[:-1])
    least, most = WORK_MS[device_type]
    recipes = []
    for index in range(count):
        ids = (1.0, 1.0) if kind[index] < SHARE_OF_ONE_ID else (IDS_PER_BAG[0], spread(most_ids[index], MOST_IDS))
        shards = _draw_shards(shares[index], width[index], ids)
        shards = _fit_memory(shards, optimizer, memory_bytes)
        samples = _find_samples(shards, least * (most / least) ** work[index])
        recipes.append(LookupRecipe(samples, optimizer, shards, seed=int(rng.integers(2**62))))
    return recipes


def work_ms(samples: float, shards: tuple[ShardRecipe, ...]) -> float:
    """Rough milliseconds of a forward and backward pass on one core: sizes a batch, and predicts nothing.

    Source: measured once with fbgemm-gpu-cpu 1.8 and row-wise Adagrad on an AMD EPYC core.
    """
    total_ns = 0.0
    for shard in shards:
        ids, bags = samples * shard.ids_per_sample, samples * shard.num_features
        distinct = min(ids, shard.num_rows)
        total_ns += ids * (25 + 0.35 * shard.num_cols) + distinct * (500 + shard.num_cols)
        total_ns += bags * (10 + 4 * shard.num_cols)
    return total_ns * 1e-6


def shard_bytes(shard: ShardRecipe, optimizer: OptimizerKind) -> float:
    """Bytes of a shard's fp32 weights and optimizer state."""
    return shard.num_rows * (4 * shard.num_cols + float(state_bytes(optimizer, shard.num_cols)))


def _draw_shards(
    shares: NDArray[np.float64], width: float, ids_per_bag: tuple[float, float]
) -> tuple[ShardRecipe, ...]:
    """The shards of one set from points [S, 7]; the first gives its columns to all where the set has one width."""
    columns = shares[:, 1:3] if width >= SHARE_OF_ONE_WIDTH else np.broadcast_to(shares[:1, 1:3], (len(shares), 2))
    return tuple(
        _draw_shard(share, _draw_cols(*column), ids_per_bag) for share, column in zip(shares, columns, strict=True)
    )


def _draw_shard(share: NDArray[np.float64], num_cols: int, ids_per_bag: tuple[float, float]) -> ShardRecipe:
    rows, _, _, ids, skew, shared, ragged = share
    num_features = 1 if shared >= SHARE_OF_SHARED else 2 + int(shared / SHARE_OF_SHARED * (MOST_FEATURES - 1))
    return ShardRecipe(
        num_rows=int(spread(rows, ROWS)),
        num_cols=num_cols,
        ids_per_sample=num_features * spread(ids, ids_per_bag),
        num_features=num_features,
        skew=float(SKEWS[0] + skew * (SKEWS[1] - SKEWS[0])),
        is_ragged=bool(ragged < 0.5) and ids_per_bag[0] < ids_per_bag[1],
    )


def _draw_cols(kind: float, position: float) -> int:
    if kind < SHARE_OF_POWERS:
        return POWERS[int(position * len(POWERS))]
    return 4 * round(spread(position, WIDE_COLS))


def _fit_memory(
    shards: tuple[ShardRecipe, ...], optimizer: OptimizerKind, memory_bytes: int
) -> tuple[ShardRecipe, ...]:
    """The shards, the largest ones cut to one common size if together they are larger than `memory_bytes`."""
    sizes = np.sort([shard_bytes(shard, optimizer) for shard in shards])
    kept = np.concatenate([[0.0], np.cumsum(sizes)[:-1]])
    # Cut to `limit`, the i smallest stay whole; the first i at which the limit is not above the next is the answer.
    limits = (memory_bytes - kept) / np.arange(len(sizes), 0, -1)
    over = np.flatnonzero(limits < sizes)
    if not len(over):
        return shards
    limit = float(limits[over[0]])
    return tuple(
        replace(shard, num_rows=max(1, int(shard.num_rows * min(1.0, limit / shard_bytes(shard, optimizer)))))
        for shard in shards
    )


def _find_samples(shards: tuple[ShardRecipe, ...], target_ms: float) -> int:
    """The batch that comes nearest to some work, by bisection on the logarithmic scale."""
    low, high = (float(bound) for bound in SAMPLES)
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if work_ms(middle, shards) < target_ms else (low, middle)
    return round(low)
