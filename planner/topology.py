"""The devices of a job and the links between them, as types and as files."""

import json
import math
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from planner.errors import PlanningError


class DeviceType(StrEnum):
    """What a rank computes on."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True)
class Device:
    """One rank's device.

    Attributes:
        rank: Global rank.
        node: Name of its machine.
        local_rank: Rank within the machine.
        type: CPU or CUDA.
        kind: Name of its device kind, such as `h100_80gb`.
        hbm_bytes: Device memory; on a CPU rank its share of host memory.
        reserved_bytes: Part of `hbm_bytes` that tables may not use: context, allocator slack, activations.
        hbm_bytes_per_s: Memory bandwidth.
        flops_per_s: Dense floating point rate of training.
        launch_s: Fixed time of one fused lookup kernel.
    """

    rank: int
    node: str
    local_rank: int
    type: DeviceType
    kind: str
    hbm_bytes: int
    reserved_bytes: int
    hbm_bytes_per_s: float
    flops_per_s: float
    launch_s: float


@dataclass(frozen=True)
class DeviceKind:
    """The figures that devices of one model share.

    Attributes:
        name: Name of the kind, such as `h100_80gb`.
        type: CPU or CUDA.
        matches: Device names as the driver reports them; `cpu` for processors.
        hbm_bytes: As in `Device`, as are the fields below.
    """

    name: str
    type: DeviceType
    matches: tuple[str, ...]
    hbm_bytes: int
    reserved_bytes: int
    hbm_bytes_per_s: float
    flops_per_s: float
    launch_s: float

    def device(self, rank: int, node: str, local_rank: int) -> Device:
        """A device of this kind at a place in the job."""
        return Device(
            rank,
            node,
            local_rank,
            self.type,
            self.name,
            self.hbm_bytes,
            self.reserved_bytes,
            self.hbm_bytes_per_s,
            self.flops_per_s,
            self.launch_s,
        )


@dataclass(frozen=True)
class Link:
    """A link class, one direction, as one rank sees it."""

    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True)
class Topology:
    """All devices of a job in rank order and the two link classes that join them."""

    name: str
    devices: tuple[Device, ...]
    intra_node: Link
    inter_node: Link

    def __hash__(self) -> int:
        """Of all devices and links, computed once: searches look up by topology thousands of times."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.name, self.devices, self.intra_node, self.inter_node))

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return len(self.devices)

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """All ranks, ascending."""
        return tuple(range(self.world_size))

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """Names of the machines in rank order."""
        return tuple(dict.fromkeys(device.node for device in self.devices))

    @cached_property
    def _ranks_of(self) -> dict[str, tuple[int, ...]]:
        ranks: dict[str, list[int]] = {node: [] for node in self.nodes}
        for device in self.devices:
            ranks[device.node].append(device.rank)
        return {node: tuple(found) for node, found in ranks.items()}

    def ranks_of(self, node: str) -> tuple[int, ...]:
        """The ranks on a machine, ascending."""
        return self._ranks_of[node]

    @cached_property
    def local_world_size(self) -> int | None:
        """Ranks on every machine if all have equally many, in consecutive ranks; otherwise None.

        `table_row_wise` exists only where it is a number.

        Source: TorchRec 1.8 `distributed.comm.intra_and_cross_node_pg` takes rank // LOCAL_WORLD_SIZE for the
        machine on each rank; ranks that differ in it build different process groups and wait for ever.
        """
        size = len(self.ranks_of(self.nodes[0]))
        blocks = [tuple(range(first, first + size)) for first in range(0, self.world_size, size)]
        return size if [self.ranks_of(node) for node in self.nodes] == blocks else None


def load_topology(path: str | Path) -> Topology:
    """The topology that a YAML or JSON file describes (the format of `configs/hardware/`).

    Raises:
        PlanningError: Listing everything that is wrong with the file (reason `topology`).
    """
    reader = _FileReader(Path(path))
    topology = reader.topology()
    reader.raise_faults()
    return topology


def load_device_kinds(path: str | Path) -> dict[str, DeviceKind]:
    """The device kinds of the same file, by name.

    Raises:
        PlanningError: Listing everything that is wrong with them (reason `topology`).
    """
    reader = _FileReader(Path(path))
    kinds = reader.device_kinds()
    reader.raise_faults()
    return kinds


