"""Starts Ray on this machine or joins a running cluster, and leaves either the way it was found."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cluster.errors import ClusterError
from cluster.host import count_cores

# Only records and commands of a few KiB travel through Ray; its default, 30 % of the memory, belongs to the tables.
# Source: Ray 2.60, ray_constants.OBJECT_STORE_MINIMUM_MEMORY_BYTES is 75 MiB.
OBJECT_STORE_BYTES = 200_000_000

# The client's connection preface, then an empty SETTINGS frame; a server answers with its own.
# Source: RFC 9113, sections 3.4 and 6.5.
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
SETTINGS_FRAME_TYPE = 4

# What Ray's job supervisor sets in the environment of a submitted driver.
# Source: Ray 2.60, job_supervisor._get_driver_env_vars.
JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
ADDRESS_VARIABLE = "RAY_ADDRESS"


class RaySession:
    """This process's connection to Ray; `with open_session() as session:` closes it whatever happens.

    Attributes:
        address: `host:port` of the cluster's control store (GCS).
        is_local: Whether the cluster was started here, and so ends with the session.
    """

    def __init__(self, address: str, *, is_local: bool) -> None:
        """Describes a connection that `open_session` has made."""
        self.address = address
        self.is_local = is_local

    def close(self) -> None:
        """Shuts down a cluster that was started here and waits for its processes; only leaves one that was joined."""
        import ray

        if ray.is_initialized():
            with _sigterm_handler_kept():
                ray.shutdown(wait_for_processes=self.is_local)

    def __enter__(self) -> RaySession:
        """Gives the session itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the session."""
        self.close()


def open_session(
    address: str | None = None,
    num_cpus: int | None = None,
    namespace: str = "shardwright",
    connect_timeout_s: float = 15.0,
) -> RaySession:
    """Connects this process to Ray.

    Ray puts its own SIGTERM handler in place when it starts. A handler that the caller had installed is put back;
    where there was none, Ray's stays, since it leaves through `sys.exit` and so through every `finally`.

    Args:
        address: `host:port` of a running cluster; `auto` for the one that Ray finds on this machine; None starts a
            local one, except in a driver that `ray job submit` runs, which joins the cluster that runs it.
        num_cpus: CPUs that a local cluster may hand out; None means the cores that affinity and cgroup allow.
        namespace: Ray namespace of the session.
        connect_timeout_s: Longest wait for an answer from a cluster that is to be joined.

    Raises:
        ClusterError: `already_open`, `address`, `unreachable` (no Ray answers there), `unauthenticated`.
    """
    import ray

    if ray.is_initialized():
        raise ClusterError(
            "This process is already connected to Ray. Close that session first, or let open_session make it.",
            reason="already_open",
        )
    if address is None:
        address = find_job_address(os.environ)
    with _sigterm_handler_kept():
        if address is None:
            return _start_local(count_cores() if num_cpus is None else num_cpus, namespace)
        return _join(address, namespace, connect_timeout_s)


def find_job_address(environment: Mapping[str, str]) -> str | None:
    """Gives the address of the cluster whose `ray job submit` runs this process, or None outside such a job."""
    return environment.get(ADDRESS_VARIABLE) if JOB_CONFIG_VARIABLE in environment else None


def check_answers(address: str, timeout_s: float) -> None:
    """Raises ClusterError unless a gRPC server, as Ray's control store is one, answers at `host:port` in time.

    `ray.init` itself retries for minutes on a dead address (40 to over 160 s seen with Ray 2.60), and knows no limit.
    """
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise ClusterError(
            f"Ray address: expected 'auto' or host:port, found {address!r}. "
            "The port is that of `ray start --head --port`, 6379 unless told otherwise.",
            reason="address",
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "0":  # a TLS server would refuse the plain preface
                connection.settimeout(timeout_s)
                connection.sendall(HTTP2_PREFACE)
                is_grpc = connection.recv(9)[3:4] == bytes([SETTINGS_FRAME_TYPE])
            else:
                is_grpc = True
    except OSError as error:
        raise _unreachable(address, f"{error} (waited at most {timeout_s:g} s)") from error
    if not is_grpc:
        raise _unreachable(address, "something else than Ray's control store listens there (the dashboard's port?)")


def _start_local(num_cpus: int, namespace: str) -> RaySession:
    """Starts a cluster of this machine alone, without a dashboard, and connects to it."""
    with _environment({"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}):
        context = _init(
            address="local",
            num_cpus=num_cpus,
            namespace=namespace,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
        )
    return RaySession(context.address_info["gcs_address"], is_local=True)


def _join(address: str, namespace: str, timeout_s: float) -> RaySession:
    """Connects to a running cluster after a look whether it answers at all."""
    check_answers(_find_on_this_machine() if address == "auto" else address, timeout_s)
    try:
        # `auto` goes to Ray as it is: only then does it use the token of this machine's own cluster.
        context = _init(address=address, namespace=namespace)
    except Exception as error:
        import ray

        ray.shutdown()  # a half-made connection would count as an open one
        if isinstance(error, ray.exceptions.AuthenticationError):
            raise ClusterError(
                f"The Ray cluster at {address} did not accept this user: {error}. "
                "Set RAY_AUTH_MODE and the token as the cluster has them (`ray get-auth-token`).",
                reason="unauthenticated",
            ) from error
        raise _unreachable(address, str(error)) from error
    return RaySession(context.address_info["gcs_address"], is_local=False)


def _find_on_this_machine() -> str:
    """Gives the address that Ray's `auto` means here: RAY_ADDRESS, else the newest cluster of this machine."""
    from ray._private.services import get_ray_address_from_environment

    try:
        return str(get_ray_address_from_environment("auto", None))
    except ConnectionError as error:
        raise _unreachable("auto", "no Ray cluster runs on this machine") from error


def _init(**arguments: Any) -> Any:
    """Calls `ray.init` quietly: the logs of workers stay in their files."""
    import ray

    return ray.init(log_to_driver=False, logging_level="ERROR", **arguments)


def _unreachable(address: str, found: str) -> ClusterError:
    """Builds the error for a cluster that does not answer."""
    return ClusterError(
        f"No Ray cluster answers at {address}: {found}. Start one there (`ray start --head --port=6379`), correct the "
        "address, or give none to start Ray on this machine alone.",
        reason="unreachable",
    )


@contextmanager
def _environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Sets the variables that the user has not set, for the processes that Ray starts meanwhile."""
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _sigterm_handler_kept() -> Iterator[None]:
    """Puts the caller's own SIGTERM handler back, which Ray replaces; only the main thread can."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        is_own = handler not in (signal.SIG_DFL, signal.SIG_IGN, None)
        if is_own and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
