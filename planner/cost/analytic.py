"""Step time from first principles: bytes over bandwidth, launches and link latencies.

Legend: W ranks, n ranks on a node, B samples per rank, F features and I ids per sample of a table, R rows, D
columns of a shard (share s = its rows / the table's rows), w bytes of a weight, beta seconds per byte of a
link.

Additive loads of a shard, the columns of `Load`:

- FORWARD_BYTES: samples x (I s (D w + 8) + 4 F D): rows gathered, ids read, pooled rows written; samples is
  B W, and B where the table is replicated.
- BACKWARD_BYTES: samples x I s (4 D + 16) for the gradient of every id and the sort of the ids, plus
  distinct rows x (2 D w + 2 state) for the rows updated: the table's, as its access statistics tell or for
  uniform ids, times the share s. Replicated tables instead write and read a dense gradient and update every
  row.
- ID_BYTES: B (8 I s + 4 F), what every rank sends to the shard.
- INTRA_BYTES, INTER_BYTES: pooled bytes that the shard sends to each peer on its node and to each rank
  elsewhere: 4 B F D, also for row_wise, whose reduce-scatter moves as much. table_row_wise first
  reduce-scatters within the node (W / n times as much to each neighbour) and then sends each partial sum
  once (1 / n to each rank elsewhere).
- GRADIENT_BYTES: 4 R D of a replicated table, for the all-reduce.
- one column for each sharding type: 1 a shard; each type present is one kernel and one collective of its own.
  Source: TorchRec 1.8 `ShardedEmbeddingBagCollection` groups tables by sharding type, one lookup and dist
  each.

Phases: a lookup takes bytes / hbm_bytes_per_s + launch_s a kernel. An exchange takes, on each link class,
latency a collective + beta x max(bytes sent, bytes received); the classes work side by side, so the slower
one counts. Backward output_dist moves what forward moved. The all-reduce is a ring over the slowest link: 2
(W - 1) steps of 1 / W of the bytes. Source: Patarasuk and Yuan 2009, bandwidth optimal all-reduce. Dense
backward is twice forward: two matrix products for one.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import PHASES, LinearBound, PlanCost
from planner.memory import FLOAT_BYTES, ID_BYTES, LENGTH_BYTES
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.sharding import TYPE_ORDER, ShardingType, is_data_parallel_legal
from planner.shards import TYPE_CODE, ShardArrays, plan_shards
from planner.tables import OptimizerKind
from planner.topology import Link, Topology

MS_PER_S = 1e3
"""Milliseconds in a second."""

SORT_BYTES = 16
"""Bytes moved per id by the sort of the backward pass: an int64 id is read and written once."""

DENSE_BACKWARD_FACTOR = 2.0
"""Dense backward over forward work: gradients of inputs and of weights, one matrix product each."""


EXCHANGES = ("input_dist", "output_dist_forward", "output_dist_backward")
"""Phases that are all-to-alls."""


class Load(IntEnum):
    """Columns of the additive loads; the module's docstring defines them."""

    FORWARD_BYTES = 0
    BACKWARD_BYTES = 1
    ID_BYTES = 2
    INTRA_BYTES = 3
    INTER_BYTES = 4
    GRADIENT_BYTES = 5
    FIRST_TYPE = 6


NUM_LOADS = Load.FIRST_TYPE + len(TYPE_ORDER)
"""Columns of a load array."""

_REPLICATED = TYPE_CODE[ShardingType.DATA_PARALLEL]


