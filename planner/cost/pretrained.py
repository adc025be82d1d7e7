"""The weights that ship with the package: what a fused lookup costs, and what the host adds to a step."""

import json
from pathlib import Path

from planner.cost.compute import ComputeModel
from planner.cost.host import HostCost
from planner.topology import DeviceType

FOLDER = Path(__file__).parent / "weights"


def load_pretrained(device_type: DeviceType) -> ComputeModel | None:
    """The lookup model for a type of device; None where no such device has been measured yet."""
    path = FOLDER / f"{device_type}.npz"
    return ComputeModel.load(path) if path.exists() else None


def load_host(device_type: DeviceType) -> HostCost | None:
    """The host's costs for a type of device, in units of its fixed matrix product; None where not measured yet."""
    path = FOLDER / f"{device_type}_host.json"
    return HostCost.from_dict(json.loads(path.read_text())["phases"]) if path.exists() else None
