"""What the nodes of the cluster really have, and the device that every rank gets."""

from __future__ import annotations

import platform
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

from cluster.errors import ClusterError
from cluster.host import Gpu, count_cores, list_gpus, measure_memory, read_cpu_name, read_driver_version
from planner.topology import DeviceType

# The first task on a node starts a worker process and, with GPUs, imports torch: up to 20 s when busy.
FACTS_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class NodeFacts:
    """One node as a process on it sees it.

    Attributes:
        node_id: Ray's NodeID in hex, the only name of a node that is always unique.
        hostname: Its host name.
        ip: The address under which Ray knows it.
        num_cpus: CPUs that Ray may hand out there.
        num_cores: Cores that affinity and cgroup allow a process there; Ray may have been told of more.
        num_ray_gpus: GPUs that Ray may hand out there.
        gpus: GPUs that torch can use there; not looked for where Ray has none.
        memory_bytes: Host memory, or the cgroup's limit where that is smaller.
        available_memory_bytes: What of it is free now.
        cpu_name: Model name of the processor.
        python_version: Version of Python there.
        torch_version: Version of torch there, build suffix included.
        driver_version: Version of the NVIDIA driver there, empty where there is none.
    """

    node_id: str
    hostname: str
    ip: str
    num_cpus: int
    num_cores: int
    num_ray_gpus: int
    gpus: tuple[Gpu, ...]
    memory_bytes: int
    available_memory_bytes: int
    cpu_name: str
    python_version: str
    torch_version: str
    driver_version: str = ""


@dataclass(frozen=True)
class DeviceSlot:
    """The device of one rank.

    Attributes:
        rank: Place in the job.
        node_id: Ray's NodeID of its node.
        local_rank: Place on that node.
        type: CPU or CUDA.
        name: Product name of the GPU or processor.
        memory_bytes: Memory of the GPU; on a CPU slot its share of the node's available memory.
    """

    rank: int
    node_id: str
    local_rank: int
    type: DeviceType
    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Inventory:
    """The nodes in NodeID order, and the slots in rank order: by NodeID, then device.

    Attributes:
        nodes: Every living node, also one that hosts no rank.
        slots: One device a rank.
        cpus_per_worker: CPUs that every worker takes.
    """

    nodes: tuple[NodeFacts, ...]
    slots: tuple[DeviceSlot, ...]
    cpus_per_worker: int

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return len(self.slots)

    def first(self, num_workers: int) -> Inventory:
        """Gives the same nodes with at most the first `num_workers` ranks."""
        return replace(self, slots=self.slots[:num_workers])

    def local_world_size(self, node_id: str) -> int:
        """Gives the number of ranks on one node."""
        return sum(slot.node_id == node_id for slot in self.slots)


def take_inventory(device: str = "auto", num_workers: int | None = None, cpus_per_worker: int = 1) -> Inventory:
    """Asks every node of the open session what it has and gives each rank a device.

    Args:
        device: `cuda`; `cpu`; or `auto`: CUDA when any node has a GPU, and then only nodes with GPUs host ranks.
        num_workers: Number of ranks, filled node by node; None takes every GPU, or every `cpus_per_worker` cores.
        cpus_per_worker: CPUs that one rank takes.

    Raises:
        ClusterError: `closed` without a session, `device` for another word, `unreachable` when a node does not answer,
            `resources` when there is not enough.
    """
    import ray

    if not ray.is_initialized():
        raise ClusterError("There is no open Ray session: call open_session first.", reason="closed")
    nodes = _collect_facts()
    device_type = choose_device_type(nodes, device)
    return build_inventory(nodes, device_type, num_workers, cpus_per_worker)


def choose_device_type(nodes: Sequence[NodeFacts], device: str) -> DeviceType:
    """Gives the kind of device that the ranks use; `device` is `auto`, `cpu` or `cuda`.

    Raises:
        ClusterError: `resources` when GPUs are wanted, or seen by Ray, and torch cannot use them.
    """
    if device == "cpu":
        return DeviceType.CPU
    if device not in ("auto", "cuda"):
        raise ClusterError(f"Device: expected auto, cpu or cuda, found {device!r}.", reason="device")
    for node in nodes:
        if node.num_ray_gpus > len(node.gpus):
            raise ClusterError(
                f"Node {node.hostname} ({node.node_id[:8]}): Ray hands out {node.num_ray_gpus} GPUs, torch "
                f"{node.torch_version} there can use {len(node.gpus)}. Install the CUDA build of torch and a driver "
                "there, or ask for device cpu.",
                reason="resources",
            )
    if any(node.num_ray_gpus for node in nodes):
        return DeviceType.CUDA
    if device == "auto":
        return DeviceType.CPU
    raise _too_little(nodes, "at least 1 GPU", "ask for device cpu, or add a node with a GPU")


