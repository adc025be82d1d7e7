"""What a plan makes each table cost each rank, as a matrix and as heat maps."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from launcher.priced_plan import PricedPlan
from launcher.views.heatmap import SEQUENTIAL, Axis, Pixels, Scale, draw_heat_map
from planner.shards import plan_shards

MOST_TABLES = 200
"""Tables that a map shows, so that cells stay visible: those that cost most."""


def lookup_ms_by_table(planned: PricedPlan) -> NDArray[np.float64]:
    """Estimated milliseconds of lookups a step, forward and backward: [W, T], tables in the workload's order.

    Kernels fuse the tables of a rank, so a table has no cost of its own: a rank's estimate is divided in proportion to
    what its tables would take alone.
    """
    problem, estimator = planned.problem, planned.estimator
    num_ranks, num_tables = planned.plan.world_size, len(problem.workload.tables)
    shards = plan_shards(problem, planned.plan)
    is_there = shards.num_rows > 0
    loads = estimator.shard_loads(problem, shards)[is_there]
    pairs, pair_of = np.unique((shards.rank * num_tables + shards.table)[is_there], return_inverse=True)
    of_pair = np.zeros((len(pairs), loads.shape[1]))
    np.add.at(of_pair, pair_of, loads)
    alone_ms = np.zeros((num_ranks, num_tables))
    alone_ms.flat[pairs] = estimator.lookup_ms(problem, of_pair, pairs // num_tables).sum(axis=0)
    total_ms = alone_ms.sum(axis=1)
    share = np.divide(alone_ms, total_ms[:, None], out=np.zeros_like(alone_ms), where=total_ms[:, None] > 0)
    return share * planned.cost.lookup_ms[:, None]


def draw_cost_map(values: NDArray[np.float64], tables: Sequence[str], unit: str) -> Pixels:
    """A heat map of [W, T], the table with the largest sum first."""
    order = np.argsort(-values.sum(axis=0), kind="stable")[:MOST_TABLES]
    num_more = len(tables) - len(order)
    title = "tables, the costliest first" + (f" ({num_more} more not shown)" if num_more else "")
    scale = Scale(SEQUENTIAL, 0.0, float(values.max()), unit)
    columns = Axis(title, tuple((position, tables[index]) for position, index in enumerate(order)))
    return draw_heat_map(values[:, order], scale, Axis.numbered("rank", np.arange(len(values))), columns)
