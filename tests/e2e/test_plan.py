"""`plan` and `compare` from the command line: no Ray, no tables, no torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.command import Ran, shardwright

PLAN_KEYS = {
    "strategy", "estimated_step_ms", "max_rank_ms", "mean_rank_ms", "imbalance", "lower_bound_ms", "gap",
    "plan_seconds", "ranks", "tables",
}  # fmt: skip
RANK_KEYS = {"rank", "node", "hbm_bytes", "lookup_ms", "comms_ms", "total_ms", "num_shards"}
SHARD_KEYS = {"rank", "row_offset", "num_rows", "col_offset", "num_cols"}
H100 = ["--topology", "configs/hardware/h100_80gb_x8.yaml"]
MLPERF = ["--config", "configs/mlperf_dlrm_v2.yaml"]


@pytest.fixture
def run(repository: Path, ray_environment: dict[str, str]) -> object:
    return lambda *words: shardwright(*words, environment=ray_environment, cwd=repository)


@pytest.mark.parametrize("preset", ["h100_80gb_x8", "h100_80gb_2x8", "a100_80gb_x8"])
def test_mlperf_plans_on_every_preset_with_the_documented_keys(run: object, preset: str) -> None:
    ran: Ran = run("plan", *MLPERF, "--topology", f"configs/hardware/{preset}.yaml", "--json")
    assert ran.code == 0, ran.err
    plan = ran.json
    assert set(plan) >= PLAN_KEYS and set(plan["ranks"][0]) >= RANK_KEYS
    assert set(plan["tables"][0]) == {"name", "sharding_type", "shards"}
    assert set(plan["tables"][0]["shards"][0]) == SHARD_KEYS
    assert len(plan["tables"]) == 26 and len(plan["ranks"]) == (16 if "2x8" in preset else 8)
    assert 0 < plan["lower_bound_ms"] <= plan["estimated_step_ms"] and plan["imbalance"] >= 1


def test_planning_loads_neither_ray_nor_torch(repository: Path, ray_environment: dict[str, str]) -> None:
    code = (
        "import sys; from launcher.cli import main; "
        f"code = main({['plan', *MLPERF, '--topology', 'configs/hardware/h100_80gb_x8.yaml', '--json']!r}); "
        "sys.exit(code or ('ray' in sys.modules) * 10 + ('torch' in sys.modules) * 20)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, env=ray_environment, capture_output=True)
    assert done.returncode == 0


def test_an_infeasible_plan_exits_3_with_bytes_and_a_remedy(run: object, repository: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.yaml"
    text = (repository / "configs" / "hardware" / "h100_80gb_x8.yaml").read_text()
    small.write_text(text.replace("num_devices: 8", "num_devices: 1"))
    ran: Ran = run("plan", *MLPERF, "--topology", small)
    assert ran.code == 3 and ran.out == ""
    assert "bytes" in ran.err and "Traceback" not in ran.err
    assert max(map(len, ran.err.splitlines())) <= 100


def test_compare_lists_every_strategy(run: object) -> None:
    ran: Ran = run("compare", *MLPERF, "--topology", "configs/hardware/h100_80gb_x8.yaml", "--json")
    strategies = ran.json["strategies"]
    assert set(strategies) >= {"portfolio", "policy", "neuroshard", "longest_processing_time", "torchrec", "random"}
    failed = [name for name, plan in strategies.items() if "error" in plan]
    assert failed == ["exact"] and "placements" in strategies["exact"]["error"]
    steps = [plan["estimated_step_ms"] for plan in strategies.values() if "error" not in plan]
    assert steps == sorted(steps)
    assert strategies["portfolio"]["estimated_step_ms"] == steps[0]


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (["plan", "--config", "configs/mlperf_dlrm_v2.yml", "--topology", "x"], 2, "configs/mlperf_dlrm_v2.yaml?"),
        (["plan", *MLPERF, *H100, "--strategy", "size_gredy"], 2, "size_greedy"),
        (["plan", *MLPERF, "--topology", "configs/hardware/none.yaml"], 2, "none.yaml"),
        (["report", "/nowhere"], 2, "status.json"),
        (["pretrain", "policy", "--minutes", "-1"], 2, "above 0"),
        (["bench", "plans", "--tables", "pool.csv", "--num-tables", "few"], 2, "two whole numbers"),
        (["plan", "data.kind=criteo", "--topology", "configs/hardware/cpu_x2.yaml"], 2, "path"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_message(run: object, words: list[str], code: int, hint: str) -> None:
    ran: Ran = run(*words)
    assert ran.code == code and hint in ran.err and "Traceback" not in ran.err


def test_the_text_form_stays_within_100_columns(run: object) -> None:
    ran: Ran = run("plan", *MLPERF, "--topology", "configs/hardware/h100_80gb_2x8.yaml")
    assert ran.code == 0 and max(map(len, ran.out.splitlines())) <= 100
    assert "\x1b" not in ran.out and json.dumps("cat_20") not in ran.out and "cat_20" in ran.out
