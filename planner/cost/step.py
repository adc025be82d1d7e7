"""The time of a training step: a walk over its phases along the critical path, with exchangeable parts.

A phase is a kernel or a collective; the phases of a step follow one another on each rank, and at every
collective all wait for the last, so a step is the sum over phases of the slowest rank. Source: Lin et al. 2022,
arXiv 2201.07821, section on multi-device execution.

Phases, with loads as `planner.cost.loads` defines them:

- input_dist: all-to-all of ID_BYTES. output_dist forward and backward: all-to-all of the pooled bytes. The two
  link classes work side by side, so the slower one counts; each sharding type is a collective of its own.
- lookups and dense layers: what the parts say. The dense gradient of a replicated table is cleared and written in
  lookup_backward.
- all_reduce: of the dense parameters' gradients and GRADIENT_BYTES. optimizer: reads gradient and state, reads and
  writes weights and state of the same, `UPDATE_PASSES` times their bytes.
- every phase: calibration x this + the host's own time (`planner.cost.host`), where that was measured.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from planner.cost.comms import MS_PER_S, CommsModel, from_topology
from planner.cost.estimator import PHASES, LinearBound, PlanCost
from planner.cost.host import HostCost
from planner.cost.loads import NUM_TRAFFIC, REPLICATED, Load, shard_traffic
from planner.cost.parts import DenseCost, LookupCost
from planner.cost.step_bounds import GRADIENT_PASSES, UPDATE_PASSES, linear_bounds, ring_link
from planner.memory import FLOAT_BYTES
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.shards import ShardArrays, plan_shards
from planner.topology import Topology


@dataclass(frozen=True)
class StepEstimator:
    """Prices plans by the walk of this module's docstring; additive, so that searches can update it.

    Attributes:
        lookups: Embedding kernels.
        dense: All other layers.
        comms: Collectives as measured; the topology's links for those that were not, and where it is None.
        host: The host's own time; None counts none.
        copy_bytes_per_s: Bandwidth of dense updates; None takes the devices' own.
    """

    lookups: LookupCost
    dense: DenseCost
    comms: CommsModel | None = None
    host: HostCost | None = None
    copy_bytes_per_s: float | None = None

    def estimate(self, problem: PlanningProblem, plan: ShardingPlan) -> PlanCost:
        """The cost of a plan."""
        shards = plan_shards(problem, plan)
        loads = self.shard_loads(problem, shards)
        sums = np.zeros((problem.topology.world_size, loads.shape[1]))
        np.add.at(sums, shards.rank, loads)
        return PlanCost(self.phases_ms(problem, sums))

    def shard_loads(self, problem: PlanningProblem, shards: ShardArrays) -> NDArray[np.float64]:
        """Additive figures [S, K] of shards: traffic, then what the lookups need."""
        return np.concatenate([shard_traffic(problem, shards), self.lookups.shard_loads(problem, shards)], axis=1)

    def phases_ms(self, problem: PlanningProblem, loads: NDArray[np.float64]) -> NDArray[np.float64]:
        """Phases [..., P, W] of summed loads [..., W, K]."""
        ranks = np.arange(problem.topology.world_size)
        return self.join_ms(problem, loads[..., :NUM_TRAFFIC], self.lookup_ms(problem, loads, ranks))

    def lookup_ms(
        self, problem: PlanningProblem, loads: NDArray[np.float64], ranks: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Milliseconds [2, ...] in embedding kernels of summed loads [..., K] on ranks (broadcast to [...])."""
        num_kernels = (loads[..., Load.FIRST_TYPE : NUM_TRAFFIC] > 0).sum(axis=-1)
        return self.lookups.times_ms(problem, loads[..., NUM_TRAFFIC:], num_kernels, ranks)

    def join_ms(
        self, problem: PlanningProblem, traffic: NDArray[np.float64], lookup_ms: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Phases [..., P, W] of the first `NUM_TRAFFIC` loads [..., W, NUM_TRAFFIC] and lookup times [2, ..., W].

        What `phases_ms` does once the lookups are known: a search that changes few ranks asks for theirs alone.
        """
        own_ms = self.own_phases_ms(problem, traffic, lookup_ms)
        if self.host is None:
            return own_ms
        return self.host.add(problem, own_ms, traffic[..., Load.FIRST_TYPE :])

    def own_phases_ms(
        self, problem: PlanningProblem, traffic: NDArray[np.float64], lookup_ms: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """As `join_ms`, kernels and transfers only."""
        is_used = np.asarray((traffic[..., Load.FIRST_TYPE :] > 0).any(axis=-2, keepdims=True))
        num_collectives = is_used.sum(axis=-1) - is_used[..., REPLICATED]
        forward_ms, backward_ms = lookup_ms
        dense_forward_ms, dense_backward_ms = self.dense.times_ms(problem)
        gradient_bytes = traffic[..., Load.GRADIENT_BYTES]
        dense_bytes = gradient_bytes + problem.workload.dense_parameters * FLOAT_BYTES
        byte_ms = self.byte_ms(problem)
        ids = traffic[..., Load.ID_BYTES]
        intra, inter = traffic[..., Load.INTRA_BYTES], traffic[..., Load.INTER_BYTES]
        pooled_ms = self._exchange_ms(problem, intra, inter, num_collectives)
        phases = {
            "input_dist": self._exchange_ms(problem, ids, ids, num_collectives),
            "lookup_forward": forward_ms,
            "output_dist_forward": pooled_ms,
            "dense_forward": np.broadcast_to(dense_forward_ms, ids.shape),
            "dense_backward": np.broadcast_to(dense_backward_ms, ids.shape),
            "output_dist_backward": pooled_ms,
            "lookup_backward": backward_ms + GRADIENT_PASSES * gradient_bytes * byte_ms,
            "all_reduce": self._all_reduce_ms(problem, dense_bytes),
            "optimizer": UPDATE_PASSES * dense_bytes * byte_ms,
            "other": np.zeros(ids.shape),
        }
        return np.stack([phases[name] for name in PHASES], axis=-2)

    def linear_bounds(self, problem: PlanningProblem) -> tuple[LinearBound, ...]:
        """See `planner.cost.step_bounds`."""
        return linear_bounds(self, problem)

    def byte_ms(self, problem: PlanningProblem) -> NDArray[np.float64]:
        """Milliseconds [W] to read or write one byte of contiguous memory."""
        if self.copy_bytes_per_s is None:
            return np.asarray(MS_PER_S / problem.devices.hbm_bytes_per_s)
        return np.full(problem.topology.world_size, MS_PER_S / self.copy_bytes_per_s)

    def collectives(self, problem: PlanningProblem) -> CommsModel:
        """Times of all collectives on the problem's links."""
        return _collectives(self.comms, problem.topology)

    def _exchange_ms(
        self,
        problem: PlanningProblem,
        intra: NDArray[np.float64],
        inter: NDArray[np.float64],
        num_collectives: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Milliseconds [..., W] of an all-to-all.

        Args:
            problem: The problem, for its devices and links.
            intra: Bytes [..., W] that a rank exchanges with each peer on its node.
            inter: Bytes [..., W] that it exchanges with each rank on other nodes.
            num_collectives: How many collectives share the bytes, [..., 1].
        """
        topology, devices, comms = problem.topology, problem.devices, self.collectives(problem)
        peers, others = devices.node_size - 1, topology.world_size - devices.node_size
        intra_received = devices.node_sums(intra) - intra
        inter_received = inter.sum(axis=-1, keepdims=True) - devices.node_sums(inter)
        node_size, world_size = int(devices.node_size.max()), topology.world_size
        within_ms = comms.transfer_ms(
            "all_to_all", "intra_node", node_size, peers * intra, intra_received, num_collectives * (peers > 0)
        )
        if len(topology.nodes) == 1:
            return within_ms
        between_ms = comms.transfer_ms(
            "all_to_all", "inter_node", world_size, others * inter, inter_received, num_collectives * (others > 0)
        )
        return np.maximum(within_ms, between_ms)

    def _all_reduce_ms(self, problem: PlanningProblem, num_bytes: NDArray[np.float64]) -> NDArray[np.float64]:
        any_bytes = (num_bytes > 0).any(axis=-1, keepdims=True)
        return self.collectives(problem).estimate_ms("all_reduce", ring_link(problem.topology), num_bytes, any_bytes)


@lru_cache(maxsize=8)
def _collectives(comms: CommsModel | None, topology: Topology) -> CommsModel:
    promised = from_topology(topology)
    return promised if comms is None else comms.completed(promised)
