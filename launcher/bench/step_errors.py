"""Estimates of whole steps beside steps measured through the real trainer.

`ours` is the estimator that `train` uses: the profile of the same devices and optimizer, found or measured now.
`ours_scaled` and `torchrec` are multiplied by the one constant that suits these very steps best; of ours this shows
how much of its error is a common factor, such as a machine that is slower today.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.bench.step_configs import draw_configs
from launcher.bench.step_measurement import StepMeasurement
from launcher.estimators import build_estimator
from launcher.preparation import find_weights
from launcher.schema import RunConfig
from planner.cost.estimator import PHASES, Estimator
from planner.cost.host_fit import critical_ms
from planner.profile import Profile

SEED_OFFSET = 1_000_003
"""Added to the benchmark's seed: the shipped costs of the host were fitted to configurations of small seeds."""

LEAST_ERROR = 1e-4
"""A smaller relative error counts as this in the geometric mean, which one lucky hit would otherwise make 0."""

FindProfile = Callable[[RunConfig], Profile]
"""The profile that `train` would use for a configuration."""


@dataclass(frozen=True, eq=False)
class StepEstimates:
    """Estimates for N measured steps.

    Attributes:
        measured_ms: float64 [N].
        ours_ms: float64 [N].
        torchrec_ms: float64 [N], not scaled.
        measured_phases_ms: float64 [N, P], on the critical path.
        ours_phases_ms: float64 [N, P].
    """

    measured_ms: NDArray[np.float64]
    ours_ms: NDArray[np.float64]
    torchrec_ms: NDArray[np.float64]
    measured_phases_ms: NDArray[np.float64]
    ours_phases_ms: NDArray[np.float64]


def held_out_configs(config: RunConfig, count: int, seed: int) -> list[RunConfig]:
    """Configurations that no estimator was fitted to, on the cluster and below the folder of runs of `config`."""
    drawn = draw_configs(count, SEED_OFFSET + seed)
    for each in drawn:
        each.cluster.address, each.run.dir = config.cluster.address, config.run.dir
    return drawn


def estimate_steps(
    measurements: Sequence[StepMeasurement], config: RunConfig, find_profile: FindProfile
) -> StepEstimates:
    """Prices the measured plans; `find_profile` is asked once for every optimizer."""
    from launcher.bench.torchrec_steps import estimate_step_ms

    known: dict[str, tuple[Profile, Estimator]] = {}
    costs, torchrec_ms = [], []
    for each in measurements:
        kind = each.config.optimizer.sparse.kind
        if kind not in known:
            profile = find_profile(with_profile_of(each.config, config))
            known[kind] = profile, build_estimator(profile.topology, profile, find_weights(config))
        profile, estimator = known[kind]
        problem = each.problem(profile.topology)
        costs.append(estimator.estimate(problem, each.plan))
        torchrec_ms.append(estimate_step_ms(problem, each.plan, profile))
    return StepEstimates(
        measured_ms=np.array([each.step.median_ms for each in measurements]),
        ours_ms=np.array([cost.step_ms for cost in costs]),
        torchrec_ms=np.array(torchrec_ms),
        measured_phases_ms=np.array([_phases_of_step(each) for each in measurements]),
        ours_phases_ms=np.array([cost.phases_ms.max(axis=1) for cost in costs]),
    )


def _phases_of_step(measurement: StepMeasurement) -> NDArray[np.float64]:
    """Phases [P] on the critical path; `other` holds what is left of the step: waiting for late ranks too."""
    phases_ms, other = critical_ms(measurement.phases_ms), PHASES.index("other")
    phases_ms[other] = measurement.step.median_ms - np.delete(phases_ms, other).sum()
    return phases_ms


def with_profile_of(measured: RunConfig, config: RunConfig) -> RunConfig:
    """A measured configuration with the section `profile` of another one, which decides what is measured."""
    copy = deepcopy(measured)
    copy.profile, copy.run.dir, copy.cluster.address = config.profile, config.run.dir, config.cluster.address
    return copy


def bench_steps(estimates: StepEstimates) -> dict[str, Any]:
    """The section `step` of the report."""
    scales = {
        "ours": 1.0,
        "ours_scaled": best_scale(estimates.ours_ms, estimates.measured_ms),
        "torchrec": best_scale(estimates.torchrec_ms, estimates.measured_ms),
    }
    sources = {"ours": estimates.ours_ms, "ours_scaled": estimates.ours_ms, "torchrec": estimates.torchrec_ms}
    return {
        name: step_errors(scale * sources[name], estimates.measured_ms) | {"scale": scale}
        for name, scale in scales.items()
    } | {"phases": phase_errors(estimates), "num_steps": len(estimates.measured_ms)}


def best_scale(estimated_ms: NDArray[np.float64], measured_ms: NDArray[np.float64]) -> float:
    """c of least squared log(c estimate / measured), their geometric mean ratio.

    A constant of least mean error would make one of the errors exactly 0, and with it the geometric mean too good.
    """
    return float(np.exp(np.log(measured_ms / estimated_ms).mean()))


def step_errors(estimated_ms: NDArray[np.float64], measured_ms: NDArray[np.float64]) -> dict[str, float]:
    """Relative errors of steps: geometric mean, mean and median of their sizes, and the mean of them with their sign.

    The geometric mean is exp(mean(log(max(|error|, `LEAST_ERROR`)))). Source: Lin et al. 2022, arXiv 2201.07821,
    section 5, whose figure it is; it is below the mean, which is why that stands beside it.

    >>> step_errors(np.array([1.01, 0.96]), np.array([1.0, 1.0]))["geomean_error"]  # doctest: +ELLIPSIS
    0.0199999...
    """
    errors = estimated_ms / measured_ms - 1
    sizes = np.abs(errors)
    return {
        "geomean_error": float(np.exp(np.log(np.maximum(sizes, LEAST_ERROR)).mean())),
        "mean_error": float(sizes.mean()),
        "median_error": float(np.median(sizes)),
        "bias": float(errors.mean()),
    }


def phase_errors(estimates: StepEstimates) -> dict[str, dict[str, float]]:
    """For each phase the mean measured and estimated ms, and the mean size of the error, in ms and of the step.

    A collective's measured time is that of the rank that waited least, any other phase's that of the slowest rank.
    """
    errors_ms = np.abs(estimates.ours_phases_ms - estimates.measured_phases_ms)
    return {
        phase: {
            "measured_ms": float(estimates.measured_phases_ms[:, row].mean()),
            "estimated_ms": float(estimates.ours_phases_ms[:, row].mean()),
            "mean_error_ms": float(errors_ms[:, row].mean()),
            "mean_error_of_step": float((errors_ms[:, row] / estimates.measured_ms).mean()),
        }
        for row, phase in enumerate(PHASES)
    }
