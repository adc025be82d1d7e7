"""The mixed-integer program of a small planning problem: which placement each unit takes, so that the step is shortest.

Variables: one 0-1 choice for each placement; z_y whether any table has sharding type y, k_qy whether rank q has a shard
of it, z_any whether anything is exchanged; t_p the slowest rank's time in phase p. Every inequality says what one rank
takes at least in one phase, as `planner.cost.step` computes it: maxima of planes are one row each, and a lookup, which
is convex in the loads, has a row for each tangent. At the loads where its tangents touch the program is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.comms import moved_share
from planner.cost.estimator import PHASES
from planner.cost.host import GROUPS, SHARDS
from planner.cost.loads import NUM_TRAFFIC, REPLICATED, Load
from planner.cost.step import StepEstimator
from planner.cost.step_bounds import GRADIENT_PASSES, UPDATE_PASSES, ring_link
from planner.memory import FLOAT_BYTES
from planner.problem import PlanningProblem
from planner.sharding import TYPE_ORDER

Rows = NDArray[np.float64]
"""Linear functions [W, variables + 1] of the variables, one a rank; the last column is the constant."""

NUM_TYPES = len(TYPE_ORDER)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where variables stand: N choices, types, any, kernels by rank and type, phases, then the constant."""

    num_choices: int
    world_size: int

    @property
    def types(self) -> int:
        """The first z_y."""
        return self.num_choices

    @property
    def any_exchange(self) -> int:
        """z_any."""
        return self.types + NUM_TYPES

    @property
    def kernels(self) -> int:
        """The first k_qy."""
        return self.any_exchange + 1

    @property
    def phases(self) -> int:
        """The first t_p."""
        return self.kernels + self.world_size * NUM_TYPES

    @property
    def constant(self) -> int:
        """The constant, and the number of variables."""
        return self.phases + len(PHASES)


