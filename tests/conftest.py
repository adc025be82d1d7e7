"""Fixtures that every test package shares."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.command import Ran, keys, shardwright

REPOSITORY = Path(__file__).resolve().parent.parent
HEAD_START_TIMEOUT_S = 90
HEAD_STOP_TIMEOUT_S = 30


@dataclass(frozen=True)
class RayHead:
    """A real Ray head of this test session: address is host:port for a session, dashboard the URL for jobs."""

    address: str
    dashboard: str
    environment: dict[str, str]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where torch sees none, and say so."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch sees none"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; users do not have it, so its tests skip there."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real data sets are not at hand (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def ray_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which tests use Ray, also set in this process: a scratch HOME, no token, no usage report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield dict(os.environ)


@pytest.fixture(scope="session")
def ray_head(ray_environment: dict[str, str]) -> Iterator[RayHead]:
    """One head with 4 CPUs and the dashboard for the whole test session; stopped by its pid, never by `ray stop`."""
    temp_dir = tempfile.mkdtemp(prefix="sw", dir="/tmp")  # short: Ray's socket paths must stay under 107 bytes
    port, dashboard_port, client_port, agent_port = _free_ports(4)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--port={port}", f"--dashboard-port={dashboard_port}", f"--ray-client-server-port={client_port}"]
    command += [f"--dashboard-agent-listen-port={agent_port}", "--num-cpus=4", "--object-store-memory=100000000"]
    with (Path(temp_dir) / "head.log").open("wb") as log:
        head = subprocess.Popen(
            [*command, f"--temp-dir={temp_dir}"], env=ray_environment, cwd=REPOSITORY, stdout=log, stderr=log
        )
    try:
        dashboard = f"http://127.0.0.1:{dashboard_port}"
        _wait_for_head(head, dashboard, Path(log.name))
        yield RayHead(f"127.0.0.1:{port}", dashboard, ray_environment)
    finally:
        head.terminate()
        head.wait(HEAD_STOP_TIMEOUT_S)
        shutil.rmtree(temp_dir, ignore_errors=True)  # with ray_current_cluster, which makes a later `auto` hang


@pytest.fixture(scope="session")
def finished(ray_head: RayHead, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path]:
    """One small run of the quick start on the head: what `train --json` printed, and the run's folder."""
    runs = tmp_path_factory.mktemp("runs")
    words = ["train", "--config", "configs/quickstart.yaml", "--json"]
    more = keys(ray_head.address, runs, "run.name=first", "train.steps=60")
    return shardwright(*words, *more, environment=ray_head.environment, cwd=repository), runs / "first"


def _free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on now."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _wait_for_head(head: "subprocess.Popen[bytes]", dashboard: str, log: Path) -> None:
    """Returns when the job server answers, which is the last part of a head to come up."""
    deadline_s = time.monotonic() + HEAD_START_TIMEOUT_S
    while time.monotonic() < deadline_s and head.poll() is None:
        try:
            with urllib.request.urlopen(f"{dashboard}/api/jobs/", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"the Ray head did not come up within {HEAD_START_TIMEOUT_S} s:\n{log.read_text()[-4000:]}")
