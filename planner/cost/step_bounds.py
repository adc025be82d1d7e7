"""Linear functions of a plan's loads that no phase of its step is below: what the lower bound is proven with.

Proofs, for a rank q with time t_q:

- t_q >= sum over loads k of R_qk L_qk gives, for any weights w_q >= 0 that sum to 1, max t >= sum_q w_q t_q >=
  sum_k (min over q of w_q R_qk) x (total of L_k). Weights in inverse proportion to the ranks' rates are best where
  all loads have the same rates. And shards of one rank with loads L are on some rank, so max t >= sum_k (min over q
  of R_qk) L_k.
- Lookups are convex in the loads, so each tangent is a floor. Its constant, if positive, is that of a launch: only
  ranks with loads count in the sums above, and each of them launches, so the smallest may be added. If it is
  negative, the tangent holds for ranks without loads as well, and all count: sum_q w_q rate_q constant.
- A collective is never below any one of its planes. Where a table may not be replicated there is one collective at
  least in every exchange; where all may be, a plane counts without the latency.
- A calibrated phase is scale x own time + host time, both >= 0, and host time never falls with shards. Waiting adds
  its share of the sum of all phases to the step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import PHASES, LinearBound
from planner.cost.loads import NUM_TRAFFIC, Load
from planner.cost.parts import LookupFloor
from planner.memory import FLOAT_BYTES
from planner.problem import PlanningProblem
from planner.sharding import ShardingType, is_data_parallel_legal
from planner.topology import Topology

if TYPE_CHECKING:
    from planner.cost.step import StepEstimator

EXCHANGES = ("input_dist", "output_dist_forward", "output_dist_backward")
"""Phases that are all-to-alls."""

GRADIENT_PASSES, UPDATE_PASSES = 2, 5
"""A dense gradient is cleared and written; an update reads it, and reads and writes weights and one state."""


@dataclass
class _Rows:
    """A bound in the making, in own time: rates of totals and shards [P, K], constants [P]."""

    num_loads: int
    of_total: NDArray[np.float64] = field(init=False)
    of_shard: NDArray[np.float64] = field(init=False)
    constant_ms: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.of_total, self.of_shard = np.zeros((2, len(PHASES), self.num_loads))
        self.constant_ms = np.zeros(len(PHASES))

    def set(self, phase: str, rates_ms: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        """Bounds a phase by rates [W, K] of loads, with weights [W] of the ranks."""
        row = PHASES.index(phase)
        self.of_total[row] = (rates_ms * weights[:, None]).min(axis=0)
        self.of_shard[row] = rates_ms.min(axis=0)

    def copy(self) -> _Rows:
        copied = _Rows(self.num_loads)
        copied.of_total[:], copied.of_shard[:] = self.of_total, self.of_shard
        copied.constant_ms[:] = self.constant_ms
        return copied


def linear_bounds(estimator: StepEstimator, problem: PlanningProblem) -> tuple[LinearBound, ...]:
    """One bound for each floor of the lookups, link class and plane of its all-to-all; see the docstring's proofs."""
    found = []
    for floor in estimator.lookups.floors(problem):
        rows = _bound_computation(estimator, problem, floor)
        _bound_all_reduce(estimator, problem, rows)
        for link, column, peers in _link_classes(problem):
            planes = estimator.collectives(problem).planes("all_to_all", link, _group_size(problem, link))
            for constant_ms, ms_out, ms_in, _ in planes:
                bound = rows.copy()
                is_even = bool((peers == peers[0]).all())
                rate_ms = peers * (ms_out + (ms_in if is_even else 0.0))
                _bound_exchange(problem, bound, column, rate_ms, peers * ms_out, constant_ms)
                found.append(_calibrated(estimator, problem, bound))
    return tuple(found)


def ring_link(topology: Topology) -> str:
    """The link class that holds up a ring over all ranks."""
    return "intra_node" if len(topology.nodes) == 1 else "inter_node"


