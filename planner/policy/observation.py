"""What the policy sees of a state: scale-free figures, with the logarithms of what scale takes away.

Times are over the step that would be if everything lay evenly (`Tasks.level_ms`), bytes over capacities. What decides
between candidates is over an average table's share of that as well (`by_table`), since that is what they differ by.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planner.cost.estimator import LOOKUP_PHASES, PHASES
from planner.cost.loads import NUM_TRAFFIC, Load
from planner.policy.env import Candidates, Episodes
from planner.policy.even_step import EXCHANGES
from planner.sharding import TYPE_ORDER

PAIR_FEATURES = (
    "lookup_after",
    "lookup_above_slowest",
    "lookup_added",
    "transfer_after",
    "transfer_above_slowest",
    "transfer_added",
    "own_above_busiest",
    "own_above_level",
    "own_above_least",
    "level_above_least",
    "level_above_expected",
    "own_by_table",
    "level_by_table",
    "order",
    "is_greedy",
    "bytes_over_free",
)
"""Of an option's shard on a rank: what it would lead to there, phase by phase, and how that compares with others."""

OPTION_FEATURES = (
    "level_above_best",
    "key_by_table",
    "level_above_now",
    "even_added",
    "level_above_even",
    "is_best_key",
    "log_shards",
    "share_of_ranks",
    "bytes_over_free",
    "bytes_over_slack",
    "room",
    "is_in_use",
    *(f"is_{each}" for each in TYPE_ORDER),
)
"""Of an option: the step it leads to when drawn greedily, the work it adds, what it takes."""

DEVICE_FEATURES = (
    "lookup",
    "transfer",
    "own_below_busiest",
    "free_over_capacity",
    "free_over_mean",
    "slowness",
    "node_lookup",
    "node_transfer",
    "node_share",
)
"""Of a rank as it stands."""

GLOBAL_FEATURES = (
    "log_ranks",
    "log_units",
    "progress",
    "log_nodes",
    "log_level_ms",
    "level_now",
    "transfer_share",
    "bytes_pressure",
    "imbalance",
    "next_own",
    "rest_own",
    "slack",
    "log_even_price",
)
"""Of the whole state: size of the task, how far it is, how tight."""

COST_COLUMNS = {
    "pair": PAIR_FEATURES[: PAIR_FEATURES.index("bytes_over_free")],
    "option": (
        "level_above_best",
        "level_by_table",
        "level_above_now",
        "even_added",
        "level_above_even",
        "is_best_key",
    ),
    "device": ("lookup", "transfer", "own_below_busiest", "slowness", "node_lookup", "node_transfer"),
}
"""Columns that the cost model fills: what an ablation without cost features leaves out."""

LIMIT = 6.0
"""Features are cut off here, so that a task of another order of magnitude does not drive the network astray."""

_LOOKUPS = [PHASES.index(name) for name in LOOKUP_PHASES]
_TRANSFERS = [PHASES.index(name) for name in EXCHANGES]
_TYPE_COLUMNS = slice(Load.FIRST_TYPE, NUM_TRAFFIC)


@dataclass(frozen=True, eq=False)
class Observation:
    """A state as tensors; leading dimensions [...] are [B] in a step, [B, T] in an update.

    Attributes:
        pair: [..., O, W, len(PAIR_FEATURES)].
        option: [..., O, len(OPTION_FEATURES)].
        device: [..., W, len(DEVICE_FEATURES)].
        glob: [..., len(GLOBAL_FEATURES)].
        table: [..., len(TABLE_FEATURES)], of the unit to place.
        is_legal: bool [..., O].
        may_draw: bool [..., O, W].
        num_draws: int64 [..., O].
    """

    pair: Tensor
    option: Tensor
    device: Tensor
    glob: Tensor
    table: Tensor
    is_legal: Tensor
    may_draw: Tensor
    num_draws: Tensor


