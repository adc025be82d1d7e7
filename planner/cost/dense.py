"""Times of dense layers from measured chains of linear layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from planner.problem import PlanningProblem
from planner.profile import DenseMeasurement

DENSE_TERMS = ("layers", "flops", "activations", "parameters")
"""What dense time grows with: layers launched, operations, floats moved between layers, weights read."""


@dataclass(frozen=True, eq=False)
class DenseModel:
    """Times linear in `DENSE_TERMS`, in units of the device's fixed matrix product.

    Attributes:
        cost: float64 [2, len(DENSE_TERMS)], canaries a unit of each term, forward and backward.
        canary_ms: float64 [W or 1], of each rank's device.
    """

    cost: NDArray[np.float64]
    canary_ms: NDArray[np.float64]

    def times_ms(self, problem: PlanningProblem) -> NDArray[np.float64]:
        """Milliseconds [2, W] forward and backward of a step."""
        workload = problem.workload
        terms = np.array(
            [
                workload.dense_layers,
                workload.batch_size * workload.dense_flops_per_sample,
                workload.batch_size * workload.dense_activations,
                workload.dense_parameters,
            ]
        )
        canary_ms = np.broadcast_to(self.canary_ms, problem.topology.world_size)
        return np.asarray((self.cost @ terms)[:, None] * canary_ms)


def fit_dense(measurements: Sequence[DenseMeasurement]) -> NDArray[np.float64]:
    """The costs [2, len(DENSE_TERMS)] of `DenseModel`: non-negative least squares on relative error.

    Source: Lawson and Hanson 1974, Solving Least Squares Problems, chapter 23 (`scipy.optimize.nnls`).
    """
    from scipy.optimize import nnls

    terms = np.array([_chain_terms(each) for each in measurements])
    times = np.array([(each.forward.median_ms, each.backward.median_ms) for each in measurements])
    times = times / np.array([each.canary_ms for each in measurements])[:, None]
    scale = np.maximum(terms.max(axis=0), 1e-30)
    fits = [nnls(terms / scale / column[:, None], np.ones(len(terms)))[0] / scale for column in times.T]
    return np.array(fits)


def _chain_terms(measured: DenseMeasurement) -> tuple[float, ...]:
    weights = [inputs * outputs for inputs, outputs in pairwise(measured.layer_sizes)]
    floats = [inputs + outputs for inputs, outputs in pairwise(measured.layer_sizes)]
    return (
        len(weights),
        2.0 * measured.samples * sum(weights),
        float(measured.samples * sum(floats)),
        float(sum(weights) + sum(measured.layer_sizes[1:])),
    )