def build_inventory(
    nodes: Sequence[NodeFacts], device_type: DeviceType, num_workers: int | None, cpus_per_worker: int
) -> Inventory:
    """Fills the nodes in NodeID order with at most `num_workers` ranks; raises ClusterError `resources`.

    Without `num_workers` a CPU node hosts no more ranks than it has real cores for; with it, Ray's own count decides.
    """
    ordered = tuple(sorted(nodes, key=lambda node: node.node_id))
    rooms = [_count_room(node, device_type, cpus_per_worker, num_workers is not None) for node in ordered]
    wanted = sum(rooms) if num_workers is None else num_workers
    if not 1 <= wanted <= sum(rooms):
        count = wanted if num_workers is not None else "at least 1"
        asked = f"{count} {device_type} workers with {cpus_per_worker} CPUs each"
        remedy = f"ask for 1 to {sum(rooms)} workers" if sum(rooms) else "ask for fewer CPUs a worker"
        raise _too_little(ordered, asked, f"{remedy}, or add nodes")
    slots: list[DeviceSlot] = []
    for node, room in zip(ordered, rooms, strict=True):
        slots += _fill(node, device_type, len(slots), min(room, wanted - len(slots)))
    return Inventory(ordered, tuple(slots), cpus_per_worker)


def _count_room(node: NodeFacts, device_type: DeviceType, cpus_per_worker: int, is_asked: bool) -> int:
    """Gives how many ranks fit on a node."""
    if device_type is DeviceType.CUDA:
        return min(node.num_ray_gpus, node.num_cpus // cpus_per_worker)
    return (node.num_cpus if is_asked else min(node.num_cpus, node.num_cores)) // cpus_per_worker


def _fill(node: NodeFacts, device_type: DeviceType, first_rank: int, count: int) -> list[DeviceSlot]:
    """Builds the slots of one node."""
    if device_type is DeviceType.CUDA:
        devices = [(gpu.name, gpu.memory_bytes) for gpu in node.gpus[:count]]
    else:
        devices = [(node.cpu_name, node.available_memory_bytes // max(count, 1))] * count
    return [
        DeviceSlot(first_rank + index, node.node_id, index, device_type, name, memory_bytes)
        for index, (name, memory_bytes) in enumerate(devices)
    ]


def _too_little(nodes: Sequence[NodeFacts], asked: str, remedy: str) -> ClusterError:
    """Builds the error for a cluster that is too small, with what every node has."""
    there = "; ".join(
        f"{node.hostname} ({node.node_id[:8]}): {node.num_cpus} CPUs on {node.num_cores} cores, "
        f"{node.num_ray_gpus} GPUs, {node.available_memory_bytes / 2**30:.1f} GiB free"
        for node in nodes
    )
    return ClusterError(
        f"Not enough resources: asked for {asked}, found {there or 'no node'}. To go on, {remedy}.", reason="resources"
    )


def _collect_facts() -> tuple[NodeFacts, ...]:
    """Runs one small task on every living node, all at once."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # A process a task: the next job on the node shall not find a CUDA context of ours.
    task = ray.remote(num_cpus=0, num_gpus=0, max_calls=1, max_retries=0)(read_facts)
    pending = {}
    for node in (node for node in ray.nodes() if node["Alive"]):
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        reference = task.options(scheduling_strategy=strategy).remote(
            node["NodeID"], node["NodeManagerAddress"], node["Resources"]
        )
        pending[reference] = node
    ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=FACTS_TIMEOUT_S)
    facts = []
    for reference, node in pending.items():
        where = f"Node {node['NodeManagerHostname']} ({node['NodeID'][:8]})"
        if reference not in ready:
            raise ClusterError(
                f"{where} did not answer within {FACTS_TIMEOUT_S:g} s: it is lost or overloaded. "
                "Remove it from the cluster, or try again.",
                reason="unreachable",
            )
        try:
            facts.append(ray.get(reference))
        except ray.exceptions.RayError as error:
            raise ClusterError(
                f"{where} could not be asked what it has: {error}. The same Python environment must "
                "be installed on every node.",
                reason="unreachable",
            ) from error
    return tuple(sorted(facts, key=lambda node: node.node_id))


def read_facts(node_id: str, ip: str, resources: Mapping[str, Any]) -> NodeFacts:
    """Gives what this process's machine has; `resources` is Ray's own count of what it may hand out."""
    memory = measure_memory()
    num_ray_gpus = int(resources.get("GPU", 0))
    return NodeFacts(
        node_id=node_id,
        hostname=socket.gethostname(),
        ip=ip,
        num_cpus=int(resources.get("CPU", 0)),
        num_cores=count_cores(),
        num_ray_gpus=num_ray_gpus,
        gpus=list_gpus() if num_ray_gpus else (),  # torch takes seconds to import, and only GPUs need it
        memory_bytes=memory.total_bytes,
        available_memory_bytes=memory.available_bytes,
        cpu_name=read_cpu_name(),
        python_version=platform.python_version(),
        torch_version=metadata.version("torch"),
        driver_version=read_driver_version(),
    )