class _FileReader:
    """Reads a topology file and collects its faults; a wrong value reads as a neutral one until then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[str] = []
        try:
            text = path.read_text(encoding="utf-8")
            content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise PlanningError(f"topology {path}: cannot be read: {error}", reason="topology") from error
        self.root = self._mapping(content, "the file", ("name", "device_kinds", "nodes", "links"))

    def raise_faults(self) -> None:
        """Raises PlanningError if anything was wrong."""
        if self.faults:
            raise PlanningError(f"topology {self.path}:\n  " + "\n  ".join(self.faults), reason="topology")

    def topology(self) -> Topology:
        """The whole topology."""
        kinds = self.device_kinds()
        devices: list[Device] = []
        nodes = self.root.get("nodes")
        if not isinstance(nodes, list) or not nodes:
            self.faults.append(f"nodes: expected a list with at least one entry, found {nodes!r}")
            nodes = []
        num_nodes = 0
        for position, entry in enumerate(nodes):
            where = f"nodes[{position}]"
            node = self._mapping(entry, where, ("count", "device_kind", "num_devices"))
            count, num_devices = self._count(node, "count", where), self._count(node, "num_devices", where)
            kind = kinds.get(str(node.get("device_kind")))
            if kind is None:
                known = ", ".join(kinds) or "none"
                self.faults.append(f"{where}.device_kind: {node.get('device_kind')!r} is not one of: {known}")
                continue
            for number in range(num_nodes, num_nodes + count):
                devices += [kind.device(len(devices) + local, f"node-{number}", local) for local in range(num_devices)]
            num_nodes += count
        links = self._mapping(self.root.get("links"), "links", ("intra_node", "inter_node"))
        intra, inter = (self._link(links.get(name), f"links.{name}") for name in ("intra_node", "inter_node"))
        return Topology(str(self.root.get("name", self.path.stem)), tuple(devices), intra, inter)

    def device_kinds(self) -> dict[str, DeviceKind]:
        """The device kinds by name."""
        kinds = self.root.get("device_kinds")
        if not isinstance(kinds, dict) or not kinds:
            self.faults.append(f"device_kinds: expected at least one kind by name, found {kinds!r}")
            return {}
        return {str(name): self._kind(str(name), entry) for name, entry in kinds.items()}

    def _kind(self, name: str, entry: object) -> DeviceKind:
        where = f"device_kinds.{name}"
        fields = (
            "type",
            "matches",
            "hbm_bytes",
            "reserved_bytes",
            "hbm_bytes_per_s",
            "flops_per_s",
            "launch_s",
        )
        kind = self._mapping(entry, where, fields)
        types = [each.value for each in DeviceType]
        if kind.get("type") not in types:
            self.faults.append(f"{where}.type: expected one of {', '.join(types)}, found {kind.get('type')!r}")
        matches = kind.get("matches")
        if not isinstance(matches, list) or not all(isinstance(match, str) for match in matches):
            self.faults.append(f"{where}.matches: expected a list of device names, found {matches!r}")
            matches = []
        hbm_bytes = self._count(kind, "hbm_bytes", where)
        reserved_bytes = int(self._number(kind, "reserved_bytes", where, smallest=0))
        if reserved_bytes >= hbm_bytes:
            self.faults.append(f"{where}.reserved_bytes: {reserved_bytes} leaves nothing of hbm_bytes {hbm_bytes}")
        return DeviceKind(
            name,
            DeviceType(kind["type"]) if kind.get("type") in types else DeviceType.CPU,
            tuple(matches),
            hbm_bytes,
            reserved_bytes,
            self._rate(kind, "hbm_bytes_per_s", where),
            self._rate(kind, "flops_per_s", where),
            self._number(kind, "launch_s", where, smallest=0),
        )

    def _link(self, entry: object, where: str) -> Link:
        link = self._mapping(entry, where, ("bytes_per_s", "latency_s"))
        return Link(self._rate(link, "bytes_per_s", where), self._number(link, "latency_s", where, smallest=0))

    def _mapping(self, value: object, where: str, keys: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.faults.append(f"{where}: expected the keys {', '.join(keys)}, found {value!r}")
            return {}
        self.faults += [f"{where}: unknown key {key!r}; expected {', '.join(keys)}" for key in value if key not in keys]
        self.faults += [f"{where}: {key} is missing" for key in keys if key not in value]
        return value

    def _count(self, mapping: dict[str, Any], key: str, where: str) -> int:
        value = self._number(mapping, key, where, smallest=1)
        if value != int(value):
            self.faults.append(f"{where}.{key}: expected a whole number, found {value!r}")
        return int(value)

    def _rate(self, mapping: dict[str, Any], key: str, where: str) -> float:
        value = self._number(mapping, key, where, smallest=0)
        if value == 0 and key in mapping:
            self.faults.append(f"{where}.{key}: expected a number above 0, found {mapping[key]!r}")
        return value or 1.0

    def _number(self, mapping: dict[str, Any], key: str, where: str, smallest: int) -> float:
        if key not in mapping:
            return float(smallest)
        value = mapping[key]
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or value < smallest:
            hint = "; YAML reads 1e9 as text, write 1.0e+9" if isinstance(value, str) else ""
            self.faults.append(f"{where}.{key}: expected a number >= {smallest}, found {value!r}{hint}")
            return float(smallest)
        return float(value)