class AnalyticEstimator:
    """The additive estimator of this module's docstring."""

    def estimate(self, problem: PlanningProblem, plan: ShardingPlan) -> PlanCost:
        """The cost of a plan."""
        shards = plan_shards(problem, plan)
        loads = np.zeros((problem.topology.world_size, NUM_LOADS))
        np.add.at(loads, shards.rank, self.shard_loads(problem, shards))
        return PlanCost(self.phases_ms(problem, loads))

    def shard_loads(self, problem: PlanningProblem, shards: ShardArrays) -> NDArray[np.float64]:
        """Additive figures [S, K] of shards, columns as in `Load`."""
        workload, tables, world_size = problem.workload, problem.arrays, problem.topology.world_size
        is_replicated = shards.type_code == _REPLICATED
        samples = workload.batch_size * np.where(is_replicated, 1, world_size)
        ids_per_sample = tables.ids_per_sample[shards.table] * shards.num_rows / tables.num_rows[shards.table]
        features, ids = tables.num_features[shards.table], samples * ids_per_sample
        row_bytes = shards.num_cols * workload.weight_bytes
        pooled_bytes = features * shards.num_cols * FLOAT_BYTES

        loads = np.zeros((len(shards), NUM_LOADS))
        loads[:, Load.FORWARD_BYTES] = ids * (row_bytes + ID_BYTES) + samples * pooled_bytes
        loads[:, Load.BACKWARD_BYTES] = ids * (shards.num_cols * FLOAT_BYTES + SORT_BYTES) + np.where(
            is_replicated, _dense_update_bytes(problem, shards), _fused_update_bytes(problem, shards)
        )
        sent = np.where(is_replicated, 0.0, workload.batch_size)
        loads[:, Load.ID_BYTES] = sent * (ids_per_sample * ID_BYTES + features * LENGTH_BYTES)
        node_size = problem.devices.node_size[shards.rank]
        is_hierarchical = shards.type_code == TYPE_CODE[ShardingType.TABLE_ROW_WISE]
        loads[:, Load.INTRA_BYTES] = sent * pooled_bytes * np.where(is_hierarchical, world_size / node_size, 1.0)
        loads[:, Load.INTER_BYTES] = sent * pooled_bytes / np.where(is_hierarchical, node_size, 1.0)
        loads[:, Load.GRADIENT_BYTES] = np.where(is_replicated, shards.num_rows * shards.num_cols * FLOAT_BYTES, 0.0)
        loads[np.arange(len(shards)), Load.FIRST_TYPE + shards.type_code] = 1.0
        return loads

    def phases_ms(self, problem: PlanningProblem, loads: NDArray[np.float64]) -> NDArray[np.float64]:
        """Phases [..., P, W] of summed loads [..., W, K]."""
        workload, devices = problem.workload, problem.devices
        has_type = loads[..., Load.FIRST_TYPE :] > 0
        launches_s = devices.launch_s * has_type.sum(axis=-1)
        is_used = has_type.any(axis=-2, keepdims=True)
        num_collectives = np.asarray(is_used).sum(axis=-1) - np.asarray(is_used)[..., _REPLICATED]
        ids = loads[..., Load.ID_BYTES]
        pooled_s = _exchange_s(problem, loads[..., Load.INTRA_BYTES], loads[..., Load.INTER_BYTES], num_collectives)
        flops = workload.batch_size * workload.dense_flops_per_sample
        dense_s = np.broadcast_to(flops / devices.flops_per_s, ids.shape)
        gradient_bytes = loads[..., Load.GRADIENT_BYTES] + workload.dense_parameters * FLOAT_BYTES
        phases_s = {
            "input_dist": _exchange_s(problem, ids, ids, num_collectives),
            "lookup_forward": loads[..., Load.FORWARD_BYTES] / devices.hbm_bytes_per_s + launches_s,
            "output_dist_forward": pooled_s,
            "dense_forward": dense_s,
            "dense_backward": dense_s * DENSE_BACKWARD_FACTOR,
            "output_dist_backward": pooled_s,
            "lookup_backward": loads[..., Load.BACKWARD_BYTES] / devices.hbm_bytes_per_s + launches_s,
            "all_reduce": _all_reduce_s(problem.topology, gradient_bytes),
        }
        return np.stack([phases_s[name] for name in PHASES], axis=-2) * MS_PER_S

    def linear_bounds(self, problem: PlanningProblem) -> tuple[LinearBound, ...]:
        """One bound a link class: an exchange is never faster than either class alone.

        Proof for a rank-wise rate r_q (seconds per unit) and times t_q >= r_q L_q: sum of L_q <= max t x sum
        of 1 / r_q, so max t >= total / sum of 1 / r_q; and a shard's load is on some rank, so max t >= min
        r_q x load. A rank that has no peers on a class (r_q = 0) makes both bounds 0. At least one rank
        launches a kernel in either lookup; where a table may not be replicated there is one collective at
        least in every exchange.
        """
        topology = problem.topology
        constants_s = self.phases_ms(problem, np.zeros((topology.world_size, NUM_LOADS))).max(axis=-1) / MS_PER_S
        for name in ("lookup_forward", "lookup_backward"):
            constants_s[PHASES.index(name)] = problem.devices.launch_s.min()
        node_size = problem.devices.node_size
        classes = (
            (topology.intra_node, Load.INTRA_BYTES, (node_size - 1) / topology.intra_node.bytes_per_s),
            (
                topology.inter_node,
                Load.INTER_BYTES,
                (topology.world_size - node_size) / topology.inter_node.bytes_per_s,
            ),
        )
        return tuple(
            _linear_bound(problem, column, rates, _with_latency(problem, constants_s, link, rates))
            for link, column, rates in classes
        )


def _fused_update_bytes(problem: PlanningProblem, shards: ShardArrays) -> NDArray[np.float64]:
    """Bytes [S] that a fused optimizer reads and writes: the distinct rows of the global batch, evenly spread."""
    touched = problem.arrays.distinct_rows / problem.arrays.num_rows
    return shards.num_rows * touched[shards.table] * _row_update_bytes(problem, shards)


