"""Times the collectives of a training step over groups of ranks, with uneven bytes and late starts."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from cluster.microbench.repeats import Limits, median_half_width, summarize
from cluster.microbench.sampling import latin_hypercube, spread
from planner.profile import CollectiveMeasurement, Timing

SHARES = {"all_to_all": 0.55, "reduce_scatter": 0.15, "all_gather": 0.15, "all_reduce": 0.15}
"""How often each is drawn: a step has an all-to-all for every sharding type and direction."""

BYTES = (2.0**10, 2.0**26)
"""Of the largest rank's input."""

SHARE_OF_UNEVEN = 0.6
"""All-to-alls in which ranks send unequal amounts: under a plan they own unequal numbers of columns."""

LEAST_PART = 0.1
"""The smallest input over the largest where they are unequal."""

BACKBONE_BYTES = (2**12, 2**22)
"""Every collective is measured at these sizes before anything is left to chance."""

SHARE_OF_SKEWED = 0.3
SKEW_MS = (0.2, 20.0)
FLOAT_BYTES = 4
CANARY_BYTES = 16 * 2**10
CHUNK = 6
"""Repeats between two looks at the spread; the fewest from which a median's confidence is known."""

LIMITS = Limits(num_warmups=2, max_repeats=30, seconds=1.0)
CANARY_LIMITS = Limits(num_warmups=1, max_repeats=CHUNK, seconds=0.0)


@dataclass(frozen=True)
class CollectiveRecipe:
    """A collective to measure.

    Attributes:
        collective: One of `planner.profile.COLLECTIVES`.
        sent_bytes: [W] of each rank's input, a multiple of 4 W.
        skew_ms: [W] by how much each rank starts later.
    """

    collective: str
    sent_bytes: tuple[int, ...]
    skew_ms: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Group:
    """A group of ranks as one of them sees it.

    Attributes:
        handle: The process group.
        link: The slowest link class in it.
        device: Of this rank.
    """

    handle: dist.ProcessGroup
    link: str
    device: torch.device

    @property
    def rank(self) -> int:
        """This rank's place in the group."""
        return self.handle.rank()

    @property
    def size(self) -> int:
        """Ranks of the group."""
        return self.handle.size()

    def gather(self, values: Sequence[float]) -> NDArray[np.float64]:
        """Equally many figures of every rank, [W, N]."""
        own = torch.tensor(values, dtype=torch.float64)
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own, group=self.handle)
        return torch.stack(found).numpy()