class StepRows:
    """Inequalities row . (variables, 1) <= 0 that make t_p at least what every rank takes in phase p.

    Times are in units of `unit_ms`, so that the solver's absolute tolerances mean the same for all problems.

    Attributes:
        layout: Of the variables.
        unit_ms: A step of the order of magnitude that plans have.
    """

    def __init__(self, problem: PlanningProblem, estimator: StepEstimator, loads: NDArray[np.float64]) -> None:
        """Takes the loads [N, W, K] that each choice puts on each rank."""
        self._problem, self._estimator = problem, estimator
        self.unit_ms = float(estimator.phases_ms(problem, loads.mean(axis=0)).max(axis=-1).sum())
        self.layout = Layout(len(loads), problem.topology.world_size)
        self._loads = np.zeros((loads.shape[1], self.layout.constant + 1, loads.shape[2]))
        self._loads[:, : len(loads)] = loads.transpose(1, 0, 2)

    def lookup_rows(self, at: NDArray[np.float64]) -> Rows:
        """Rows of both lookup phases, exact at loads [W, K] of all ranks."""
        problem, lookups, ranks = self._problem, self._estimator.lookups, np.arange(self.layout.world_size)
        points, one = at[:, NUM_TRAFFIC:], np.ones(len(at))
        at_ms = lookups.times_ms(problem, points, one, ranks)
        kernel_ms = lookups.times_ms(problem, points, 2 * one, ranks) - at_ms
        floors = lookups.floors(problem, list(points))[-len(points) :]
        found = []
        for index, phase in enumerate(("lookup_forward", "lookup_backward")):
            slopes = np.array([floor.rate_ms[index, rank] * floor.price[index] for rank, floor in enumerate(floors)])
            rows = np.einsum("wvk,wk->wv", self._loads[..., NUM_TRAFFIC:], slopes)
            rows[:, -1] += at_ms[index] - (slopes * points).sum(axis=1) - kernel_ms[index]
            for rank in ranks:
                first = self.layout.kernels + rank * NUM_TYPES
                rows[rank, first : first + NUM_TYPES] += kernel_ms[index, rank]
            if phase == "lookup_backward":
                rows += self._byte_rows(Load.GRADIENT_BYTES, GRADIENT_PASSES * self._estimator.byte_ms(problem))
            found.append(self._as_limits(phase, rows))
        return np.concatenate(found)

    def fixed_rows(self) -> Rows:
        """Rows of all other phases, and of what the host adds to each of them."""
        idle = np.zeros(self._loads.shape[:2])
        found = [self._as_limits(phase, idle) for phase in PHASES]
        dense_ms = self._estimator.dense.times_ms(self._problem)
        for phase, times_ms in zip(("dense_forward", "dense_backward"), dense_ms, strict=True):
            found.append(self._as_limits(phase, _constant(idle, times_ms)))
        found += [
            self._as_limits(phase, rows)
            for phase, loads in (
                ("input_dist", (Load.ID_BYTES, Load.ID_BYTES)),
                ("output_dist_forward", (Load.INTRA_BYTES, Load.INTER_BYTES)),
                ("output_dist_backward", (Load.INTRA_BYTES, Load.INTER_BYTES)),
            )
            for rows in self._exchange_rows(*loads)
        ]
        found += [self._as_limits("all_reduce", rows) for rows in self._all_reduce_rows()]
        update_ms = UPDATE_PASSES * self._estimator.byte_ms(self._problem)
        updates = self._byte_rows(Load.GRADIENT_BYTES, update_ms)
        found.append(self._as_limits("optimizer", updates + _constant(idle, update_ms * self._dense_bytes)))
        return np.concatenate(found)

    @property
    def _dense_bytes(self) -> float:
        return float(self._problem.workload.dense_parameters * FLOAT_BYTES)

    def _byte_rows(self, load: Load, ms_per_byte: NDArray[np.float64]) -> Rows:
        return np.asarray(self._loads[..., load] * ms_per_byte[:, None])

    def _exchange_rows(self, intra: Load, inter: Load) -> list[Rows]:
        """Rows of an all-to-all for each link class and plane; ranks without peers on a link have none."""
        topology, devices = self._problem.topology, self._problem.devices
        inside, across = self._loads[..., intra], self._loads[..., inter]
        inside_sums, across_sums = (devices.node_sums(each.T).T for each in (inside, across))
        peers, others = devices.node_size - 1, topology.world_size - devices.node_size
        links = [("intra_node", int(devices.node_size.max()), peers, inside, inside_sums - inside)]
        if len(topology.nodes) > 1:
            received = across.sum(axis=0, keepdims=True) - across_sums
            links.append(("inter_node", topology.world_size, others, across, received))
        found = []
        for link, group_size, number, sent, received in links:
            if group_size < 2:
                continue
            planes = self._estimator.collectives(self._problem).planes("all_to_all", link, group_size)
            for constant, out, into, _ in planes:
                rows = out * number[:, None] * sent + into * received
                rows[:, self._exchanged_types()] += planes[0, 0]
                rows[:, self.layout.any_exchange] += constant - planes[0, 0]
                found.append(rows * (number > 0)[:, None])
        return found

    def _exchanged_types(self) -> NDArray[np.int64]:
        return np.array([self.layout.types + code for code in range(NUM_TYPES) if code != REPLICATED])

    def _all_reduce_rows(self) -> list[Rows]:
        topology = self._problem.topology
        world_size = topology.world_size
        if world_size < 2:
            return []
        collectives = self._estimator.collectives(self._problem)
        share, sent = moved_share("all_reduce", world_size), self._loads[..., Load.GRADIENT_BYTES].copy()
        sent[:, -1] += self._dense_bytes
        received = (sent.sum(axis=0, keepdims=True) - sent) / (world_size - 1)
        found = []
        for constant, out, into, _ in collectives.planes("all_reduce", ring_link(topology), world_size):
            rows = share * (out * sent + into * received)
            # Without a dense part it runs for replicated tables only.
            rows[:, -1 if self._dense_bytes else self.layout.types + REPLICATED] += constant
            found.append(rows)
        return found

    def _as_limits(self, phase: str, own: Rows) -> Rows:
        """Own times of a phase with the host's, less t_p."""
        row, host = PHASES.index(phase), self._estimator.host
        limits = own.copy()
        if host is not None:
            limits *= host.scale[row]
            limits[:, -1] += host.least_ms(self._problem)[row]
            limits[:, self.layout.types : self.layout.types + NUM_TYPES] += host.cost_ms[row, GROUPS]
            limits += host.cost_ms[row, SHARDS] * self._loads[..., Load.FIRST_TYPE : NUM_TRAFFIC].sum(axis=-1)
        limits /= self.unit_ms
        limits[:, self.layout.phases + row] -= 1.0
        return limits


def presence_rows(layout: Layout, units: Sequence[NDArray[np.int64]], on_rank: NDArray[np.bool_]) -> Rows:
    """Rows that switch k_qy, z_y and z_any on.

    Args:
        layout: Of the variables.
        units: Choices of each unit.
        on_rank: [N, W, types], whether a choice puts a shard of a type on a rank.
    """
    rows = []
    for rank in range(layout.world_size):
        for code in range(NUM_TYPES):
            kernel = layout.kernels + rank * NUM_TYPES + code
            for choices in units:
                users = choices[on_rank[choices, rank, code]]
                if len(users):
                    rows.append(_row(layout, {**dict.fromkeys(users.tolist(), 1.0), kernel: -1.0}))
            rows.append(_row(layout, {kernel: 1.0, layout.types + code: -1.0}))
    exchanged = [layout.types + code for code in range(NUM_TYPES) if code != REPLICATED]
    rows += [_row(layout, {each: 1.0, layout.any_exchange: -1.0}) for each in exchanged]
    rows.append(_row(layout, {layout.any_exchange: 1.0, **dict.fromkeys(exchanged, -1.0)}))
    return np.array(rows)


def _row(layout: Layout, coefficients: dict[int, float]) -> NDArray[np.float64]:
    row = np.zeros(layout.constant + 1)
    row[list(coefficients)] = list(coefficients.values())
    return row


def _constant(like: Rows, values: NDArray[np.float64]) -> Rows:
    rows = np.zeros_like(like)
    rows[:, -1] = values
    return rows
