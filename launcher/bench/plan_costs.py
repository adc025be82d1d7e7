"""What planning tasks are placed on and priced with."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from launcher.hardware import preset_folder
from planner.cost.analytic import AnalyticDense, AnalyticEstimator
from planner.cost.step import StepEstimator
from planner.errors import PlanningError
from planner.profile_file import load_profile
from planner.topology import Device, DeviceType, Topology, load_topology

CPU_PRESET = "cpu_x2.yaml"
"""The shipped topology whose links and processor figures a node of CPU ranks has."""


@dataclass(frozen=True, eq=False)
class PricedDevices:
    """Devices and the cost model of plans for them.

    Attributes:
        topology: The devices.
        estimator: Prices lookups and transfers; tasks have no dense part.
        cost_model: What it is made of, for people.
    """

    topology: Topology
    estimator: StepEstimator
    cost_model: str


def price_cpu_node(num_ranks: int, memory_bytes: int) -> PricedDevices:
    """A node of CPU ranks, lookups by the shipped weights, transfers by the shipped CPU preset's links.

    Raises:
        PlanningError: No weights are shipped for CPU (reason `weights`).
    """
    from planner.cost.learned import LearnedLookups
    from planner.cost.pretrained import load_pretrained

    preset = load_topology(preset_folder() / CPU_PRESET)
    topology = _one_node(preset, preset.devices[0], num_ranks, memory_bytes)
    model = load_pretrained(DeviceType.CPU)
    if model is None:
        raise PlanningError("no lookup weights are shipped for cpu devices; give --profile FILE", reason="weights")
    canary_ms = float(model.card["canary_ms"])
    return PricedDevices(
        topology,
        StepEstimator(LearnedLookups(model, np.full(num_ranks, canary_ms)), AnalyticDense()),
        f"learned: shipped lookup weights for cpu (canary {canary_ms:.3f} ms), links of {preset.name}; "
        "lookups and transfers only",
    )


def price_profiled_node(profile_path: Path, num_ranks: int, memory_bytes: int) -> PricedDevices:
    """A node of ranks as a profile measured them: lookups adapted to its sets, its collectives.

    Raises:
        PlanningError: The profile cannot be read or learned from, or has several device kinds (reason `profile`).
    """
    from planner.cost.learned import learn_compute, measured_kernels

    profile = load_profile(profile_path)
    kinds = [device.kind for device in profile.devices]
    if len(kinds) != 1:
        raise PlanningError(
            f"profile {profile_path} has the device kinds {', '.join(kinds)}, expected one for {num_ranks} equal "
            "ranks; give --topology FILE or the profile of one kind",
            reason="profile",
        )
    topology = _one_node(profile.topology, profile.topology.devices[0], num_ranks, memory_bytes)
    kernels = measured_kernels(topology, profile, learn_compute(profile))
    return PricedDevices(
        topology,
        replace(kernels, dense=AnalyticDense()),
        f"learned: profile of {profile.created} ({profile.devices[0].name}); lookups and transfers only",
    )


def price_topology(path: Path) -> PricedDevices:
    """The devices of a topology file, priced by its own figures.

    Raises:
        PlanningError: The file is wrong (reason `topology`).
    """
    topology = load_topology(path)
    return PricedDevices(topology, AnalyticEstimator(), f"analytic: bandwidths and latencies of {topology.name}")


def _one_node(model: Topology, device: Device, num_ranks: int, memory_bytes: int) -> Topology:
    """So many ranks like a device on one machine, all of their memory for tables, with the model's links."""
    node = device.node
    devices = tuple(
        replace(device, rank=rank, node=node, local_rank=rank, hbm_bytes=memory_bytes, reserved_bytes=0)
        for rank in range(num_ranks)
    )
    return replace(model, name=f"{device.kind}_x{num_ranks}", devices=devices)
