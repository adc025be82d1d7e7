"""Ranks fill nodes in NodeID order, never beyond what is there, and say what is missing."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ClusterError
from cluster.host import Gpu
from cluster.inventory import NodeFacts, build_inventory, choose_device_type, take_inventory
from planner.topology import DeviceType

GIB = 2**30


def node(node_id: str, cpus: int, cores: int = 64, ray_gpus: int = 0, gpus: int | None = None) -> NodeFacts:
    usable = tuple(Gpu("H100", 80 * GIB) for _ in range(ray_gpus if gpus is None else gpus))
    memory = (16 * GIB, 8 * GIB)
    return NodeFacts(
        node_id, f"host-{node_id}", "10.0.0.1", cpus, cores, ray_gpus, usable, *memory, "cpu", "3.11", "2.13"
    )


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 3), st.data())
def test_ranks_are_contiguous_and_nodes_are_filled_in_order(cpus: list[int], width: int, data: st.DataObject) -> None:
    nodes = [node(f"{len(cpus) - index:02d}", count) for index, count in enumerate(cpus)]
    room = {one.node_id: one.num_cpus // width for one in nodes}
    if sum(room.values()) == 0:
        return
    wanted = data.draw(st.integers(1, sum(room.values())))
    inventory = build_inventory(nodes, DeviceType.CPU, wanted, width)
    assert [slot.rank for slot in inventory.slots] == list(range(wanted))
    assert [slot.node_id for slot in inventory.slots] == sorted(slot.node_id for slot in inventory.slots)
    for node_id, capacity in room.items():
        local = [slot.local_rank for slot in inventory.slots if slot.node_id == node_id]
        assert local == list(range(len(local))) and len(local) <= capacity
        assert inventory.local_world_size(node_id) == len(local)


def test_cpu_ranks_share_the_nodes_memory_and_by_default_take_its_real_cores() -> None:
    inventory = build_inventory([node("a", cpus=8, cores=4)], DeviceType.CPU, None, 2)
    assert [slot.memory_bytes for slot in inventory.slots] == [4 * GIB, 4 * GIB]
    assert build_inventory([node("a", cpus=8, cores=4)], DeviceType.CPU, 4, 2).world_size == 4


def test_gpu_ranks_take_gpus_only() -> None:
    inventory = build_inventory([node("b", 8, ray_gpus=2), node("a", 8)], DeviceType.CUDA, None, 1)
    assert [(slot.node_id, slot.name, slot.memory_bytes) for slot in inventory.slots] == [("b", "H100", 80 * GIB)] * 2


def test_too_many_workers_say_what_is_there_asked_and_to_change() -> None:
    with pytest.raises(ClusterError, match=r"asked for 9 cpu workers with 2 CPUs each.*host-a.*8 CPUs.*1 to 4") as info:
        build_inventory([node("a", 8)], DeviceType.CPU, 9, 2)
    assert info.value.reason == "resources"
    with pytest.raises(ClusterError, match=r"at least 1 cpu workers with 9 CPUs each.*fewer CPUs a worker"):
        build_inventory([node("a", 8)], DeviceType.CPU, None, 9)


def test_auto_prefers_gpus_and_never_falls_back_silently() -> None:
    assert choose_device_type([node("a", 4), node("b", 4, ray_gpus=1)], "auto") is DeviceType.CUDA
    assert choose_device_type([node("a", 4)], "auto") is DeviceType.CPU
    assert choose_device_type([node("b", 4, ray_gpus=1)], "cpu") is DeviceType.CPU
    with pytest.raises(ClusterError, match=r"Ray hands out 2 GPUs, torch 2\.13 there can use 0"):
        choose_device_type([node("b", 4, ray_gpus=2, gpus=0)], "auto")
    with pytest.raises(ClusterError, match="at least 1 GPU"):
        choose_device_type([node("a", 4)], "cuda")
    with pytest.raises(ClusterError, match="found 'tpu'"):
        choose_device_type([node("a", 4)], "tpu")


def test_no_session_is_said() -> None:
    with pytest.raises(ClusterError) as info:
        take_inventory()
    assert info.value.reason == "closed"


@pytest.mark.ray
def test_the_head_is_read_by_a_task_on_it(ray_session: Any) -> None:
    inventory = take_inventory("cpu", num_workers=3)
    (head,) = inventory.nodes
    assert (head.num_cpus, inventory.world_size) == (4, 3)
    assert head.torch_version.startswith("2.")
    assert all(0 < slot.memory_bytes <= head.available_memory_bytes // 3 for slot in inventory.slots)


@pytest.mark.ray
def test_more_workers_than_cpus_are_refused(ray_session: Any) -> None:
    with pytest.raises(ClusterError, match=r"asked for 5 cpu workers.*4 CPUs") as info:
        take_inventory("cpu", num_workers=5)
    assert info.value.reason == "resources"
