"""Bytes that shards take on a device: weights, optimizer state, inputs and outputs."""

import numpy as np
from numpy.typing import NDArray

from planner.lookups import state_bytes
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.sharding import ShardingType
from planner.shards import TYPE_CODE, ShardArrays, plan_shards, whole_tables
from planner.tables import MemoryCount

ID_BYTES = 8
"""Bytes of one id. Source: TorchRec KeyedJaggedTensor values are int64 (`planner.constants.BIGINT_DTYPE`)."""

LENGTH_BYTES = 4
"""Bytes of one bag length. Source: TorchRec sends KeyedJaggedTensor lengths as int32."""

FLOAT_BYTES = 4
"""Bytes of one fp32 number: pooled embeddings, gradients and optimizer state."""

DENSE_COPIES = 4
"""fp32 copies of a dense parameter: weight, gradient, two moments.

Source: Kingma and Ba 2015, Adam, algorithm 1.
"""


def shard_bytes(problem: PlanningProblem, shards: ShardArrays) -> NDArray[np.int64]:
    """Bytes of each shard [S] on its device: of the following all, or with `MemoryCount.WEIGHTS` the first alone.

    - weights: rows x columns;
    - optimizer: row-wise Adagrad one fp32 a row, Adam two a weight, SGD none
      (Source: FBGEMM `SplitTableBatchedEmbeddingBagsCodegen`, momentum1 and momentum2);
    - replicated tables: a dense gradient, as large as the weights in fp32;
    - inputs: ids and lengths of the global batch (replicated: of the own one) for each batch in flight; a
      row shard receives its share of the ids and all lengths;
    - outputs: pooled embeddings of the same batch and their gradients.
    """
    workload, tables = problem.workload, problem.arrays
    elements = shards.num_rows * shards.num_cols
    if workload.memory is MemoryCount.WEIGHTS:
        return np.ceil(elements * workload.weight_bytes).astype(np.int64)
    is_replicated = shards.type_code == TYPE_CODE[ShardingType.DATA_PARALLEL]
    samples = workload.batch_size * np.where(is_replicated, 1, problem.topology.world_size)
    features = tables.num_features[shards.table]
    ids = samples * tables.ids_per_sample[shards.table] * shards.num_rows / tables.num_rows[shards.table]
    inputs = workload.batches_in_flight * (ids * ID_BYTES + samples * features * LENGTH_BYTES)
    outputs = 2 * samples * features * shards.num_cols * FLOAT_BYTES
    optimizer = shards.num_rows * state_bytes(workload.optimizer, shards.num_cols)
    gradient = np.where(is_replicated, elements * FLOAT_BYTES, 0.0)
    total = elements * workload.weight_bytes + optimizer + gradient + inputs + outputs
    return np.ceil(total).astype(np.int64)


def whole_table_bytes(problem: PlanningProblem) -> NDArray[np.int64]:
    """Bytes [T] of each table whole on one rank: the least, over all ranks, that it takes under any plan.

    No cut takes fewer weights, every cut repeats ids, lengths, pooled outputs or row-wise optimizer state, and copies
    repeat the weights.
    """
    return shard_bytes(problem, whole_tables(problem, ShardingType.TABLE_WISE))


def may_fit(problem: PlanningProblem) -> bool:
    """Whether memory leaves hope for a plan: False is a proof that there is none, True promises nothing.

    The tables that are confined to some ranks are held against the memory of these ranks, all against all.
    """
    free_bytes = capacity_bytes(problem)
    if (free_bytes < 0).any():
        return False
    needed: dict[frozenset[int], int] = {frozenset(problem.topology.ranks): 0}
    for table, num_bytes in zip(problem.workload.tables, whole_table_bytes(problem).tolist(), strict=True):
        ranks = problem.rules[table.name].ranks
        confined_to = frozenset(problem.topology.ranks if ranks is None else ranks)
        needed[confined_to] = needed.get(confined_to, 0) + num_bytes
    return all(
        sum(num_bytes for inner, num_bytes in needed.items() if inner <= ranks) <= int(free_bytes[list(ranks)].sum())
        for ranks in needed
    )


def replicated_bytes(problem: PlanningProblem) -> int:
    """Bytes that every rank holds under any plan: dense part, own batches, embeddings it receives.

    0 with `MemoryCount.WEIGHTS`.
    """
    workload, tables = problem.workload, problem.arrays
    if workload.memory is MemoryCount.WEIGHTS:
        return 0
    ids, features = tables.ids_per_sample.sum(), tables.num_features.sum()
    inputs = workload.batches_in_flight * workload.batch_size * (ids * ID_BYTES + features * LENGTH_BYTES)
    embeddings = 2 * workload.batch_size * (tables.num_features * tables.num_cols).sum() * FLOAT_BYTES
    return int(np.ceil(workload.dense_parameters * DENSE_COPIES * FLOAT_BYTES + inputs + embeddings))


def capacity_bytes(problem: PlanningProblem) -> NDArray[np.int64]:
    """Bytes of each rank [W] that are left for shards; negative where not even the replicated part fits."""
    devices = problem.topology.devices
    usable = np.array([device.hbm_bytes - device.reserved_bytes for device in devices], dtype=np.int64)
    return usable - replicated_bytes(problem)


def rank_bytes(problem: PlanningProblem, plan: ShardingPlan) -> list[int]:
    """Bytes in use on each rank under a plan: its shards and the replicated part, without the reserve."""
    shards = plan_shards(problem, plan)
    totals = np.zeros(problem.topology.world_size, dtype=np.int64)
    np.add.at(totals, shards.rank, shard_bytes(problem, shards))
    return [int(total) for total in totals + replicated_bytes(problem)]
