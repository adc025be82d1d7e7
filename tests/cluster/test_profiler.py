"""A profile covers every rank and link of the job, and a device that cannot be measured is named."""

import time

import pytest

from cluster.actors import GroupOptions
from cluster.errors import ClusterError
from cluster.inventory import Inventory
from cluster.microbench.rank import LEAST_COLLECTIVES, LEAST_DENSE, LEAST_LOOKUPS
from cluster.profiler import ProfileOptions, profile_cluster
from launcher.hardware import describe_cluster
from planner.profile import COLLECTIVES, Profile
from planner.profile_file import render_profile
from planner.tables import OptimizerKind

pytestmark = pytest.mark.ray


def profile(inventory: Inventory, optimizer: OptimizerKind, parts: list[str]) -> Profile:
    options = ProfileOptions(optimizer, 1.0, time.monotonic(), 0, GroupOptions(start_timeout_s=120.0))
    topology = describe_cluster(inventory, None).topology
    return profile_cluster(topology, inventory, {"test": "yes"}, options, lambda part, done, of: parts.append(part))


def test_a_profile_holds_every_part_of_every_rank(pair: Inventory) -> None:
    parts: list[str] = []
    found = profile(pair, OptimizerKind.SGD, parts)
    (device,) = found.devices
    assert (device.kind, device.name) == (found.topology.devices[0].kind, pair.slots[0].name)
    assert len(device.lookups) >= 2 * LEAST_LOOKUPS and len(device.dense) >= 2 * LEAST_DENSE and device.copies
    assert len({each.lookups for each in device.lookups}) == len(device.lookups), "ranks measure different sets"
    assert {each.lookups.optimizer for each in device.lookups} == {OptimizerKind.SGD}
    assert {each.collective for each in found.collectives} == set(COLLECTIVES)
    assert len(found.collectives) >= LEAST_COLLECTIVES
    assert {(each.link, each.world_size) for each in found.collectives} == {("intra_node", 2)}
    assert 0 < device.free_bytes < 2**45 and device.lookup_canary.median_ms > 0
    assert parts and set(parts) <= {"dense", "lookups", "collectives"}
    assert found.fingerprint == {"test": "yes"} and "rank" in render_profile(found)


def test_what_cannot_be_measured_says_what_where_and_why(pair: Inventory) -> None:
    with pytest.raises(ClusterError, match=r"device kind cpu_core .* cannot be measured.*lookups with adam") as info:
        profile(pair, OptimizerKind.ADAM, [])
    assert info.value.reason == "profile"
    assert pair.slots[0].node_id[:8] in str(info.value) and "Log of the rank" in str(info.value)
