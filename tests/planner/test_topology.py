"""Topology files: the presets, and every fault of a broken file at once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from planner.errors import PlanningError
from planner.topology import DeviceType, Topology, load_device_kinds, load_topology

PRESETS = {"h100_80gb_x8": (8, 1), "h100_80gb_2x8": (16, 2), "a100_80gb_x8": (8, 1), "cpu_x2": (2, 1)}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_has_the_ranks_its_name_says(repository: Path, name: str) -> None:
    topology = load_topology(repository / "configs" / "hardware" / f"{name}.yaml")
    assert (topology.world_size, len(topology.nodes)) == PRESETS[name]
    assert topology.name == name
    assert [device.rank for device in topology.devices] == list(range(topology.world_size))


def test_every_figure_of_a_preset_has_a_source_comment(repository: Path) -> None:
    for path in (repository / "configs" / "hardware").glob("*.yaml"):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            key = line.strip().split(":")[0]
            if key in (
                "hbm_bytes",
                "reserved_bytes",
                "hbm_bytes_per_s",
                "flops_per_s",
                "launch_s",
                "latency_s",
                "bytes_per_s",
            ):
                assert "#" in line or lines[number - 1].strip().startswith("#"), f"{path.name}: {line}"


def test_device_kind_gives_a_found_device_its_figures(repository: Path) -> None:
    kinds = load_device_kinds(repository / "configs" / "hardware" / "cpu_x2.yaml")
    device = kinds["cpu_core"].device(rank=3, node="somewhere", local_rank=1)
    assert (device.rank, device.node, device.local_rank, device.type) == (3, "somewhere", 1, DeviceType.CPU)
    assert kinds["cpu_core"].matches == ("cpu",)
    assert device.hbm_bytes == 4 << 30


def test_json_reads_as_yaml_does(repository: Path, tmp_path: Path) -> None:
    source = repository / "configs" / "hardware" / "h100_80gb_2x8.yaml"
    copy = tmp_path / "same.json"
    copy.write_text(json.dumps(yaml.safe_load(source.read_text())))
    assert load_topology(copy) == load_topology(source)


def test_all_faults_are_told_at_once(repository: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((repository / "configs" / "hardware" / "cpu_x2.yaml").read_text())
    content["device_kinds"]["cpu_core"]["hbm_bytes"] = -1
    content["device_kinds"]["cpu_core"]["typ"] = content["device_kinds"]["cpu_core"].pop("type")
    content["nodes"][0]["device_kind"] = "gpu"
    content["links"]["intra_node"]["bytes_per_s"] = "1e9"
    del content["links"]["inter_node"]
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump(content))
    with pytest.raises(PlanningError) as error:
        load_topology(broken)
    assert error.value.reason == "topology"
    for part in (
        "hbm_bytes",
        "'typ'",
        "type is missing",
        "'gpu'",
        "links.intra_node.bytes_per_s",
        "inter_node is missing",
    ):
        assert part in str(error.value)


def test_missing_file_is_a_planning_error(tmp_path: Path) -> None:
    with pytest.raises(PlanningError, match=r"absent\.yaml"):
        load_topology(tmp_path / "absent.yaml")


def test_nodes_and_ranks(make_topology: Callable[..., Topology]) -> None:
    topology = make_topology(2, 3)
    assert topology.nodes == ("node-0", "node-1")
    assert topology.ranks_of("node-1") == (3, 4, 5)