def _bound_computation(estimator: StepEstimator, problem: PlanningProblem, floor: LookupFloor) -> _Rows:
    """Lookups, dense layers and updates."""
    byte_ms = estimator.byte_ms(problem)
    world_size, num_lookup_loads = problem.topology.world_size, floor.price.shape[1]
    rows = _Rows(NUM_TRAFFIC + num_lookup_loads)
    for index, phase in enumerate(("lookup_forward", "lookup_backward")):
        rates_ms = np.zeros((world_size, rows.num_loads))
        rates_ms[:, NUM_TRAFFIC:] = floor.rate_ms[index][:, None] * floor.price[index]
        if phase == "lookup_backward":
            rates_ms[:, Load.GRADIENT_BYTES] = GRADIENT_PASSES * byte_ms
        rows.set(phase, rates_ms, _inverse_weights(floor.rate_ms[index]))
        constant, rates_ms = floor.constant[index], floor.rate_ms[index]
        rows.constant_ms[PHASES.index(phase)] = constant * (rates_ms.min() if constant > 0 else _even_ms(rates_ms))
    update_ms = np.zeros((world_size, rows.num_loads))
    update_ms[:, Load.GRADIENT_BYTES] = UPDATE_PASSES * byte_ms
    rows.set("optimizer", update_ms, _inverse_weights(byte_ms))
    dense_bytes = problem.workload.dense_parameters * FLOAT_BYTES
    rows.constant_ms[PHASES.index("optimizer")] = UPDATE_PASSES * dense_bytes * byte_ms.min()
    for phase, times_ms in zip(("dense_forward", "dense_backward"), estimator.dense.times_ms(problem), strict=True):
        rows.constant_ms[PHASES.index(phase)] = times_ms.max()
    return rows


def _bound_all_reduce(estimator: StepEstimator, problem: PlanningProblem, rows: _Rows) -> None:
    """By the plane that holds without replicated tables; without dense parameters the collective may not run."""
    topology, row = problem.topology, PHASES.index("all_reduce")
    if topology.world_size < 2:
        return
    dense_bytes = problem.workload.dense_parameters * FLOAT_BYTES
    floors = estimator.collectives(problem).linear_floors("all_reduce", ring_link(topology), topology.world_size)
    at_dense = [each.constant_ms + each.ms_per_total_byte * topology.world_size * dense_bytes for each in floors]
    best = int(np.argmax(at_dense))
    rows.constant_ms[row] = at_dense[best] if dense_bytes else min(0.0, at_dense[best])
    rows.of_total[row, Load.GRADIENT_BYTES] = floors[best].ms_per_total_byte
    rows.of_shard[row, Load.GRADIENT_BYTES] = floors[best].ms_per_own_byte


def _link_classes(problem: PlanningProblem) -> list[tuple[str, Load, NDArray[np.float64]]]:
    """Each link class in use, the load of its pooled bytes, and the peers [W] that each rank has on it."""
    node_size, world_size = problem.devices.node_size, problem.topology.world_size
    within = ("intra_node", Load.INTRA_BYTES, node_size - 1)
    between = ("inter_node", Load.INTER_BYTES, world_size - node_size)
    return [within] if len(problem.topology.nodes) == 1 else [within, between]


def _group_size(problem: PlanningProblem, link: str) -> int:
    return int(problem.devices.node_size.max()) if link == "intra_node" else problem.topology.world_size


def _bound_exchange(
    problem: PlanningProblem,
    rows: _Rows,
    pooled: Load,
    rate_ms: NDArray[np.float64],
    own_rate_ms: NDArray[np.float64],
    constant_ms: float,
) -> None:
    """Bounds all exchanges by one plane: rates [W] of totals, and of the bytes that a rank sends itself."""
    runs = _must_exchange(problem) and bool((problem.topology.world_size > 1) and (rate_ms > 0).all())
    for phase in EXCHANGES:
        row, column = PHASES.index(phase), Load.ID_BYTES if phase == "input_dist" else pooled
        rows.of_total[row, column] = 1 / (1 / rate_ms).sum() if (rate_ms > 0).all() else 0.0
        rows.of_shard[row, column] = own_rate_ms.min()
        rows.constant_ms[row] = constant_ms if runs else min(0.0, constant_ms)


def _must_exchange(problem: PlanningProblem) -> bool:
    return not is_data_parallel_legal(problem.workload.optimizer) or any(
        rule.sharding_types is not None and ShardingType.DATA_PARALLEL not in rule.sharding_types
        for rule in problem.rules.values()
    )


def _even_ms(rate_ms: NDArray[np.float64]) -> float:
    """The harmonic mean of rates > 0: of a unit of load on each rank when it is spread by speed."""
    return float(len(rate_ms) / (1 / rate_ms).sum())


def _inverse_weights(rate_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights [W] in inverse proportion to rates > 0."""
    return np.asarray(1 / rate_ms / (1 / rate_ms).sum())


def _calibrated(estimator: StepEstimator, problem: PlanningProblem, rows: _Rows) -> LinearBound:
    """The bound of calibrated phases."""
    if estimator.host is None:
        return LinearBound(rows.of_total, rows.of_shard, rows.constant_ms)
    scale = estimator.host.scale
    constant_ms = scale * rows.constant_ms + estimator.host.least_ms(problem)
    of_total, of_shard = scale[:, None] * rows.of_total, scale[:, None] * rows.of_shard
    return LinearBound(of_total, of_shard, constant_ms, 1.0 + estimator.host.waiting)
