"""Bytes that ranks need while a migration goes on and the old and the new shards both exist."""

import numpy as np
from numpy.typing import NDArray

from planner.memory import rank_bytes, shard_bytes
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.shards import plan_shards


def transition_bytes(problem: PlanningProblem, old: ShardingPlan, new: ShardingPlan) -> NDArray[np.int64]:
    """Bytes [W] in use on each rank while the old plan's shards and the new ones of all tables that change both exist.

    The replicated part is counted, the reserve is not, as in `planner.memory.rank_bytes`. New shards count with their
    inputs and outputs, since the new plan's first step may overlap with the release of the old ones.
    """
    before = {table.name: table for table in old.tables}
    changed = tuple(table for table in new.tables if table != before[table.name])
    needed = np.array(rank_bytes(problem, old), dtype=np.int64)
    if changed:
        shards = plan_shards(problem, ShardingPlan(new.world_size, changed))
        np.add.at(needed, shards.rank, shard_bytes(problem, shards))
    return needed
