"""Checks of the environment; each finding says what was found and, where it is a fault, the line that mends it."""

import os
import shutil
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.host import count_cores, measure_memory
from launcher.run_dir import installed_versions, locate_runs
from launcher.schema import RunConfig
from planner.text import human_bytes

INSTALL_CPU = (
    "pip install torch==2.13.0 && pip install 'shardwright[cpu]' && pip install --no-deps torchrec==1.8.0"
    "  (or: make setup)"
)
INSTALL_GPU = "pip install 'shardwright[gpu]'  (or: make setup)"
# torch 2.x pairs with torchrec and fbgemm 1.(x - 5). Source: TorchRec releases 1.6 (torch 2.11) to 1.8 (2.13).
TORCH_MINOR_OFFSET = 5
LEAST_FREE_DISK_BYTES = 1 << 30
LEAST_FREE_MEMORY_BYTES = 2 << 30
# gcs of `ray start --head`, its dashboard and job server, TensorBoard.
PORTS = {"Ray head": 6379, "Ray dashboard and jobs": 8265, "TensorBoard": 6006}
HTTP_UNAUTHORIZED = 401


@dataclass(frozen=True)
class Finding:
    """One check: its name, whether it passed, what was found, and the line that mends a fault."""

    name: str
    is_ok: bool
    found: str
    mend: str = ""


def examine(config: RunConfig) -> list[Finding]:
    """Run every check; a check that breaks is itself a finding."""
    checks: list[Callable[[RunConfig], Iterator[Finding]]] = [
        check_python,
        check_versions,
        check_trio,
        check_devices,
        check_memory,
        check_ray,
        check_auth,
        check_ports,
        check_disk,
    ]
    findings = []
    for check in checks:
        try:
            findings += list(check(config))
        except Exception as error:
            name = check.__name__.removeprefix("check_")
            findings.append(Finding(name, False, f"{type(error).__name__}: {error}", install_line()))
    return findings


def render_findings(findings: list[Finding]) -> Iterator[str]:
    """A line a finding, the mending line below a fault."""
    for finding in findings:
        yield f"{'ok   ' if finding.is_ok else 'FAULT'} {finding.name}: {finding.found}"
        if finding.mend:
            yield f"      {'mend' if not finding.is_ok else 'note'}: {finding.mend}"


def install_line() -> str:
    """The line that installs the matched trio for this machine."""
    return INSTALL_GPU if shutil.which("nvidia-smi") else INSTALL_CPU


