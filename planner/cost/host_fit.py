"""Fits the host's own time to measured steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import COMMS_PHASES, PHASES
from planner.cost.host import GROUPS, HOST_TERMS, SHARDS, HostCost, fixed_terms
from planner.cost.loads import NUM_TRAFFIC, Load, shard_traffic
from planner.cost.step import StepEstimator
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.shards import plan_shards

PHASE_TERMS = {
    "input_dist": ("step", "features", "groups", "bags", "ids"),
    "lookup_forward": ("step", "groups", "shards", "bags"),
    "output_dist_forward": ("step", "features", "groups", "pooled"),
    "dense_forward": ("step", "features", "layers", "pooled", "activations"),
    "dense_backward": ("step", "features", "layers", "pooled", "activations"),
    "output_dist_backward": ("step", "features", "groups", "pooled"),
    "lookup_backward": ("step", "groups", "shards", "bags"),
    "all_reduce": ("step", "layers", "parameters"),
    "optimizer": ("step", "layers", "parameters"),
    "other": ("step", "features", "bags", "ids", "pooled", "activations"),
}
"""The terms that may explain a phase: what the host touches in it."""

STEP_SHARE = 0.05
"""A phase's error counts relative to the phase plus this share of the step: short phases need not be exact."""

SCALE_WEIGHT = 0.1
"""Pull of the scale towards 1, in relative errors for each measured step."""


@dataclass(frozen=True, eq=False)
class MeasuredStep:
    """A step that was run: its problem and plan, and each phase's time without waiting for other ranks.

    Attributes:
        problem: What was trained.
        plan: How.
        phases_ms: float64 [P].
        step_ms: The whole step of the slowest rank.
    """

    problem: PlanningProblem
    plan: ShardingPlan
    phases_ms: NDArray[np.float64]
    step_ms: float


def critical_ms(phases_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each phase's time [P] on the critical path, of measured phases [P, W].

    A collective holds the wait for its last rank, so the rank that waits least tells its transfer; any other
    phase is as long as on its slowest rank.
    """
    is_collective = np.array([phase in COMMS_PHASES for phase in PHASES])
    return np.where(is_collective, phases_ms.min(axis=1), phases_ms.max(axis=1))


def fit_host(priced: Sequence[tuple[StepEstimator, MeasuredStep]]) -> HostCost:
    """The host's costs that explain steps best beside kernels and transfers; each step with an estimator of these.

    Non-negative least squares a phase, on relative errors. Source: Lawson and Hanson 1974, chapter 23.
    """
    steps = [step for _, step in priced]
    own, terms = zip(*(_explain(kernels, step) for kernels, step in priced), strict=True)
    times = np.array([step.phases_ms for step in steps])
    weights = 1.0 / (times + STEP_SHARE * np.array([step.step_ms for step in steps])[:, None])
    scale, cost = np.ones(len(PHASES)), np.zeros((len(PHASES), len(HOST_TERMS)))
    for row, phase in enumerate(PHASES):
        used = [HOST_TERMS.index(name) for name in PHASE_TERMS[phase]]
        fitted = _fit_phase(np.array(own)[:, row], np.array(terms)[:, used], times[:, row], weights[:, row])
        scale[row], cost[row, used] = fitted[0], fitted[1:]
    # What is left of a step when its phases are added up: the median over steps of waiting is in no phase's median.
    step_ms = np.array([step.step_ms for step in steps])
    return HostCost(scale, cost, float(max(0.0, np.median(step_ms / times.sum(axis=1)) - 1.0)))


def _explain(kernels: StepEstimator, step: MeasuredStep) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Kernels and transfers [P] of a step's slowest ranks, and its host terms [len(HOST_TERMS)]."""
    shards = plan_shards(step.problem, step.plan)
    traffic = np.zeros((step.problem.topology.world_size, NUM_TRAFFIC))
    np.add.at(traffic, shards.rank, shard_traffic(step.problem, shards))
    num_shards = traffic[:, Load.FIRST_TYPE :]
    terms = fixed_terms(step.problem)
    terms[GROUPS], terms[SHARDS] = (num_shards > 0).any(axis=0).sum(), num_shards.sum(axis=1).max()
    return kernels.estimate(step.problem, step.plan).phases_ms.max(axis=1), terms


def _fit_phase(
    own: NDArray[np.float64], terms: NDArray[np.float64], times: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Scale and costs of the terms of one phase; a phase without kernels keeps the scale 1."""
    from scipy.optimize import nnls

    columns = np.concatenate([own[:, None], terms], axis=1)
    size = np.maximum(np.abs(columns).max(axis=0), 1e-30)
    pull = np.zeros((1, columns.shape[1]))
    pull[0, 0] = SCALE_WEIGHT * len(times) / size[0]
    rows = np.concatenate([columns / size * weights[:, None], pull])
    fitted, _ = nnls(rows, np.concatenate([times * weights, [SCALE_WEIGHT * len(times)]]))
    return np.asarray(fitted / size if own.max() > 0 else np.concatenate([[1.0], (fitted / size)[1:]]))
