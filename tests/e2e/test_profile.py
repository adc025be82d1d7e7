"""`profile` measures once; later commands, plans without a cluster and runs use what it kept."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import SMALL, Ran, command_line, shardwright

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LOCAL = ["cluster.device=cpu", "cluster.num_workers=2", "profile.budget_s=5"]
FORBIDDEN = """
import sys
from launcher.cli import main
forbidden, *words = sys.argv[1:]
code = main(words)
loaded = [name for name in forbidden.split(",") if name in sys.modules]
sys.exit(code or (f"loaded {loaded}" if loaded else 0))
"""


@pytest.fixture(scope="module")
def measured(ray_environment: dict[str, str], repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `profile --json` printed on Ray of its own, and the folder of runs."""
    runs = tmp_path_factory.mktemp("runs")
    words = ["profile", "--json", f"run.dir={runs}", *LOCAL]
    return shardwright(*words, environment=ray_environment, cwd=repository), runs


def without(forbidden: str, repository: Path, environment: dict[str, str], *words: object) -> Any:
    command = [sys.executable, "-c", FORBIDDEN, forbidden, *map(str, words)]
    return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=120)


def test_a_profile_is_measured_kept_and_summarised(measured: tuple[Ran, Path]) -> None:
    ran, runs = measured
    assert ran.code == 0, ran.err
    found = ran.json
    assert found["reused"] is False and Path(found["path"]).parent == runs / "profiles"
    kept = json.loads(Path(found["path"]).read_text())
    assert kept["fingerprint"] == found["fingerprint"] and kept["fingerprint"]["world_size"] == "2"
    (device,) = found["devices"]
    assert device["num_ranks"] == 2 and device["num_lookups"] == len(kept["devices"][0]["lookups"]) > 0
    assert device["forward_bytes_per_s"] > 0 and device["backward_bytes_per_s"] > 0
    assert {each["collective"] for each in found["collectives"]} == {
        "all_to_all", "reduce_scatter", "all_gather", "all_reduce"
    }  # fmt: skip
    assert "profile: lookups" in ran.err


def test_the_second_launch_reuses_it_without_ray_and_torch(
    measured: tuple[Ran, Path], repository: Path, ray_environment: dict[str, str]
) -> None:
    ran, runs = measured
    words = ["profile", f"run.dir={runs}", *LOCAL]
    done = without("ray,torch", repository, ray_environment, *words, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {**ran.json, "reused": True}
    text = without("ray,torch", repository, ray_environment, *words).stdout
    assert "profile reused" in text and ran.json["created"] in text
    assert max(map(len, text.splitlines()[:-1])) <= 100


def test_a_profile_alone_is_enough_to_plan(
    measured: tuple[Ran, Path], repository: Path, ray_environment: dict[str, str]
) -> None:
    path = measured[0].json["path"]
    words = ["--config", "configs/quickstart.yaml", "--profile", path, "--json"]
    done = without("ray", repository, ray_environment, "plan", *words)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["ranks"]) == 2
    preset = ["--topology", "configs/hardware/h100_80gb_x8.yaml"]
    other = without("ray", repository, ray_environment, "plan", *words, *preset)
    assert other.returncode == 2 and "the profile has no device kind h100_80gb" in other.stderr
    missing = without("ray,torch", repository, ray_environment, "plan", "--profile", "none.json")
    assert missing.returncode == 2 and "none.json" in missing.stderr and "Traceback" not in missing.stderr


def test_training_profiles_by_itself_and_its_run_keeps_a_copy(ray_head: Any, repository: Path, tmp_path: Path) -> None:
    keys = [f"cluster.address={ray_head.address}", f"run.dir={tmp_path}", *LOCAL, *SMALL, "train.steps=10"]
    words = ["train", "--config", "configs/quickstart.yaml", *keys]
    first = shardwright(*words, "run.name=a", environment=ray_head.environment, cwd=repository)
    assert first.code == 0, first.err
    assert "profile kept" in first.out
    (kept,) = (tmp_path / "profiles").iterdir()
    assert (tmp_path / "a" / "profile.json").read_text() == kept.read_text()
    dry = shardwright(*words, "--dry-run", environment=ray_head.environment, cwd=repository)
    assert dry.code == 0 and "profile reused" in dry.out


def test_a_killed_profile_leaves_nothing(ray_head: Any, repository: Path, tmp_path: Path) -> None:
    keys = [f"cluster.address={ray_head.address}", f"run.dir={tmp_path}", *LOCAL, "profile.budget_s=60"]
    command = subprocess.Popen(
        command_line("profile", *keys), env=ray_head.environment, cwd=repository, stderr=subprocess.PIPE, text=True
    )
    assert command.stderr is not None
    for line in command.stderr:
        if line.startswith("profile: dense"):
            break
    command.kill()
    command.wait(30)
    folder = tmp_path / "profiles"
    assert not folder.exists() or not list(folder.iterdir())


def test_what_cannot_be_measured_ends_with_the_reason(ray_head: Any, repository: Path, tmp_path: Path) -> None:
    keys = [f"cluster.address={ray_head.address}", f"run.dir={tmp_path}", *LOCAL, "optimizer.sparse.kind=adam"]
    ran = shardwright("profile", *keys, environment=ray_head.environment, cwd=repository)
    assert ran.code == 5 and "cannot be measured" in ran.err and "adam" in ran.err and "Traceback" not in ran.err
    assert not (tmp_path / "profiles").exists()
