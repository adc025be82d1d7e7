"""The profile of the devices that a job would use: found where one fits, measured where none does."""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.actors import GroupOptions
from cluster.host import count_cores, read_driver_version
from cluster.inventory import Inventory, build_inventory, choose_device_type, read_facts
from cluster.profiler import ProfileOptions, Progress, profile_cluster
from cluster.session import find_job_address
from launcher.hardware import describe_cluster, take_ranks
from launcher.run_dir import installed_versions, locate_runs, write_beside
from launcher.schema import RunConfig
from planner.profile import PROFILE_VERSION, Profile
from planner.profile_file import load_profile, render_profile
from planner.tables import OptimizerKind
from planner.topology import Topology

KERNEL_PACKAGES = ("torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu")
WEIGHTS = "fp32"
# A file that is being written is renamed within seconds.
LEFTOVER_AGE_S = 3600.0

Follow = Callable[[float], AbstractContextManager[Progress]]
"""Opens a view of a profile that may take so many seconds."""


@dataclass(frozen=True)
class KeptProfile:
    """A profile, its file, and whether it was measured by an earlier command."""

    profile: Profile
    path: Path
    is_reused: bool

    def __str__(self) -> str:
        """One line for people."""
        verb = "reused" if self.is_reused else "kept"
        return f"profile {verb}: {self.path}, measured at {self.profile.created}"


@contextmanager
def unseen(_: float) -> Iterator[Progress]:
    """A view that shows nothing."""
    yield lambda part, num_done, num_planned: None


def obtain_profile(
    config: RunConfig, inventory: Inventory, topology: Topology, follow: Follow, began_s: float | None = None
) -> KeptProfile:
    """The kept profile that fits these devices, else one that is measured now and kept. Needs an open session.

    Args:
        config: The job.
        inventory: Its devices, in rank order.
        topology: The same devices with figures.
        follow: Shows how far the measuring is.
        began_s: Since when `profile.budget_s` runs, on the monotonic clock; None means now.

    Raises:
        ClusterError: A device cannot be measured (reason `profile`).
        PlanningError: The kept file cannot be read (reason `profile`).
    """
    fingerprint = take_fingerprint(config, inventory, topology)
    return read_kept(config, fingerprint) or measure(config, inventory, topology, follow, began_s)


def measure(
    config: RunConfig, inventory: Inventory, topology: Topology, follow: Follow, began_s: float | None = None
) -> KeptProfile:
    """What `obtain_profile` gives where nothing was kept; it replaces what was."""
    cluster, budget_s = config.cluster, config.profile.budget_s
    options = ProfileOptions(
        optimizer=OptimizerKind(config.optimizer.sparse.kind),
        budget_s=budget_s,
        began_s=time.monotonic() if began_s is None else began_s,
        seed=config.profile.seed,
        group=GroupOptions(start_timeout_s=cluster.start_timeout_s, collective_timeout_s=cluster.collective_timeout_s),
    )
    fingerprint = take_fingerprint(config, inventory, topology)
    with follow(budget_s) as progress:
        profile = profile_cluster(topology, inventory, fingerprint, options, progress)
    path = cache_path(config, fingerprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    write_beside(path, render_profile(profile))
    # As it is kept, with rounded figures: a later command plans with the very same.
    return KeptProfile(load_profile(path), path, is_reused=False)


def read_kept(config: RunConfig, fingerprint: dict[str, str]) -> KeptProfile | None:
    """The profile that an earlier command kept for this fingerprint."""
    path = cache_path(config, fingerprint)
    return KeptProfile(load_profile(path), path, is_reused=True) if path.exists() else None


def find_kept_locally(config: RunConfig) -> KeptProfile | None:
    """The kept profile of a job on this machine's CPU alone, found without Ray and torch; None in any other case."""
    if not _is_local_cpu(config):
        return None
    facts = read_facts("local", "127.0.0.1", {"CPU": count_cores()})
    cluster = config.cluster
    device_type = choose_device_type([facts], cluster.device)
    inventory = build_inventory([facts], device_type, cluster.num_workers, cluster.cpus_per_worker)
    inventory = take_ranks(inventory, cluster)
    topology = describe_cluster(inventory, Path(cluster.hardware) if cluster.hardware else None).topology
    return read_kept(config, take_fingerprint(config, inventory, topology))


def take_fingerprint(config: RunConfig, inventory: Inventory, topology: Topology) -> dict[str, str]:
    """All that the measured times depend on; the same on the next launch of the same job on the same machines."""
    hosts = [node for node in inventory.nodes if inventory.local_world_size(node.node_id)]
    devices = Counter(
        f"{device.kind}: {slot.name}" for device, slot in zip(topology.devices, inventory.slots, strict=True)
    )
    versions = installed_versions()
    return {
        "version": str(PROFILE_VERSION),
        "devices": ", ".join(f"{name} x {count}" for name, count in sorted(devices.items())),
        "nodes": ", ".join(
            sorted(f"{inventory.local_world_size(node.node_id)} ranks on {node.num_cores} cores" for node in hosts)
        ),
        "world_size": str(inventory.world_size),
        "threads_per_rank": str(inventory.cpus_per_worker),
        "driver": ", ".join(sorted({node.driver_version or "none" for node in hosts})),
        "torch": ", ".join(sorted({node.torch_version for node in hosts})),
        **{name: versions[name] for name in KERNEL_PACKAGES if name in versions},
        "optimizer": str(config.optimizer.sparse.kind),
        "weights": WEIGHTS,
    }


def cache_path(config: RunConfig, fingerprint: dict[str, str]) -> Path:
    """The file of a fingerprint, beside the runs."""
    digest = hashlib.blake2b(json.dumps(fingerprint, sort_keys=True).encode(), digest_size=6).hexdigest()
    return locate_runs(config.run.dir) / "profiles" / f"{digest}.json"


def _is_local_cpu(config: RunConfig) -> bool:
    """Whether a session would start Ray on this machine, and find no GPU to use."""
    is_joined = config.cluster.address is not None or find_job_address(os.environ) is not None
    has_gpu = config.cluster.device != "cpu" and (read_driver_version() != "" or Path("/dev/nvidiactl").exists())
    return not is_joined and config.cluster.device != "cuda" and not has_gpu


def _remove_leftovers(folder: Path) -> None:
    """Deletes what commands that were killed while they wrote have left."""
    for leftover in folder.glob(".*.json.*"):
        if time.time() - leftover.stat().st_mtime > LEFTOVER_AGE_S:
            leftover.unlink(missing_ok=True)
