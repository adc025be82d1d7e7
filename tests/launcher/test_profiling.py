"""Which kept profile fits a job, and how a measured one reads."""

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.inventory import Inventory, NodeFacts, build_inventory
from launcher.config import load_config
from launcher.hardware import describe_cluster
from launcher.profiling import (
    LEFTOVER_AGE_S,
    _remove_leftovers,
    cache_path,
    find_kept_locally,
    take_fingerprint,
)
from launcher.schema import RunConfig
from launcher.views.profiling import effective_bytes_per_s, fit_line
from planner.lookups import NUM_REUSE_BINS, LookupSet, LookupShard
from planner.profile import LookupMeasurement, Timing
from planner.tables import OptimizerKind
from planner.topology import DeviceType

GIB = 2**30
NODE = NodeFacts("a", "host", "10.0.0.1", 4, 4, 0, (), 16 * GIB, 8 * GIB, "some CPU", "3.11", "2.13")


def config(runs: Path, *overrides: str) -> RunConfig:
    return load_config(None, [f"run.dir={runs}", *overrides])


def fingerprint(job: RunConfig, *nodes: NodeFacts, workers: int = 2) -> dict[str, str]:
    inventory: Inventory = build_inventory(nodes or (NODE,), DeviceType.CPU, workers, 1)
    return take_fingerprint(job, inventory, describe_cluster(inventory, None).topology)


def test_a_fingerprint_survives_a_restart(tmp_path: Path) -> None:
    later = replace(NODE, node_id="b", ip="10.0.0.9", available_memory_bytes=7 * GIB)
    job = config(tmp_path)
    assert fingerprint(job) == fingerprint(job, later)
    assert cache_path(job, fingerprint(job)).parent == tmp_path / "profiles"


@pytest.mark.parametrize(
    "change",
    [
        {"workers": 3},
        {"node": replace(NODE, cpu_name="another CPU")},
        {"node": replace(NODE, num_cores=8)},
        {"node": replace(NODE, torch_version="2.14")},
        {"node": replace(NODE, driver_version="550.54")},
        {"keys": ["optimizer.sparse.kind=sgd"]},
    ],
)
def test_whatever_changes_times_changes_the_fingerprint(tmp_path: Path, change: dict) -> None:  # type: ignore[type-arg]
    job, base = config(tmp_path, *change.get("keys", [])), config(tmp_path)
    changed = fingerprint(job, change.get("node", NODE), workers=change.get("workers", 2))
    assert cache_path(base, fingerprint(base)) != cache_path(job, changed)


def test_nodes_that_split_the_ranks_differently_are_another_cluster(tmp_path: Path) -> None:
    job, other = config(tmp_path), replace(NODE, node_id="b")
    assert fingerprint(job, NODE, workers=4) == fingerprint(job, NODE, other, workers=4), "b hosts no rank"
    one, split = replace(NODE, num_cpus=2), replace(other, num_cpus=2)
    assert fingerprint(job, NODE, workers=4) != fingerprint(job, one, split, workers=4)


def test_only_a_local_cpu_job_is_looked_up_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cache_path(config(tmp_path), {})
    path.parent.mkdir()
    monkeypatch.setattr("launcher.profiling.cache_path", lambda *_: path)
    path.write_text("no profile")
    with pytest.raises(Exception, match="cannot be read"):
        find_kept_locally(config(tmp_path, "cluster.device=cpu", "cluster.num_workers=1"))
    assert find_kept_locally(config(tmp_path, "cluster.address=auto")) is None
    assert find_kept_locally(config(tmp_path, "cluster.device=cuda")) is None
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert find_kept_locally(config(tmp_path, "cluster.device=cpu", "cluster.num_workers=1")) is None


def test_leftovers_of_killed_commands_go_and_files_being_written_stay(tmp_path: Path) -> None:
    kept, fresh, stale = (tmp_path / name for name in ("a.json", ".a.json.7.1", ".b.json.8.2"))
    for path in (kept, fresh, stale):
        path.write_text("{}")
    for path in (kept, stale):
        os.utime(path, (0, time.time() - 2 * LEFTOVER_AGE_S))
    _remove_leftovers(tmp_path)
    assert kept.exists() and fresh.exists() and not stale.exists()


def test_a_line_is_found_again_and_never_has_a_negative_latency() -> None:
    sizes = np.array([1e3, 1e5, 1e7])
    latency_ms, rate = fit_line(sizes, 0.5 + sizes / 2e9 * 1e3)
    assert (latency_ms, rate) == (pytest.approx(0.5), pytest.approx(2e9))
    latency_ms, rate = fit_line(np.array([1e5, 1e6, 1e7]), np.array([0.001, 0.1, 5.0]))
    assert latency_ms == 0.0 and rate > 0


def test_effective_bandwidth_counts_what_a_pass_must_move() -> None:
    shard = LookupShard(1000, 64, 2.0, 100.0, (1.0, *[0.0] * (NUM_REUSE_BINS - 1)))
    sets = LookupSet(50, OptimizerKind.ROWWISE_ADAGRAD, (shard,))
    one = LookupMeasurement(sets, Timing(1.0, 0.0, 6), Timing(2.0, 0.0, 6), 1.0)
    forward, backward = effective_bytes_per_s((one,))
    assert forward == pytest.approx((100 * (64 * 4 + 8) + 50 * 64 * 4) * 1e3)
    assert backward == pytest.approx((100 * (64 * 4 + 16) + 2 * 100 * (64 * 4 + 4)) / 2 * 1e3)
