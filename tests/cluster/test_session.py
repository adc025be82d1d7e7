"""A session starts or joins Ray within limits of time, and leaves processes, files and signals as they were."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ClusterError
from cluster.session import check_answers, find_job_address, open_session

PATIENCE_S = 60.0

LOCAL_SESSION = """
import os, signal
from cluster.session import open_session
handler = lambda *_: None
signal.signal(signal.SIGTERM, handler)
with open_session(num_cpus=1) as session:
    import ray
    assert session.is_local and ray.cluster_resources()["CPU"] == 1
    assert signal.getsignal(signal.SIGTERM) is handler
    assert "RAY_AUTH_MODE" not in os.environ
    print("SESSION", ray._private.worker._global_node.get_session_dir_path())
assert signal.getsignal(signal.SIGTERM) is handler
assert not ray.is_initialized()
"""

DRIVER = """
import os, signal, sys
from cluster.inventory import take_inventory
from cluster.session import open_session
from cluster.worker_group import WorkerGroup
from tests.cluster import rank_functions
open_session(sys.argv[1])
group = WorkerGroup.start(take_inventory("cpu", 2))
group.run(rank_functions.report_until_told)
print("PIDS", *[worker.pid for worker in group.workers], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def run_python(code: str, environment: dict[str, str], repository: Path, *arguments: str) -> str:
    """Runs code in a process of its own and gives its standard output."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.stdout


def line_after(word: str, text: str) -> list[str]:
    """Gives the words after the first one of the line that starts with it."""
    return next(line.split()[1:] for line in text.splitlines() if line.startswith(word))


def has_word(pid: int, word: str) -> bool:
    """Tells whether a process is alive, no zombie, and has a word on its command line."""
    try:
        return word in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return False


def test_a_job_is_recognised_by_what_ray_sets() -> None:
    assert find_job_address({"RAY_ADDRESS": "10.0.0.1:6379", "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}) == "10.0.0.1:6379"
    assert find_job_address({"RAY_ADDRESS": "10.0.0.1:6379"}) is None
    assert find_job_address({}) is None


@pytest.mark.parametrize("address", ["somewhere", "host:", ":6379", "ray://host:10001", "http://host:8265"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match=f"found '{address}'") as info:
        check_answers(address, 1.0)
    assert info.value.reason == "address"


def test_a_dead_address_is_unreachable_before_ray_begins_to_wait() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"No Ray cluster answers at {address}: .*refused.*ray start") as info:
            open_session(address)
    assert info.value.reason == "unreachable"


@pytest.mark.parametrize(("answer", "found"), [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "something else"), (b"", "0.5 s")])
def test_a_port_of_something_else_is_told_from_ray(answer: bytes, found: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []

        def serve() -> None:
            connection, _ = server.accept()
            kept.append(connection)
            connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(ClusterError, match=found) as info:
            check_answers(f"127.0.0.1:{server.getsockname()[1]}", 0.5)
    assert info.value.reason == "unreachable"


@pytest.mark.ray
def test_the_dashboards_port_is_no_address(ray_head: Any) -> None:
    with pytest.raises(ClusterError, match="something else than Ray's control store"):
        open_session(ray_head.dashboard.removeprefix("http://"))


@pytest.mark.ray
def test_a_joined_cluster_is_left_running(ray_head: Any) -> None:
    for _ in range(2):
        with open_session(ray_head.address) as session:
            assert not session.is_local
            with pytest.raises(ClusterError, match="already connected") as info:
                open_session(ray_head.address)
            assert info.value.reason == "already_open"
    check_answers(ray_head.address, 5.0)


@pytest.mark.ray
def test_a_job_joins_the_cluster_that_runs_it(ray_head: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_head.address)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with open_session() as session:
        assert not session.is_local
        assert session.address.endswith(ray_head.address.rpartition(":")[2])


@pytest.mark.ray
def test_auto_joins_the_cluster_that_the_environment_names(ray_head: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_head.address)
    with open_session("auto") as session:
        assert session.address.endswith(ray_head.address.rpartition(":")[2])
    monkeypatch.setenv("RAY_ADDRESS", ray_head.dashboard)
    with pytest.raises(ClusterError, match="found 'http://") as info:
        open_session("auto")
    assert info.value.reason == "address"


@pytest.mark.ray
def test_a_local_cluster_leaves_no_process_no_memory_and_no_token(
    ray_environment: dict[str, str], repository: Path, tmp_path: Path
) -> None:
    environment = {name: value for name, value in ray_environment.items() if name != "RAY_AUTH_MODE"}
    shared_before = set(os.listdir("/dev/shm"))
    output = run_python(LOCAL_SESSION, environment | {"HOME": str(tmp_path)}, repository)
    (session_dir,) = line_after("SESSION", output)
    left = [pid for pid in os.listdir("/proc") if pid.isdigit() and has_word(int(pid), session_dir)]
    assert left == []
    assert set(os.listdir("/dev/shm")) <= shared_before
    assert not list(tmp_path.rglob("*token*"))


@pytest.mark.ray
def test_workers_end_with_their_driver(ray_head: Any, repository: Path) -> None:
    output = run_python(DRIVER, ray_head.environment, repository, ray_head.address)
    pids = [int(word) for word in line_after("PIDS", output)]
    assert len(pids) == 2
    deadline_s = time.monotonic() + PATIENCE_S
    while any(has_word(pid, "Worker") for pid in pids):
        assert time.monotonic() < deadline_s, f"workers outlive their driver: {pids}"
        time.sleep(0.1)
