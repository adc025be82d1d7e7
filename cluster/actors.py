"""Makes the actors of a group: creates them in their bundles, orders them by rank, connects them, kills them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.errors import ClusterError
from cluster.inventory import Inventory
from cluster.placement import bundle_resources
from cluster.telemetry import DEFAULT_RING_BYTES
from cluster.worker import Identity, Seat, Worker
from planner.topology import DeviceType

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

CONTROL = "control"
NUM_CONTROL_THREADS = 2  # one for poll, one for post: neither waits for the other

# A worker keeps the memory that it frees. glibc gives large tensors pages of their own and unmaps them when they are
# freed; the next step then waits for fresh pages, which can take several times as long as its work on them, and not in
# each step alike. So: no pages of their own, a heap that never shrinks, and one heap for all threads.
# Source: glibc manual, "Malloc Tunable Parameters"; another C library takes no notice.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_ARENA_MAX": "1",
}


@dataclass(frozen=True)
class GroupOptions:
    """Time limits and sizes of a worker group.

    Attributes:
        start_timeout_s: Longest wait for the placement, the actors, and the rendezvous, each.
        collective_timeout_s: Longest wait of one collective before torch.distributed gives up.
        settle_s: How long `join` looks for the real cause when all it has seen are broken collectives.
        outbox_capacity: Records that a worker keeps for a controller that does not poll.
        ring_bytes: Room that a worker has for each series of measurements, taken at its declaration.
    """

    start_timeout_s: float = 60.0
    collective_timeout_s: float = 120.0
    settle_s: float = 5.0
    outbox_capacity: int = 4096
    ring_bytes: int = DEFAULT_RING_BYTES


def create_actors(inventory: Inventory, options: GroupOptions, placement: PlacementGroup) -> list[Any]:
    """Creates one actor in every bundle."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    actor_class = ray.remote(max_restarts=0, concurrency_groups={CONTROL: NUM_CONTROL_THREADS})(Worker)
    actors = []
    for slot in inventory.slots:
        resources = bundle_resources(inventory, slot.type)
        actors.append(
            actor_class.options(
                num_cpus=resources["CPU"],
                num_gpus=resources.get("GPU", 0),
                runtime_env={"env_vars": KEEP_FREED_MEMORY},
                scheduling_strategy=PlacementGroupSchedulingStrategy(placement, slot.rank),
            ).remote(options.outbox_capacity, options.ring_bytes)
        )
    return actors


def order_by_rank(
    inventory: Inventory, actors: Sequence[Any], identities: Sequence[Identity]
) -> list[tuple[Any, Identity]]:
    """Orders actors by node, then GPU number, so that local rank i has the node's i-th GPU whatever Ray did."""
    ranked = sorted(
        zip(actors, identities, strict=True), key=lambda pair: (pair[1].node_id, len(pair[1].gpu), pair[1].gpu)
    )
    landed = [identity.node_id for _, identity in ranked]
    assert landed == [slot.node_id for slot in inventory.slots], "actors left the bundles that were checked"
    return ranked


def connect(inventory: Inventory, options: GroupOptions, actors: Sequence[Any], workers: Sequence[Identity]) -> None:
    """Lets rank 0 open the store, tells it to all, and makes the process group."""
    arguments = (workers[0].ip, inventory.world_size, options.start_timeout_s)
    (port,) = get_answers([actors[0].open_store.remote(*arguments)], options, "open the rendezvous")
    num_nodes = len({slot.node_id for slot in inventory.slots})
    seats = [
        Seat(
            rank=slot.rank,
            world_size=inventory.world_size,
            local_rank=slot.local_rank,
            local_world_size=inventory.local_world_size(slot.node_id),
            num_nodes=num_nodes,
            device="cpu" if slot.type is DeviceType.CPU else "cuda:0",
            num_threads=inventory.cpus_per_worker,
            store_host=workers[0].ip,
            store_port=port,
            start_timeout_s=options.start_timeout_s,
            collective_timeout_s=options.collective_timeout_s,
        )
        for slot in inventory.slots
    ]
    calls = [actor.connect.remote(seat) for actor, seat in zip(actors, seats, strict=True)]
    get_answers(calls, options, "meet at the rendezvous")


def get_answers(references: Sequence[Any], options: GroupOptions, what: str) -> list[Any]:
    """Gives the answers of all workers, or raises ClusterError `start` that says what they could not do."""
    import ray

    try:
        answers: list[Any] = ray.get(list(references), timeout=options.start_timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise ClusterError(
            f"The workers did not {what} within {options.start_timeout_s:g} s. See their logs in Ray's session folder, "
            "or raise the start time-out on a slow machine.",
            reason="start",
        ) from error
    except ray.exceptions.RayError as error:
        raise ClusterError(f"A worker could not {what}: {error}", reason="start") from error
    return answers


def control(method: Any) -> Any:
    """Binds an actor's method to the control threads."""
    return method.options(concurrency_group=CONTROL)


def kill(actors: Sequence[Any]) -> None:
    """Kills actors; one that is dead already is no matter."""
    import ray

    for actor in actors:
        ray.kill(actor, no_restart=True)
