"""What a migration costs: estimated before the first one of a run, as measured from then on."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from planner.cost.step import StepEstimator
from planner.problem import PlanningProblem
from planner.replan import MovePrice

MS_PER_S = 1e3

FIXED_MS = 250.0
"""Pause of a migration beside its transfers, before one was measured: draining the pipeline, building sharded tables
anew, checksums, agreeing. The quick start's tables take 100 to 360 ms on two shared CPU cores."""

PRICED_BYTES = 64 * 2**20
"""The message whose time tells the bandwidth: latency is no part of it, and a move of a table is of this order."""

LEAST_BYTES = 2**20
"""A migration that moved less says nothing of the bandwidth."""


class PriceList:
    """The price of moving: medians over what this run's migrations cost, the estimate where there is none."""

    def __init__(self, estimated: MovePrice) -> None:
        """No migration was measured yet."""
        self._estimated = estimated
        self._fixed_ms: list[float] = []
        self._bytes_per_s: list[float] = []

    @property
    def present(self) -> MovePrice:
        """The price as it is known now."""
        return MovePrice(
            fixed_ms=float(np.median(self._fixed_ms or [self._estimated.fixed_ms])),
            bytes_per_s=float(np.median(self._bytes_per_s or [self._estimated.bytes_per_s])),
        )

    def learn(self, migration: Mapping[str, Any]) -> None:
        """Take the record of a migration that was committed."""
        transfer_ms, num_bytes = migration["transfer_ms"], migration["moved_bytes"]
        self._fixed_ms.append(max(0.0, migration["pause_ms"] - transfer_ms))
        if num_bytes >= LEAST_BYTES and transfer_ms > 0:
            self._bytes_per_s.append(num_bytes / transfer_ms * MS_PER_S)


def estimate_price(problem: PlanningProblem, estimator: StepEstimator) -> MovePrice:
    """The price before anything was moved: bytes as in an all-to-all in which one rank sends to one other.

    That is the slowest way to move so many bytes, and the usual one: most moves are of a table from a rank to another.
    Between nodes the slower link counts. A single rank has nothing to move: its bandwidth is without bound.
    """
    world_size, num_nodes = problem.topology.world_size, len(problem.topology.nodes)
    if world_size < 2:
        return MovePrice(fixed_ms=FIXED_MS, bytes_per_s=np.inf)
    link = "intra_node" if num_nodes == 1 else "inter_node"
    sent, received = np.zeros(world_size), np.zeros(world_size)
    sent[0] = received[-1] = PRICED_BYTES
    needed_ms = estimator.collectives(problem).transfer_ms("all_to_all", link, world_size, sent, received)
    return MovePrice(fixed_ms=FIXED_MS, bytes_per_s=PRICED_BYTES / float(needed_ms.max()) * MS_PER_S)
