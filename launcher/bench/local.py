"""The kept profile of the devices that a configuration names, as `train` would find or make it."""

from cluster.session import open_session
from launcher.preparation import find_devices
from launcher.profiling import Follow, find_kept_locally, obtain_profile
from launcher.schema import RunConfig
from planner.profile import Profile


def local_profile(config: RunConfig, follow: Follow) -> Profile:
    """The profile; measured now, in a Ray session of its own, where none is kept.

    Raises:
        ClusterError: A device cannot be measured (reason `profile`).
        PlanningError: The kept file cannot be read (reason `profile`).
    """
    kept = find_kept_locally(config)
    if kept is None:
        with open_session(config.cluster.address):
            inventory, described = find_devices(config)
            kept = obtain_profile(config, inventory, described.topology, follow)
    return kept.profile
