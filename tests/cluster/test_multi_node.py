"""On several nodes, ranks follow NodeIDs (all nodes of a test cluster share one address) and work across them."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cluster.actors import GroupOptions
from cluster.errors import ClusterError
from cluster.inventory import DeviceSlot, Inventory, take_inventory
from cluster.placement import check_placement, place, unplace
from cluster.profiler import ProfileOptions, profile_cluster
from cluster.session import open_session
from cluster.worker_group import WorkerGroup
from launcher.hardware import describe_cluster
from planner.tables import OptimizerKind
from planner.topology import DeviceType
from tests.cluster import rank_functions

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def two_nodes(ray_environment: dict[str, str]) -> Iterator[Any]:
    """A cluster of two nodes, 2 CPUs and 2 pretended GPUs each, with this process joined to it."""
    from ray.cluster_utils import Cluster

    arguments = {"num_cpus": 2, "num_gpus": 2, "object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    try:
        cluster.add_node(num_cpus=2, num_gpus=2, object_store_memory=100_000_000)
        with open_session(cluster.address):
            yield cluster
    finally:
        cluster.shutdown()


def test_ranks_are_ordered_by_node_and_reduce_across_nodes(two_nodes: Any) -> None:
    inventory = take_inventory("cpu", num_workers=4)
    node_ids = [node.node_id for node in inventory.nodes]
    assert len(node_ids) == 2 and node_ids == sorted(node_ids)
    assert [slot.node_id for slot in inventory.slots] == [node_ids[0]] * 2 + [node_ids[1]] * 2
    with WorkerGroup.start(inventory) as group:
        group.run(rank_functions.add_up, 1.0)
        results = group.join()
    assert [result["place"] for result in results] == [(0, 4, 0, 2), (1, 4, 1, 2), (2, 4, 0, 2), (3, 4, 1, 2)]
    assert [result["node_id"] for result in results] == [slot.node_id for slot in inventory.slots]
    assert [result["sum"] for result in results] == [[10.0, 10.0]] * 4


def test_links_within_and_across_nodes_are_profiled(two_nodes: Any) -> None:
    inventory = take_inventory("cpu", num_workers=4)
    options = ProfileOptions(OptimizerKind.SGD, 1.0, time.monotonic(), 0, GroupOptions(start_timeout_s=120.0))
    topology = describe_cluster(inventory, None).topology
    found = profile_cluster(topology, inventory, {}, options, lambda part, done, of: None)
    shapes = Counter((each.link, each.world_size) for each in found.collectives)
    # All four ranks; either node; the ranks of one place on both nodes: two groups each of the latter.
    assert shapes[("inter_node", 4)] * 2 == shapes[("intra_node", 2)] == shapes[("inter_node", 2)] > 0


def test_gpus_that_torch_cannot_use_are_no_devices(two_nodes: Any) -> None:
    with pytest.raises(ClusterError, match=r"Ray hands out 2 GPUs, torch .* there can use 0"):
        take_inventory("auto")


def test_gpu_bundles_land_on_the_nodes_of_their_slots(two_nodes: Any) -> None:
    nodes = take_inventory("cpu").nodes
    owners = [nodes[1].node_id, nodes[0].node_id, nodes[1].node_id]
    slots = tuple(DeviceSlot(rank, owner, 0, DeviceType.CUDA, "gpu", 1) for rank, owner in enumerate(owners))
    inventory = Inventory(nodes, slots, cpus_per_worker=1)
    swapped = Inventory(nodes, (replace(slots[0], node_id=owners[1]), *slots[1:]), cpus_per_worker=1)
    group = place(inventory, timeout_s=30.0)
    try:
        check_placement(inventory, group)
        with pytest.raises(ClusterError, match="Placement of rank 0") as info:
            check_placement(swapped, group)
    finally:
        unplace(group)
    assert info.value.reason == "placement"
