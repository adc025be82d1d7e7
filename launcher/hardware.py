"""Turns the devices that were found into a topology with figures: memory as found, speeds from the presets."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ClusterError
from cluster.inventory import DeviceSlot, Inventory
from launcher.schema import ClusterSection
from planner.topology import Device, DeviceKind, DeviceType, Topology, load_device_kinds, load_topology

# The preset for GPUs that no other file knows, and the name by which it takes them.
UNKNOWN_GPU = "unknown_gpu.yaml"
ANY_GPU = "any GPU"


def preset_folder() -> Path:
    """The folder of the shipped topology files: `configs/` stands beside this package, installed or not."""
    return Path(__file__).resolve().parent.parent / "configs" / "hardware"


@dataclass(frozen=True)
class Described:
    """A topology, and what a user should know about where its figures come from."""

    topology: Topology
    notes: tuple[str, ...]


def take_ranks(inventory: Inventory, cluster: ClusterSection) -> Inventory:
    """The ranks that a job uses of those that there are: all, or the first `max_workers`."""
    if cluster.num_workers is None and cluster.max_workers is not None:
        return inventory.first(cluster.max_workers)
    return inventory


def describe_cluster(inventory: Inventory, hardware: Path | None) -> Described:
    """The topology of the ranks that `inventory` assigns.

    Speeds and links come from `hardware`, or else from the shipped preset whose device kind bears the name that
    the driver reports. A GPU without figures gets those of `unknown_gpu.yaml`, and a note says so. Raises
    ClusterError(reason="unknown_device") where `hardware` is given and does not know a device.
    """
    sources = [hardware] if hardware else sorted(preset_folder().glob("*.yaml"))
    presets = [(path, load_device_kinds(path)) for path in sources]
    found = [_find_kind(slot, presets) for slot in inventory.slots]
    devices = tuple(_device(slot, kind) for slot, (_, kind) in zip(inventory.slots, found, strict=True))
    # One set of links a job: of the file that knows the first device.
    links = load_topology(found[0][0])
    unknown = {slot.name for slot, (path, _) in zip(inventory.slots, found, strict=True) if path.name == UNKNOWN_GPU}
    topology = Topology("cluster", devices, links.intra_node, links.inter_node)
    return Described(topology, tuple(map(_note, sorted(unknown))))


def _find_kind(slot: DeviceSlot, presets: list[tuple[Path, dict[str, DeviceKind]]]) -> tuple[Path, DeviceKind]:
    # Processors have as many names as makers; a preset describes them all as `cpu`.
    names = {slot.name, "cpu"} if slot.type is DeviceType.CPU else {slot.name}
    for wanted in (names, {ANY_GPU} if slot.type is DeviceType.CUDA else set()):
        for path, kinds in presets:
            for kind in kinds.values():
                if kind.type == slot.type and wanted.intersection(kind.matches):
                    return path, kind
    known = sorted({name for _, kinds in presets for kind in kinds.values() for name in kind.matches})
    raise ClusterError(
        f"no figures are known for the device {slot.name!r} of rank {slot.rank}; known: {', '.join(known)}. "
        "Describe it in the file of cluster.hardware",
        reason="unknown_device",
    )


def _note(name: str) -> str:
    return (
        f"no figures are known for {name}: planned with those of {UNKNOWN_GPU} and the memory found; copy "
        f"{preset_folder() / UNKNOWN_GPU}, put the device's bandwidths into it, and give it as cluster.hardware=FILE"
    )


def _device(slot: DeviceSlot, kind: DeviceKind) -> Device:
    """The figures of its kind, with the memory that this very device has."""
    device = kind.device(slot.rank, slot.node_id, slot.local_rank)
    return dataclasses.replace(device, hbm_bytes=slot.memory_bytes)
