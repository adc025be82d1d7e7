"""The host's own time: what a step takes beside its kernels and transfers, and how far those are off in a step.

Kernels measured alone are not yet a step: TorchRec permutes ids, autograd walks its graph, the optimizer visits
every parameter. Each phase of a measured step is explained as

    scale_p x (kernels and transfers of the phase) + sum over terms j of cost_pj x term_j

with scales and costs >= 0. And ranks are never quite equally fast in every step: at each collective all wait for
the one that is late this time, which takes a share of all other time and is counted in the phase `other`.

Source: Lin et al. 2022, arXiv 2201.07821, section 4.3, whose five host overheads are these terms per operator; here
one term stands for all operators whose number it decides.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import PHASES
from planner.errors import PlanningError
from planner.problem import PlanningProblem

HOST_TERMS = (
    "step",
    "features",
    "groups",
    "shards",
    "bags",
    "ids",
    "pooled",
    "layers",
    "activations",
    "parameters",
)
"""What the host's work in a step grows with.

step: 1. features: sparse features of the model. groups: sharding types in use. shards: on the rank. bags: samples of
the rank x features. ids: of the rank's own samples. pooled: floats of its pooled rows. layers: dense operations.
activations: floats between them, of the rank's samples. parameters: of the dense part.
"""

OTHER = PHASES.index("other")
GROUPS, SHARDS = HOST_TERMS.index("groups"), HOST_TERMS.index("shards")


@dataclass(frozen=True, eq=False)
class HostCost:
    """Calibrated phases.

    Attributes:
        scale: float64 [P], of kernels and transfers.
        cost_ms: float64 [P, len(HOST_TERMS)], milliseconds a unit of each term.
        waiting: Share of all phases' time that ranks wait for one another beyond what their own work explains.
    """

    scale: NDArray[np.float64]
    cost_ms: NDArray[np.float64]
    waiting: float

    def add(
        self, problem: PlanningProblem, own_ms: NDArray[np.float64], num_shards: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Phases [..., P, W] with the host's time.

        Args:
            problem: What is trained.
            own_ms: [..., P, W] kernels and transfers.
            num_shards: [..., W, types] shards of each sharding type on each rank.
        """
        groups = (num_shards > 0).any(axis=-2).sum(axis=-1)[..., None, None]
        shards = num_shards.sum(axis=-1)[..., None, :]
        varying = self.cost_ms[:, GROUPS, None] * groups + self.cost_ms[:, SHARDS, None] * shards
        phases_ms = self.scale[:, None] * own_ms + self.least_ms(problem)[:, None] + varying
        phases_ms[..., OTHER, :] += self.waiting * phases_ms.max(axis=-1).sum(axis=-1, keepdims=True)
        return np.asarray(phases_ms)

    def least_ms(self, problem: PlanningProblem) -> NDArray[np.float64]:
        """Milliseconds [P] of the terms that no plan changes."""
        return np.asarray(self.cost_ms @ fixed_terms(problem))

    def scaled(self, factor: float) -> "HostCost":
        """The same on a host that is slower by a factor."""
        return HostCost(self.scale, self.cost_ms * factor, self.waiting)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, by phase and term."""
        phases = {
            phase: {"scale": float(scale), "cost_ms": dict(zip(HOST_TERMS, map(float, costs), strict=True))}
            for phase, scale, costs in zip(PHASES, self.scale, self.cost_ms, strict=True)
        }
        return {"phases": phases, "waiting": self.waiting}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "HostCost":
        """What `to_dict` gave; raises PlanningError (reason `weights`) for other content."""
        try:
            phases = content["phases"]
            scale = np.array([float(phases[phase]["scale"]) for phase in PHASES])
            costs = [[float(phases[phase]["cost_ms"][term]) for term in HOST_TERMS] for phase in PHASES]
            waiting = float(content["waiting"])
        except (KeyError, TypeError, ValueError) as error:
            raise PlanningError(f"host costs: {type(error).__name__}: {error}", reason="weights") from error
        return cls(scale, np.array(costs), waiting)


def fixed_terms(problem: PlanningProblem) -> NDArray[np.float64]:
    """Terms [len(HOST_TERMS)] of a step; those that depend on the plan are 0."""
    workload, tables = problem.workload, problem.arrays
    batch = workload.batch_size
    terms = dict.fromkeys(HOST_TERMS, 0.0) | {
        "step": 1.0,
        "features": tables.num_features.sum(),
        "bags": batch * tables.num_features.sum(),
        "ids": batch * tables.ids_per_sample.sum(),
        "pooled": batch * (tables.num_features * tables.num_cols).sum(),
        "layers": float(workload.dense_layers),
        "activations": batch * workload.dense_activations,
        "parameters": float(workload.dense_parameters),
    }
    return np.array([terms[name] for name in HOST_TERMS], dtype=np.float64)
