"""What a host has is cut to its cgroup, version 1 or 2, the tightest parent included."""

import os
from pathlib import Path

import pytest

from cluster.host import count_cores, find_interface, measure_memory, read_cpu_name

MIB = 2**20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root folder of a host with 1,000 MiB, 800 of them available."""
    write(tmp_path, "proc/meminfo", f"MemTotal: {1000 * 1024} kB\nMemAvailable: {800 * 1024} kB\n")
    return tmp_path


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_without_cgroup_the_host_counts(root: Path) -> None:
    memory = measure_memory(root)
    assert (memory.total_bytes, memory.available_bytes) == (1000 * MIB, 800 * MIB)
    assert count_cores(root) == len(os.sched_getaffinity(0))


def test_cgroup_2_parent_limits_memory_and_cache_can_be_had(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/pod/task\n")
    write(root, "sys/fs/cgroup/pod/task/memory.max", "max\n")
    write(root, "sys/fs/cgroup/pod/memory.max", f"{400 * MIB}\n")
    write(root, "sys/fs/cgroup/pod/memory.current", f"{300 * MIB}\n")
    write(root, "sys/fs/cgroup/pod/memory.stat", f"anon 5\ninactive_file {50 * MIB}\n")
    memory = measure_memory(root)
    assert (memory.total_bytes, memory.available_bytes) == (400 * MIB, 150 * MIB)


def test_cgroup_1_limits_memory(root: Path) -> None:
    write(root, "proc/self/cgroup", "4:memory:/job\n3:cpu,cpuacct:/job\n")
    write(root, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", f"{600 * MIB}")
    write(root, "sys/fs/cgroup/memory/job/memory.usage_in_bytes", f"{100 * MIB}")
    memory = measure_memory(root)
    assert (memory.total_bytes, memory.available_bytes) == (600 * MIB, 500 * MIB)


@pytest.mark.parametrize(
    ("path", "text"),
    [("sys/fs/cgroup/cpu.max", "150000 100000"), ("sys/fs/cgroup/task/cpu.max", "50000 100000")],
)
def test_cgroup_2_quota_limits_cores_to_at_least_one(root: Path, path: str, text: str) -> None:
    write(root, "proc/self/cgroup", "0::/task\n")
    write(root, path, text)
    assert count_cores(root) == 1


def test_cgroup_1_quota_limits_cores_and_minus_one_does_not(root: Path) -> None:
    write(root, "proc/self/cgroup", "3:cpu,cpuacct:/job\n")
    write(root, "sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000")
    write(root, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "-1")
    assert count_cores(root) == len(os.sched_getaffinity(0))
    write(root, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "100000")
    assert count_cores(root) == 1


def test_this_host_is_read() -> None:
    memory = measure_memory()
    assert 0 < memory.available_bytes <= memory.total_bytes
    assert read_cpu_name()


def test_interface_of_an_address() -> None:
    assert find_interface("127.0.0.1") == "lo"
    assert find_interface("203.0.113.77") is None
