from pathlib import Path

import pytest

from cluster.errors import ClusterError
from cluster.inventory import DeviceSlot, Inventory
from launcher.hardware import describe_cluster, preset_folder
from planner.topology import DeviceType, load_topology


def inventory(*slots: tuple[str, DeviceType, str]) -> Inventory:
    found = tuple(
        DeviceSlot(rank, node, rank, kind, name, (rank + 1) << 30) for rank, (node, kind, name) in enumerate(slots)
    )
    return Inventory(nodes=(), slots=found, cpus_per_worker=1)


def test_a_gpu_gets_its_presets_speed_and_its_own_memory() -> None:
    preset = load_topology(preset_folder() / "h100_80gb_x8.yaml")
    name = "NVIDIA H100 80GB HBM3"
    topology = describe_cluster(inventory(("a", DeviceType.CUDA, name), ("b", DeviceType.CUDA, name)), None).topology
    assert [device.hbm_bytes for device in topology.devices] == [1 << 30, 2 << 30]
    assert topology.devices[0].hbm_bytes_per_s == preset.devices[0].hbm_bytes_per_s
    assert topology.nodes == ("a", "b") and topology.intra_node == preset.intra_node


def test_any_processor_is_a_cpu_rank() -> None:
    topology = describe_cluster(inventory(("a", DeviceType.CPU, "Some Maker 9000")), None).topology
    assert topology.devices[0].kind == "cpu_core"


def test_an_unknown_gpu_is_planned_with_a_note_that_says_how_to_describe_it() -> None:
    described = describe_cluster(
        inventory(("a", DeviceType.CUDA, "NVIDIA X1"), ("a", DeviceType.CUDA, "NVIDIA X1")), None
    )
    assert described.topology.devices[1].kind == "unknown_gpu" and described.topology.devices[1].hbm_bytes == 2 << 30
    (note,) = described.notes
    assert "NVIDIA X1" in note and "cluster.hardware=FILE" in note


def test_a_users_file_that_does_not_know_the_device_is_a_fault() -> None:
    with pytest.raises(ClusterError, match="'NVIDIA X1'") as caught:
        describe_cluster(inventory(("a", DeviceType.CUDA, "NVIDIA X1")), preset_folder() / "h100_80gb_x8.yaml")
    assert caught.value.reason == "unknown_device"


def test_a_users_file_describes_it(tmp_path: Path) -> None:
    text = (preset_folder() / "h100_80gb_x8.yaml").read_text()
    (tmp_path / "x.yaml").write_text(text.replace("NVIDIA H100 80GB HBM3", "NVIDIA X1"))
    topology = describe_cluster(inventory(("a", DeviceType.CUDA, "NVIDIA X1")), tmp_path / "x.yaml").topology
    assert topology.devices[0].type is DeviceType.CUDA
