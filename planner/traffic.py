"""How many bytes each rank hands to the collectives of a step under a plan: exact, given the ids of its samples."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.memory import FLOAT_BYTES, ID_BYTES, LENGTH_BYTES
from planner.plan import ShardingPlan, TablePlacement
from planner.problem import PlanningProblem
from planner.sharding import ShardingType


@dataclass(frozen=True)
class TrafficBytes:
    """Bytes of each rank's input of the collectives of one step, own part included; float64 [W] each.

    Attributes:
        input_dist: Ids and lengths.
        output_dist_forward: Pooled embeddings.
        output_dist_backward: Their gradients.
        all_reduce: Gradients of what is replicated: the dense part and data_parallel tables.
    """

    input_dist: NDArray[np.float64]
    output_dist_forward: NDArray[np.float64]
    output_dist_backward: NDArray[np.float64]
    all_reduce: NDArray[np.float64]


def traffic_bytes(
    problem: PlanningProblem, plan: ShardingPlan, ids: Mapping[str, NDArray[np.float64]] | None = None
) -> TrafficBytes:
    """The bytes under a plan.

    Legend: W ranks, n on a node, B samples a rank, F features and D columns of a table, k its column shards.

    - input_dist: `8 ids k + 4 B F c`, c copies of the lengths: k, or one for each row block of row_wise (W) and
      table_row_wise (n).
    - output_dist: `4 W B F D` of what the rank holds forward, `4 B F D` of all that come back backward; row_wise all
      of D on every rank. table_row_wise reduces `4 W B F D` within the node, then sends `4 W / n B F D`; backward
      `4 B F D` from all ranks, then `4 W / n B F D` of those on its own node.
    - all_reduce: 4 bytes a dense parameter and replicated weight.

    Source: TorchRec 1.8, `sharding/{tw,cw,rw,twrw,dp}_sharding.py`.

    Args:
        problem: Tables, batch size and devices.
        plan: Of the problem's tables.
        ids: Ids [W] of every rank's own samples, by table; None takes what the pooling factors let expect.
    """
    world_size, workload = problem.topology.world_size, problem.workload
    sent = np.zeros((4, world_size))
    sent[3] = workload.dense_parameters * FLOAT_BYTES
    for table in plan.tables:
        at = problem.index_of[table.name]
        own = ids[table.name] if ids is not None else workload.batch_size * problem.arrays.ids_per_sample[at]
        sent += _table_bytes(problem, table, np.broadcast_to(own, world_size))
    return TrafficBytes(*sent)


def _table_bytes(problem: PlanningProblem, table: TablePlacement, own_ids: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bytes [4, W] that one table adds."""
    world_size, spec = problem.topology.world_size, problem.workload.tables[problem.index_of[table.name]]
    sent, kind = np.zeros((4, world_size)), table.sharding_type
    if kind is ShardingType.DATA_PARALLEL:
        sent[3] = spec.num_embeddings * spec.embedding_dim * FLOAT_BYTES
        return sent
    samples = problem.workload.batch_size * len(spec.feature_names)
    whole = samples * spec.embedding_dim * FLOAT_BYTES
    node_size = problem.devices.node_size[table.shards[0].rank]
    is_row_wise = kind in (ShardingType.ROW_WISE, ShardingType.TABLE_ROW_WISE)
    num_columns = 1 if is_row_wise else len(table.shards)
    copies = {ShardingType.ROW_WISE: world_size, ShardingType.TABLE_ROW_WISE: int(node_size)}.get(kind, num_columns)
    sent[0] = num_columns * own_ids * ID_BYTES + copies * samples * LENGTH_BYTES
    sent[2] = whole
    if kind is ShardingType.ROW_WISE:
        sent[1] = world_size * whole
        return sent
    for shard in table.shards:
        if kind is ShardingType.TABLE_ROW_WISE:
            between = world_size / node_size * whole
            sent[1, shard.rank] += world_size * whole + between
            sent[2, shard.rank] += between
        else:
            sent[1, shard.rank] += world_size * samples * shard.num_cols * FLOAT_BYTES
    return sent
