"""The second half of `shardwright pretrain cost`: fits what the host adds to kernels, from measured steps."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launcher.bench.step_measurement import MeasurementFile, StepMeasurement
from launcher.run_dir import write_beside
from planner.cost.compute import ComputeModel
from planner.cost.host_fit import MeasuredStep, critical_ms, fit_host
from planner.cost.learned import measured_kernels
from planner.cost.pretrained import HOST_FILE
from planner.errors import PlanningError
from planner.profile import Profile
from planner.topology import Topology

LEAST_STEPS = 20
"""Fewer configurations do not tell the terms apart."""


def pretrain_host(steps: Path, profiles: Sequence[Profile], model: ComputeModel, folder: Path) -> Path:
    """Fits the host's costs and writes `<device type>_host.json`.

    Args:
        steps: A file of measured steps, as `bench cost` keeps them.
        profiles: Of the machine that they ran on, one for each optimizer among them.
        model: Its lookup costs.
        folder: Where the file goes.

    Raises:
        PlanningError: Too few steps, or of an optimizer that no profile has (reason `weights`).
        ValueError: The file holds other lines.
    """
    measured = tuple(MeasurementFile(steps).read())
    if len(measured) < LEAST_STEPS:
        raise PlanningError(
            f"{steps} holds {len(measured)} measured steps, expected at least {LEAST_STEPS}: measure more with "
            "`shardwright bench cost --steps N`",
            reason="weights",
        )
    kernels = {_optimizer(profile): measured_kernels(profile.topology, profile, model) for profile in profiles}
    missing = {each.config.optimizer.sparse.kind for each in measured} - set(kernels)
    if missing:
        raise PlanningError(
            f"{steps} has steps with {', '.join(sorted(missing))}, the profiles only lookups with "
            f"{', '.join(sorted(kernels))}; give a profile of each optimizer",
            reason="weights",
        )
    topology = profiles[0].topology
    priced = [(kernels[each.config.optimizer.sparse.kind], measured_step(each, topology)) for each in measured]
    host = fit_host(priced)
    canary_ms = float(np.mean([device.dense_canary.median_ms for device in profiles[0].devices]))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / HOST_FILE.format(topology.devices[0].type)
    content = {"host": host.scaled(1 / canary_ms).to_dict(), "card": _card(measured, profiles, canary_ms)}
    write_beside(path, json.dumps(content, indent=1) + "\n")
    return path


def measured_step(measurement: StepMeasurement, topology: Topology) -> MeasuredStep:
    """A measurement as `fit_host` wants it."""
    return MeasuredStep(
        problem=measurement.problem(topology),
        plan=measurement.plan,
        phases_ms=critical_ms(measurement.phases_ms),
        step_ms=measurement.step.median_ms,
    )


def _optimizer(profile: Profile) -> str:
    """The optimizer of a profile's lookups; every set has the same."""
    return profile.devices[0].lookups[0].lookups.optimizer.value


def _card(measured: Sequence[StepMeasurement], profiles: Sequence[Profile], canary_ms: float) -> dict[str, Any]:
    """What the costs were fitted to."""
    step_ms = [each.step.median_ms for each in measured]
    return {
        "num_steps": len(measured),
        "step_ms": [min(step_ms), max(step_ms)],
        "dense_canary_ms": canary_ms,
        "fingerprints": [profile.fingerprint for profile in profiles],
    }
