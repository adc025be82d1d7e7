"""What one machine has, read from inside it: cores, memory, GPUs, each within the limits of its cgroup."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
SIOCGIFADDR = 0x8915  # Source: linux/sockios.h, "get PA address" of an interface.


@dataclass(frozen=True)
class Gpu:
    """One GPU: its product name and its total memory."""

    name: str
    memory_bytes: int


@dataclass(frozen=True)
class HostMemory:
    """Memory of the host or, where it is smaller, of the cgroup.

    Attributes:
        total_bytes: What there is at most.
        available_bytes: What can still be had now, reclaimable file cache included.
    """

    total_bytes: int
    available_bytes: int


def measure_memory(root: Path = ROOT) -> HostMemory:
    """Gives the host's memory from `/proc/meminfo`, cut to the tightest cgroup (v1 or v2) around this process."""
    meminfo = _read_table(root / "proc/meminfo")
    total_bytes, available_bytes = meminfo["MemTotal"] * 1024, meminfo["MemAvailable"] * 1024
    for folder in _cgroup_folders(root, "memory"):
        limit_bytes = _read_first(folder, "memory.max", "memory.limit_in_bytes")
        used_bytes = _read_first(folder, "memory.current", "memory.usage_in_bytes")
        if limit_bytes is None or used_bytes is None:
            continue
        stat = _read_table(folder / "memory.stat")
        reclaimable_bytes = stat.get("total_inactive_file", stat.get("inactive_file", 0))
        total_bytes = min(total_bytes, limit_bytes)
        available_bytes = min(available_bytes, max(0, limit_bytes - used_bytes + reclaimable_bytes))
    return HostMemory(total_bytes, available_bytes)


def count_cores(root: Path = ROOT) -> int:
    """Gives how many cores this process may use: its affinity, cut to the tightest cgroup quota, at least 1."""
    num_cores = float(len(os.sched_getaffinity(0)))
    for folder in _cgroup_folders(root, "cpu"):
        quota_us, period_us = _read_cpu_quota(folder)
        if quota_us is not None and quota_us > 0 and period_us:
            num_cores = min(num_cores, quota_us / period_us)
    return max(1, int(num_cores))


def read_cpu_name(root: Path = ROOT) -> str:
    """Gives the processor's model name, or the machine type where `/proc/cpuinfo` has none (64-bit Arm)."""
    for line in (root / "proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine


def read_driver_version(root: Path = ROOT) -> str:
    """Gives the version of the NVIDIA kernel driver, empty where there is none."""
    path = root / "proc/driver/nvidia/version"
    words = path.read_text().split() if path.exists() else []
    return next((word for word in words if word[0].isdigit() and "." in word), "")


def list_gpus() -> tuple[Gpu, ...]:
    """Gives the GPUs that torch in this process can use, in CUDA order."""
    import torch

    found = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return tuple(Gpu(properties.name, properties.total_memory) for properties in found)


def find_interface(ip: str) -> str | None:
    """Gives the name of the network interface that has this IPv4 address, or None."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                reply = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
            except OSError:  # an interface without an IPv4 address
                continue
            if socket.inet_ntoa(reply[20:24]) == ip:
                return name
    return None


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Yields the cgroup folders of this process for a controller, its own first, then every parent."""
    listing = root / "proc/self/cgroup"
    for line in listing.read_text().splitlines() if listing.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controller if controllers else "")
        own = base / path.lstrip("/")
        yield own
        yield from (parent for parent in own.parents if parent.is_relative_to(base))


def _read_cpu_quota(folder: Path) -> tuple[int | None, int | None]:
    """Gives quota and period in microseconds of a cgroup folder; None where there is no limit."""
    version_2 = folder / "cpu.max"
    if version_2.exists():
        quota, period = version_2.read_text().split()
        return (None if quota == "max" else int(quota)), int(period)
    return _read_first(folder, "cpu.cfs_quota_us"), _read_first(folder, "cpu.cfs_period_us")


def _read_first(folder: Path, *names: str) -> int | None:
    """Gives the number in the first of these files that exists, or None (also for `max`)."""
    for name in names:
        if (folder / name).exists():
            text = (folder / name).read_text().strip()
            return None if text == "max" else int(text)
    return None


def _read_table(path: Path) -> dict[str, int]:
    """Reads lines of `name: number ...` or `name number`; an absent file has none."""
    lines = path.read_text().splitlines() if path.exists() else []
    words = (line.replace(":", " ").split() for line in lines)
    return {word[0]: int(word[1]) for word in words if len(word) > 1}
