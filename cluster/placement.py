"""One placement group for a job: one bundle a device, each bundle bound to the node of its slot."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from cluster.errors import ClusterError
from cluster.inventory import Inventory
from planner.topology import DeviceType

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

NODE_LABEL = "ray.io/node-id"  # Source: Ray 2.60, util/placement_group.NODE_ID_LABEL_KEY, set on every node.
REMOVAL_TIMEOUT_S = 10.0


def place(inventory: Inventory, timeout_s: float) -> PlacementGroup:
    """Reserves the resources of every slot; bundle i is the slot of rank i.

    Raises:
        ClusterError: `resources` when they are not free within `timeout_s`, `placement` when Ray put a bundle on
            another node than the slot's.
    """
    from ray.util.placement_group import placement_group

    bundles = [bundle_resources(inventory, slot.type) for slot in inventory.slots]
    selectors = [{NODE_LABEL: slot.node_id} for slot in inventory.slots]
    group = placement_group(bundles, strategy="PACK", bundle_label_selector=selectors)
    if not group.wait(timeout_s):
        unplace(group)
        raise ClusterError(
            f"Not enough free resources: {inventory.world_size} workers of {bundles[0]} were not placed within "
            f"{timeout_s:g} s; free now: {_free_resources()}. Stop the jobs that hold the rest, wait for them, or ask "
            "for fewer workers.",
            reason="resources",
        )
    try:
        check_placement(inventory, group)
    except ClusterError:
        unplace(group)
        raise
    return group


def bundle_resources(inventory: Inventory, device_type: DeviceType) -> dict[str, float]:
    """Gives what one worker takes."""
    resources: dict[str, float] = {"CPU": float(inventory.cpus_per_worker)}
    return resources | {"GPU": 1.0} if device_type is DeviceType.CUDA else resources


def check_placement(inventory: Inventory, group: PlacementGroup) -> None:
    """Raises ClusterError unless every bundle landed on the node of its slot."""
    landed: dict[int, str] = _describe(group)["bundles_to_node_id"]
    for slot in inventory.slots:
        if landed[slot.rank] != slot.node_id:
            raise ClusterError(
                f"Placement of rank {slot.rank}: expected node {slot.node_id[:8]}, found {landed[slot.rank][:8]}. The "
                "nodes changed since the inventory was taken: take it again.",
                reason="placement",
            )


def unplace(group: PlacementGroup) -> None:
    """Gives the resources back and waits until Ray has taken note, at most `REMOVAL_TIMEOUT_S`."""
    from ray.util.placement_group import remove_placement_group

    remove_placement_group(group)
    deadline_s = time.monotonic() + REMOVAL_TIMEOUT_S
    while _describe(group).get("state", "REMOVED") != "REMOVED" and time.monotonic() < deadline_s:
        time.sleep(0.02)


def _describe(group: PlacementGroup) -> dict[str, Any]:
    """Gives Ray's own record of the group."""
    from ray.util.placement_group import placement_group_table

    record: dict[str, Any] = placement_group_table(group)
    return record


def _free_resources() -> str:
    """Renders what the cluster has free."""
    import ray

    free = ray.available_resources()
    return f"{free.get('CPU', 0):g} CPUs, {free.get('GPU', 0):g} GPUs"