def check_python(_: RunConfig) -> Iterator[Finding]:
    """The interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding(
        "python", sys.version_info >= (3, 11), version, "" if sys.version_info >= (3, 11) else "install Python 3.11"
    )


def check_versions(_: RunConfig) -> Iterator[Finding]:
    """Whether torch, torchrec and fbgemm are a matched trio."""
    found = installed_versions()
    fbgemm = found.get("fbgemm-gpu") or found.get("fbgemm-gpu-cpu")
    trio = {"torch": found.get("torch"), "torchrec": found.get("torchrec"), "fbgemm": fbgemm}
    text = ", ".join(f"{name} {version or 'missing'}" for name, version in trio.items())
    if None in trio.values():
        yield Finding("versions", False, text, install_line())
        return
    torch_minor, torchrec_minor, fbgemm_minor = (int(str(v).split(".")[1]) for v in trio.values())
    is_matched = torch_minor - TORCH_MINOR_OFFSET == torchrec_minor == fbgemm_minor
    yield Finding(
        "versions",
        is_matched,
        text + ("" if is_matched else ": not a matched trio"),
        "" if is_matched else install_line(),
    )


def check_trio(_: RunConfig) -> Iterator[Finding]:
    """Whether the trio loads and trains one fused lookup on every kind of device here."""
    import torch

    from dlrm.selftest import train_one_lookup

    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        train_one_lookup(torch.device(device))
        yield Finding(f"fused lookup on {device}", True, "forward, backward and optimizer step ran")


def check_devices(config: RunConfig) -> Iterator[Finding]:
    """The devices that ranks would run on."""
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    if gpus:
        text = ", ".join(f"{gpu.name} {human_bytes(gpu.total_memory)}" for gpu in gpus)
        yield Finding("devices", True, text)
    elif config.cluster.device == "cuda":
        yield Finding(
            "devices", False, "no GPU is seen by torch", "cluster.device=cpu, or install the driver and the GPU build"
        )
    else:
        yield Finding("devices", True, f"no GPU; {count_cores()} CPU cores serve as devices")
    if shutil.which("nvidia-smi") and not gpus:
        yield Finding("gpu build", False, "nvidia-smi is here but torch sees no GPU", INSTALL_GPU)


def check_memory(_: RunConfig) -> Iterator[Finding]:
    """Free host memory and shared memory."""
    free = measure_memory().available_bytes
    yield Finding(
        "memory",
        free > LEAST_FREE_MEMORY_BYTES,
        f"{human_bytes(free)} free",
        "" if free > LEAST_FREE_MEMORY_BYTES else "free at least 2 GiB",
    )
    if Path("/dev/shm").is_dir():
        yield Finding("shared memory", True, f"{human_bytes(shutil.disk_usage('/dev/shm').free)} free in /dev/shm")


def check_ray(config: RunConfig) -> Iterator[Finding]:
    """Whether Ray loads, and whether the configured cluster answers."""
    yield Finding("ray", True, installed_versions().get("ray", "missing"))
    if config.cluster.address is None:
        yield Finding(
            "ray cluster", True, "none is configured: each run starts a local one (cluster.address=HOST:6379 joins one)"
        )
        return
    from cluster.errors import ClusterError
    from cluster.session import open_session

    try:
        with open_session(config.cluster.address) as session:
            yield Finding("ray cluster", True, f"{session.address} answers")
    except ClusterError as error:
        yield Finding("ray cluster", False, str(error), "ray start --head --port=6379 --dashboard-port=8265")


def check_auth(_: RunConfig) -> Iterator[Finding]:
    """Whether this shell and a job server that runs here agree on authentication."""
    mode = os.environ.get("RAY_AUTH_MODE")
    found = f"RAY_AUTH_MODE is {mode or 'not set'}"
    status = _job_server_status()
    if status == HTTP_UNAUTHORIZED:
        mend = (
            "export RAY_AUTH_MODE=token where you submit, with the head's token file; "
            "or start the head with RAY_AUTH_MODE=disabled"
        )
        yield Finding("ray auth", False, f"{found}; the job server answers 401", mend)
    else:
        answer = "no job server on this machine" if status is None else f"the job server answers {status}"
        yield Finding("ray auth", True, f"{found}; {answer}")


def check_ports(_: RunConfig) -> Iterator[Finding]:
    """Whether the usual ports are free; a taken one is no fault, it may be a running head."""
    for name, port in PORTS.items():
        with socket.socket() as probe:
            is_taken = probe.connect_ex(("127.0.0.1", port)) == 0
        yield Finding(f"port {port}", True, f"{'in use' if is_taken else 'free'} ({name})")


def check_disk(config: RunConfig) -> Iterator[Finding]:
    """Free space where runs are written."""
    folder = locate_runs(config.run.dir)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    is_ok = free > LEAST_FREE_DISK_BYTES and os.access(there, os.W_OK)
    yield Finding(
        "run folder",
        is_ok,
        f"{folder}, {human_bytes(free)} free",
        "" if is_ok else "run.dir=FOLDER with 1 GiB free, writable",
    )


def _job_server_status() -> int | None:
    """HTTP status of the local job server's version page; None where nothing answers."""
    address = os.environ.get("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{PORTS['Ray dashboard and jobs']}")
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=2) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
