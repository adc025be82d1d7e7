"""Which tables fill the slowest rank: what its own work falls by without each of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from launcher.priced_plan import PricedPlan
from launcher.views.plan_words import ABBREVIATIONS, percent
from launcher.views.tables import make_table
from planner.cost.loads import NUM_TRAFFIC
from planner.shards import plan_shards

MOST_TABLES = 5
"""Tables that are named; the rest is a sum."""

RANKS_AT_A_TIME = 1 << 16
"""Ranks that are priced in one batch: megabytes, not gigabytes."""


@dataclass(frozen=True)
class Filling:
    """What fills the rank with the most own work.

    Attributes:
        rank: Which one.
        total_ms: Its own work in a step.
        tables: Names of the tables that it holds something of, those that take most first.
        freed_ms: float64, what its own work falls by without each of them.
    """

    rank: int
    total_ms: float
    tables: tuple[str, ...]
    freed_ms: NDArray[np.float64]


def find_filling(planned: PricedPlan) -> Filling:
    """The filling of a plan's slowest rank, from its cost model.

    Each table is taken away alone; what several free together need not be the sum.
    """
    problem, estimator = planned.problem, planned.estimator
    total_ms = planned.cost.total_ms
    rank = int(total_ms.argmax())
    shards = plan_shards(problem, planned.plan)
    loads = estimator.shard_loads(problem, shards)
    sums = np.zeros((len(total_ms), loads.shape[1]))
    np.add.at(sums, shards.rank, loads)
    is_here = (shards.rank == rank) & (shards.num_rows > 0)
    held, position = np.unique(shards.table[is_here], return_inverse=True)
    of_table = np.zeros((len(held), loads.shape[1]))
    np.add.at(of_table, position, loads[is_here])
    freed_ms = total_ms[rank] - _without(planned, sums, rank, of_table)
    order = np.argsort(-freed_ms, kind="stable")
    names = [problem.workload.tables[index].name for index in held[order]]
    return Filling(rank, float(total_ms[rank]), tuple(names), freed_ms[order])


def render_filling(planned: PricedPlan) -> Table:
    """The tables that free most, and the others as a sum."""
    found = find_filling(planned)
    types = {placement.name: ABBREVIATIONS[placement.sharding_type] for placement in planned.plan.tables}
    rows = [
        (name, types[name], *_amount(freed_ms, found.total_ms))
        for name, freed_ms in zip(found.tables[:MOST_TABLES], found.freed_ms, strict=False)
    ]
    num_others = len(found.tables) - MOST_TABLES
    if num_others > 0:
        others_ms = float(found.freed_ms[MOST_TABLES:].sum())
        rows.append((f"{num_others} more", "", *_amount(others_ms, found.total_ms)))
    title = f"what fills rank {found.rank}, the slowest"
    return make_table(title, ("table", "type", "ms without it", "share"), rows, left=2)


def _amount(freed_ms: float, total_ms: float) -> tuple[str, str]:
    return f"{-freed_ms:+.3f}", percent(freed_ms / total_ms if total_ms else 0.0)


def _without(
    planned: PricedPlan, sums: NDArray[np.float64], rank: int, loads: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Own work [T] of a rank without each of some loads [T, K], given the sums [W, K] of all ranks."""
    problem, estimator = planned.problem, planned.estimator
    # A difference may fall below 0 by rounding.
    left = np.maximum(sums[rank] - loads, 0.0)
    lookup_ms = np.repeat(estimator.lookup_ms(problem, sums, np.arange(len(sums)))[:, None], len(left), axis=1)
    lookup_ms[:, :, rank] = estimator.lookup_ms(problem, left, np.full(len(left), rank))
    size, own_ms = max(1, RANKS_AT_A_TIME // len(sums)), np.zeros(len(left))
    for first in range(0, len(left), size):
        batch = slice(first, first + size)
        traffic = np.repeat(sums[None, :, :NUM_TRAFFIC], len(left[batch]), axis=0)
        traffic[:, rank] = left[batch, :NUM_TRAFFIC]
        own_ms[batch] = estimator.join_ms(problem, traffic, lookup_ms[:, batch])[..., rank].sum(axis=-1)
    return own_ms