def observe(episodes: Episodes, found: Candidates) -> Observation:
    """What the policy sees of episodes with these candidates."""
    tasks, task = episodes.tasks, episodes.task
    level_ms = tasks.level_ms[task]
    return Observation(
        pair=_tensor(_pair(episodes, found, level_ms[:, None, None])),
        option=_tensor(_option(episodes, found, level_ms[:, None])),
        device=_tensor(_device(episodes, level_ms[:, None])),
        glob=_tensor(_global(episodes, found, level_ms)),
        table=torch.from_numpy(tasks.tables[task, episodes.step]),
        is_legal=torch.from_numpy(found.is_legal),
        may_draw=torch.from_numpy(found.may_draw),
        num_draws=torch.from_numpy(found.options.num_draws),
    )


def _pair(episodes: Episodes, found: Candidates, level_ms: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """`PAIR_FEATURES`, each [B, O, W]."""
    now_ms, after_ms = episodes.phases_ms[:, None], found.phases_ms
    lookup, transfer, own = _parts(after_ms)
    lookup_now, transfer_now, own_now = _parts(now_ms)
    levels, table_ms = found.rank_levels_ms, level_ms * episodes.tasks.table_share
    lowest_own, lowest_level = (_lowest(values, found.may_draw) for values in (own, levels))
    order = np.argsort(found.greedy_draws, axis=-1) / own.shape[-1]
    num_bytes = found.options.num_bytes[..., 0, None]
    columns = {
        "lookup_after": lookup / level_ms,
        "lookup_above_slowest": (lookup - _highest(lookup_now)) / level_ms,
        "lookup_added": (lookup - lookup_now) / level_ms,
        "transfer_after": transfer / level_ms,
        "transfer_above_slowest": (transfer - _highest(transfer_now)) / level_ms,
        "transfer_added": (transfer - transfer_now) / level_ms,
        "own_above_busiest": (own - _highest(own_now)) / level_ms,
        "own_above_level": (own - found.even_ms.sum(axis=-1)[..., None]) / level_ms,
        "own_above_least": (own - lowest_own) / level_ms,
        "level_above_least": (levels - lowest_level) / level_ms,
        "level_above_expected": (levels - found.expected_ms[:, None, None]) / level_ms,
        "own_by_table": (own - lowest_own) / table_ms,
        "level_by_table": (levels - lowest_level) / table_ms,
        "order": order,
        "is_greedy": found.greedy.astype(np.float64),
        "bytes_over_free": num_bytes / np.maximum(episodes.free_bytes, 1)[:, None],
    }
    return [columns[name] for name in PAIR_FEATURES]


def _option(episodes: Episodes, found: Candidates, level_ms: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """`OPTION_FEATURES`, each [B, O]."""
    options, levels = found.options, found.levels_ms
    best, best_key = _lowest(levels, found.is_legal), _lowest(found.keys_ms, found.is_legal)
    even = found.even_ms.sum(axis=-1)
    cheapest = even[np.arange(len(even)), episodes.tasks.cheapest[episodes.task, episodes.step]][:, None]
    free = np.maximum(episodes.free_bytes.sum(axis=-1), 1)[:, None]
    slack = free - episodes.tasks.bytes_after[episodes.task, episodes.step][:, None]
    counts = episodes.loads[..., _TYPE_COLUMNS].sum(axis=1)
    columns = {
        "level_above_best": (levels - best) / level_ms,
        "key_by_table": (found.keys_ms - best_key) / (level_ms * episodes.tasks.table_share),
        "level_above_now": (levels - found.expected_ms[:, None]) / level_ms,
        "even_added": (even - cheapest) / level_ms,
        "level_above_even": (levels - even) / level_ms,
        "is_best_key": (found.keys_ms <= best_key).astype(np.float64),
        "log_shards": np.log(options.num_shards) / 3,
        "share_of_ranks": options.num_shards / episodes.tasks.world_size,
        "bytes_over_free": options.total_bytes / free,
        "bytes_over_slack": options.total_bytes / np.maximum(slack, 1),
        "room": found.may_draw.mean(axis=-1),
        "is_in_use": np.take_along_axis(counts, np.maximum(options.type_code, 0), axis=1) > 0,
    }
    columns |= {f"is_{each}": options.type_code == code for code, each in enumerate(TYPE_ORDER)}
    return [columns[name] for name in OPTION_FEATURES]


def _device(episodes: Episodes, level_ms: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """`DEVICE_FEATURES`, each [B, W]."""
    tasks, devices = episodes.tasks, episodes.problem.devices
    capacity = np.maximum(tasks.capacity_bytes[episodes.task], 1)
    lookup, transfer, own = _parts(episodes.phases_ms)
    columns = {
        "lookup": lookup / level_ms,
        "transfer": transfer / level_ms,
        "own_below_busiest": (_highest(own) - own) / level_ms,
        "free_over_capacity": episodes.free_bytes / capacity,
        "free_over_mean": episodes.free_bytes / np.maximum(episodes.free_bytes.mean(axis=-1, keepdims=True), 1),
        "slowness": np.broadcast_to(tasks.slowness, own.shape),
        "node_lookup": devices.node_sums(lookup) / devices.node_size / level_ms,
        "node_transfer": devices.node_sums(transfer) / devices.node_size / level_ms,
        "node_share": np.broadcast_to(devices.node_size / tasks.world_size, own.shape),
    }
    return [columns[name] for name in DEVICE_FEATURES]


def _global(episodes: Episodes, found: Candidates, level_ms: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """`GLOBAL_FEATURES`, each [B]."""
    tasks, task, step = episodes.tasks, episodes.task, episodes.step
    even = found.even_ms[np.arange(len(task)), tasks.cheapest[task, step]]
    own = episodes.phases_ms.sum(axis=-2)
    free = np.maximum(episodes.free_bytes.sum(axis=-1), 1)
    later = tasks.own_ms[task, step + 1 :]
    ones = np.ones(len(task))
    columns = {
        "log_ranks": ones * np.log(tasks.world_size) / 5,
        "log_units": ones * np.log(tasks.num_units) / 5,
        "progress": ones * step / tasks.num_units,
        "log_nodes": ones * np.log(len(episodes.problem.topology.nodes)) / 3,
        "log_level_ms": np.log(np.maximum(level_ms, 1e-6)) / 5,
        "level_now": (found.expected_ms - even.sum(axis=-1)) / level_ms,
        "transfer_share": even[:, _TRANSFERS].sum(axis=-1) / np.maximum(even.sum(axis=-1), 1e-9),
        "bytes_pressure": tasks.bytes_after[task, step] / free,
        "imbalance": (own.max(axis=-1) - own.mean(axis=-1)) / level_ms,
        "next_own": later[:, :1].sum(axis=-1) / level_ms,
        "rest_own": later.sum(axis=-1) / tasks.world_size / level_ms,
        "slack": episodes.temper.slack * 5,
        "log_even_price": np.log(episodes.temper.even_price),
    }
    return [columns[name] for name in GLOBAL_FEATURES]


def _parts(phases_ms: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Lookups, transfers and all phases [..., W] of phases [..., P, W]."""
    lookup = phases_ms[..., _LOOKUPS, :].sum(axis=-2)
    transfer = phases_ms[..., _TRANSFERS, :].sum(axis=-2)
    return lookup, transfer, phases_ms.sum(axis=-2)


def _highest(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values.max(axis=-1, keepdims=True))


def _lowest(values: NDArray[np.float64], allowed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The lowest allowed value [..., 1] of [..., W], of all where none is allowed."""
    lowest = np.where(allowed, values, np.inf).min(axis=-1, keepdims=True)
    return np.where(np.isfinite(lowest), lowest, values.min(axis=-1, keepdims=True))


def _tensor(columns: list[NDArray[np.float64]]) -> Tensor:
    stacked = np.stack(columns, axis=-1, dtype=np.float32, casting="unsafe")
    return torch.from_numpy(np.clip(stacked, -LIMIT, LIMIT, out=stacked))
