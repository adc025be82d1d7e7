"""Turns the devices that were found into a topology with figures: memory as found, speeds from the presets."""

import dataclasses
from pathlib import Path

from cluster.errors import ClusterError
from cluster.inventory import DeviceSlot, Inventory
from planner.topology import Device, DeviceKind, DeviceType, Topology, load_device_kinds, load_topology


def preset_folder() -> Path:
    """The folder of the shipped topology files: `configs/` stands beside this package, installed or not."""
    return Path(__file__).resolve().parent.parent / "configs" / "hardware"


def describe_cluster(inventory: Inventory, hardware: Path | None) -> Topology:
    """The topology of the ranks that `inventory` assigns.

    Speeds and links come from `hardware`, or else from the shipped preset whose device kind bears the name
    that the driver reports. Raises ClusterError(reason="unknown_device") for a device without figures.
    """
    sources = [hardware] if hardware else sorted(preset_folder().glob("*.yaml"))
    presets = [(path, load_device_kinds(path)) for path in sources]
    devices, used = [], set()
    for slot in inventory.slots:
        path, kind = _find_kind(slot, presets)
        used.add(path)
        devices.append(_device(slot, kind))
    # One set of links a job: of the file that knows the first device, two-node presets included.
    links = load_topology(next(path for path, kinds in presets if path in used))
    return Topology("cluster", tuple(devices), links.intra_node, links.inter_node)


def _find_kind(slot: DeviceSlot, presets: list[tuple[Path, dict[str, DeviceKind]]]) -> tuple[Path, DeviceKind]:
    # Processors have as many names as makers; a preset describes them all as `cpu`.
    names = {slot.name, "cpu"} if slot.type is DeviceType.CPU else {slot.name}
    for path, kinds in presets:
        for kind in kinds.values():
            if kind.type == slot.type and names.intersection(kind.matches):
                return path, kind
    known = sorted({name for _, kinds in presets for kind in kinds.values() for name in kind.matches})
    raise ClusterError(
        f"no figures are known for the device {slot.name!r} of rank {slot.rank}; known: {', '.join(known)}.\n"
        f"Copy {preset_folder() / 'h100_80gb_x8.yaml'}, put the device's memory and bandwidths into it, and give it as "
        "cluster.hardware=FILE",
        reason="unknown_device",
    )


def _device(slot: DeviceSlot, kind: DeviceKind) -> Device:
    """The figures of its kind, with the memory that this very device has."""
    device = kind.device(slot.rank, slot.node_id, slot.local_rank)
    return dataclasses.replace(device, hbm_bytes=slot.memory_bytes)