def draw_collectives(count: int, seed: int, world_size: int) -> list[CollectiveRecipe]:
    """Gives every collective at `BACKBONE_BYTES`, then `count` random ones, for a group of `world_size` ranks.

    The same arguments give the same list, so all ranks of a group have the same.
    """
    rng = np.random.default_rng(seed)
    unit = FLOAT_BYTES * world_size
    recipes = [
        CollectiveRecipe(name, (max(unit, num_bytes // unit * unit),) * world_size, (0.0,) * world_size)
        for num_bytes in BACKBONE_BYTES
        for name in SHARES
    ]
    names, ends = list(SHARES), np.cumsum(list(SHARES.values()))[:-1]
    for kind, size, uneven, skewed, skew in latin_hypercube(rng, count, 5):
        name = names[int(np.searchsorted(ends, kind, side="right"))]
        parts = np.ones(world_size)
        if name == "all_to_all" and uneven < SHARE_OF_UNEVEN:
            parts = rng.permutation(np.append(1.0, rng.uniform(LEAST_PART, 1.0, world_size - 1)))
        sent = tuple(unit * max(1, round(spread(size, BYTES) * part / unit)) for part in parts)
        late = np.zeros(world_size)
        if skewed < SHARE_OF_SKEWED:
            late = spread(skew, SKEW_MS) * rng.permutation(np.append([0.0, 1.0], rng.random(world_size))[:world_size])
        recipes.append(CollectiveRecipe(name, sent, tuple(late.tolist())))
    return recipes


def measure_collective(recipe: CollectiveRecipe, group: Group, limits: Limits = LIMITS) -> CollectiveMeasurement:
    """Times one collective, with the canary before and after it; every rank of the group must call it.

    All ranks get the same result.
    """
    before_ms = _measure_canary(group)
    durations_ms, slowest = _repeat(recipe, group, limits)
    canary_ms = (before_ms + _measure_canary(group)) / 2
    return CollectiveMeasurement(
        recipe.collective, group.link, recipe.sent_bytes, recipe.skew_ms, durations_ms, slowest, canary_ms
    )


def _measure_canary(group: Group) -> float:
    """Milliseconds of the group's fixed all-to-all now."""
    unit = FLOAT_BYTES * group.size
    recipe = CollectiveRecipe("all_to_all", (max(unit, CANARY_BYTES // unit * unit),) * group.size, (0.0,) * group.size)
    return _repeat(recipe, group, CANARY_LIMITS)[1].median_ms


def _repeat(recipe: CollectiveRecipe, group: Group, limits: Limits) -> tuple[tuple[float, ...], Timing]:
    """Median duration of every rank, and the times from the last start to the last end.

    Ranks look at all times together after every chunk, and so stop together.
    """
    call = build_call(recipe, group)
    for _ in range(limits.num_warmups):
        call()
    rows: list[NDArray[np.float64]] = []
    deadline_s = time.monotonic() + limits.seconds
    while True:
        spans = [_time_once(call, recipe, group) for _ in range(CHUNK)]
        is_late = time.monotonic() > deadline_s
        found = group.gather([*(each for span in spans for each in span), float(is_late)])
        rows += list(found[:, :-1].reshape(group.size, CHUNK, 2).transpose(1, 0, 2))
        starts, ends = np.array(rows).transpose(2, 0, 1)
        slowest_ms = ((ends.max(axis=1) - starts.max(axis=1)) * 1e3).tolist()
        is_exact = median_half_width(slowest_ms) <= limits.confidence
        if is_exact or len(rows) >= limits.max_repeats or found[:, -1].any():
            return tuple(np.median((ends - starts) * 1e3, axis=0).tolist()), summarize(slowest_ms)


def _time_once(call: Callable[[], object], recipe: CollectiveRecipe, group: Group) -> tuple[float, float]:
    """Seconds at which this rank started and ended.

    Within a node all ranks read the same clock. Across nodes each counts from the end of a barrier, which adds the
    barrier's own spread.
    """
    dist.all_reduce(torch.zeros(1), group=group.handle)  # a barrier of the hosts, on GPUs too
    origin_s = time.monotonic() if group.link == "inter_node" else 0.0
    start_s = time.monotonic() + recipe.skew_ms[group.rank] * 1e-3
    while time.monotonic() < start_s:  # a late rank is one that still computes
        pass
    start_s = time.monotonic()
    call()
    if group.device.type == "cuda":
        torch.cuda.synchronize()
    return start_s - origin_s, time.monotonic() - origin_s


def build_call(recipe: CollectiveRecipe, group: Group) -> Callable[[], object]:
    """The collective on fresh tensors, by the calls that TorchRec and DistributedDataParallel make.

    Source: TorchRec 1.8, `distributed.comm_ops`: pooled embeddings go by all_to_all_single with unequal output splits,
    row-wise ones by reduce_scatter_tensor and back by all_gather_into_tensor.
    """
    counts = [num_bytes // FLOAT_BYTES for num_bytes in recipe.sent_bytes]
    sent = torch.zeros(counts[group.rank], device=group.device)
    handle, size = group.handle, group.size
    if recipe.collective == "all_to_all":
        outputs = [count // size for count in counts]
        received = torch.empty(sum(outputs), device=group.device)
        return lambda: dist.all_to_all_single(received, sent, outputs, [len(sent) // size] * size, group=handle)
    if recipe.collective == "reduce_scatter":
        part = torch.empty(len(sent) // size, device=group.device)
        return lambda: dist.reduce_scatter_tensor(part, sent, group=handle)
    if recipe.collective == "all_gather":
        whole = torch.empty(len(sent) * size, device=group.device)
        return lambda: dist.all_gather_into_tensor(whole, sent, group=handle)
    assert recipe.collective == "all_reduce", recipe.collective
    return lambda: dist.all_reduce(sent, group=handle)
