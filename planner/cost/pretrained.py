"""The weights that ship with the package: what a fused lookup costs, and what the host adds to a step."""

import json
from pathlib import Path

from planner.cost.compute import ComputeModel
from planner.cost.host import HostCost
from planner.errors import PlanningError
from planner.topology import DeviceType

FOLDER = Path(__file__).parent / "weights"
HOST_FILE = "{}_host.json"


def load_pretrained(device_type: DeviceType) -> ComputeModel | None:
    """The lookup model for a type of device; None where no such device has been measured yet."""
    path = FOLDER / f"{device_type}.npz"
    return ComputeModel.load(path) if path.exists() else None


def load_host(device_type: DeviceType, folder: Path | None = None) -> HostCost | None:
    """The host's costs for a type of device, in units of its fixed matrix product; None where not measured yet.

    Args:
        device_type: The type.
        folder: Where to look first; the shipped ones serve where it has none.

    Raises:
        PlanningError: The file cannot be read (reason `weights`).
    """
    for place in (folder, FOLDER):
        path = None if place is None else place / HOST_FILE.format(device_type)
        if path is not None and path.exists():
            try:
                return HostCost.from_dict(json.loads(path.read_text())["host"])
            except (OSError, ValueError, KeyError) as error:
                raise PlanningError(f"host costs {path}: cannot be read: {error}", reason="weights") from error
    return None