def _dense_update_bytes(problem: PlanningProblem, shards: ShardArrays) -> NDArray[np.float64]:
    """Bytes [S] of a replicated table: its dense gradient written and read, every row updated."""
    gradient_bytes = 2 * FLOAT_BYTES * shards.num_cols
    return shards.num_rows * (gradient_bytes + _row_update_bytes(problem, shards))


def _row_update_bytes(problem: PlanningProblem, shards: ShardArrays) -> NDArray[np.float64]:
    """Bytes [S] to read and write one row and its optimizer state."""
    state_bytes = {
        OptimizerKind.SGD: np.zeros(len(shards)),
        OptimizerKind.ROWWISE_ADAGRAD: np.full(len(shards), float(FLOAT_BYTES)),
        OptimizerKind.ADAM: shards.num_cols * (2.0 * FLOAT_BYTES),
    }[problem.workload.optimizer]
    return np.asarray(2 * (shards.num_cols * problem.workload.weight_bytes + state_bytes))


def _exchange_s(
    problem: PlanningProblem,
    intra: NDArray[np.float64],
    inter: NDArray[np.float64],
    num_collectives: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Seconds [..., W] of an all-to-all.

    Args:
        problem: The problem, for its devices and links.
        intra: Bytes [..., W] that a rank exchanges with each peer on its node.
        inter: Bytes [..., W] that it exchanges with each rank on other nodes.
        num_collectives: How many collectives share the bytes, [..., 1].
    """
    topology, devices = problem.topology, problem.devices
    peers, others = devices.node_size - 1, topology.world_size - devices.node_size
    intra_received = devices.node_sums(intra) - intra
    inter_received = inter.sum(axis=-1, keepdims=True) - devices.node_sums(inter)
    return np.maximum(
        _link_s(topology.intra_node, peers * intra, intra_received, num_collectives * (peers > 0)),
        _link_s(topology.inter_node, others * inter, inter_received, num_collectives * (others > 0)),
    )


def _link_s(
    link: Link, sent: NDArray[np.float64], received: NDArray[np.float64], num_collectives: NDArray[np.int64]
) -> NDArray[np.float64]:
    return num_collectives * link.latency_s + np.maximum(sent, received) / link.bytes_per_s


def _ring_link(topology: Topology) -> Link:
    """The link that holds up a ring over all ranks."""
    if len(topology.nodes) == 1:
        return topology.intra_node
    return Link(
        bytes_per_s=min(topology.intra_node.bytes_per_s, topology.inter_node.bytes_per_s),
        latency_s=max(topology.intra_node.latency_s, topology.inter_node.latency_s),
    )


def _all_reduce_s(topology: Topology, num_bytes: NDArray[np.float64]) -> NDArray[np.float64]:
    link, steps = _ring_link(topology), 2 * (topology.world_size - 1)
    return steps * (num_bytes / topology.world_size / link.bytes_per_s + (num_bytes > 0) * link.latency_s)


def _with_latency(
    problem: PlanningProblem, constants_s: NDArray[np.float64], link: Link, rates: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The constants, with one latency an exchange where all ranks use the link and a table must exchange."""
    must_exchange = not is_data_parallel_legal(problem.workload.optimizer) or any(
        rule.sharding_types is not None and ShardingType.DATA_PARALLEL not in rule.sharding_types
        for rule in problem.rules.values()
    )
    with_latency = constants_s.copy()
    if must_exchange and rates.min() > 0:
        for name in EXCHANGES:
            with_latency[PHASES.index(name)] += link.latency_s
    return with_latency


def _linear_bound(
    problem: PlanningProblem,
    pooled: Load,
    exchange_rates: NDArray[np.float64],
    constants_s: NDArray[np.float64],
) -> LinearBound:
    of_total, of_shard = np.zeros((2, len(PHASES), NUM_LOADS))
    topology, bandwidth_rates = problem.topology, 1.0 / problem.devices.hbm_bytes_per_s
    ring_seconds_per_byte = 2 * (topology.world_size - 1) / topology.world_size / _ring_link(topology).bytes_per_s
    rates = {
        ("lookup_forward", Load.FORWARD_BYTES): bandwidth_rates,
        ("lookup_backward", Load.BACKWARD_BYTES): bandwidth_rates,
        ("input_dist", Load.ID_BYTES): exchange_rates,
        ("output_dist_forward", pooled): exchange_rates,
        ("output_dist_backward", pooled): exchange_rates,
        ("all_reduce", Load.GRADIENT_BYTES): np.full(topology.world_size, ring_seconds_per_byte),
    }
    for (name, column), rate in rates.items():
        row = PHASES.index(name)
        of_shard[row, column] = rate.min()
        of_total[row, column] = 1 / (1 / rate).sum() if rate.min() > 0 else 0.0
    return LinearBound(of_total * MS_PER_S, of_shard * MS_PER_S, constants_s * MS_PER_S)
