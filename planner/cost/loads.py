"""What a shard adds to its rank besides its lookups: bytes to exchange, a gradient to sum, a kernel of its type.

Legend: W ranks, n ranks on a node, B samples per rank, F features and I ids per sample of a table, R rows, D
columns of a shard, share s = its rows / the table's rows.

- ID_BYTES: B (8 I s + 4 F), what every rank sends to the shard.
- INTRA_BYTES, INTER_BYTES: pooled bytes that the shard sends to each peer on its node and to each rank
  elsewhere: 4 B F D, also for row_wise, whose reduce-scatter moves as much. table_row_wise first
  reduce-scatters within the node (W / n times as much to each neighbour) and then sends each partial sum
  once (1 / n to each rank elsewhere).
- GRADIENT_BYTES: 4 R D of a replicated table: its gradient is dense.
- one column for each sharding type: 1 a shard; each type present is one kernel and one collective of its own.
  Source: TorchRec 1.8 `ShardedEmbeddingBagCollection` groups tables by sharding type, one lookup and dist
  each.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from planner.memory import FLOAT_BYTES, ID_BYTES, LENGTH_BYTES
from planner.problem import PlanningProblem
from planner.sharding import TYPE_ORDER, ShardingType
from planner.shards import TYPE_CODE, ShardArrays

REPLICATED = TYPE_CODE[ShardingType.DATA_PARALLEL]
"""Type code of replicated tables."""


class Load(IntEnum):
    """Columns of `shard_traffic`; the module's docstring defines them."""

    ID_BYTES = 0
    INTRA_BYTES = 1
    INTER_BYTES = 2
    GRADIENT_BYTES = 3
    FIRST_TYPE = 4


NUM_TRAFFIC = Load.FIRST_TYPE + len(TYPE_ORDER)
"""Columns of `shard_traffic`."""


def shard_traffic(problem: PlanningProblem, shards: ShardArrays) -> NDArray[np.float64]:
    """Additive figures [S, NUM_TRAFFIC] of shards, columns as in `Load`."""
    tables, world_size = problem.arrays, problem.topology.world_size
    is_replicated = shards.type_code == REPLICATED
    features = tables.num_features[shards.table]
    pooled_bytes = features * shards.num_cols * FLOAT_BYTES
    sent = np.where(is_replicated, 0.0, problem.workload.batch_size)
    node_size = problem.devices.node_size[shards.rank]
    is_hierarchical = shards.type_code == TYPE_CODE[ShardingType.TABLE_ROW_WISE]

    loads = np.zeros((len(shards), NUM_TRAFFIC))
    loads[:, Load.ID_BYTES] = sent * (shard_ids_per_sample(problem, shards) * ID_BYTES + features * LENGTH_BYTES)
    loads[:, Load.INTRA_BYTES] = sent * pooled_bytes * np.where(is_hierarchical, world_size / node_size, 1.0)
    loads[:, Load.INTER_BYTES] = sent * pooled_bytes / np.where(is_hierarchical, node_size, 1.0)
    loads[:, Load.GRADIENT_BYTES] = np.where(is_replicated, shards.num_rows * shards.num_cols * FLOAT_BYTES, 0.0)
    loads[np.arange(len(shards)), Load.FIRST_TYPE + shards.type_code] = 1.0
    return loads


def shard_ids_per_sample(problem: PlanningProblem, shards: ShardArrays) -> NDArray[np.float64]:
    """Ids [S] of a sample that fall on each shard: the table's, spread evenly over its rows."""
    tables = problem.arrays
    return np.asarray(tables.ids_per_sample[shards.table] * shards.num_rows / tables.num_rows[shards.table])


def shard_samples(problem: PlanningProblem, shards: ShardArrays) -> NDArray[np.float64]:
    """Samples [S] that a shard serves in a step: the global batch, and the rank's own where it is replicated."""
    world_size = np.where(shards.type_code == REPLICATED, 1, problem.topology.world_size)
    return np.asarray(problem.workload.batch_size * world_size, dtype=np.float64)
