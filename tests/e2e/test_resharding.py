"""A job whose load drifts moves its tables while it trains; advice moves nothing; a user's plan is moved to."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.telemetry import Block
from launcher.run_dir import RunDir
from launcher.telemetry_file import read_steps
from planner.cost.estimator import LOOKUP_PHASES
from tests.conftest import RayHead
from tests.e2e.command import command_line, keys, shardwright

pytestmark = [pytest.mark.ray, pytest.mark.slow]

DRIFT_STEP = 120
# So large that noise hides neither the drift nor what a move gains: of small batches lookups are a small part.
DRIFT = f"inject=[{{kind: hot_table, tables: [table_4], from_step: {DRIFT_STEP}, percent: 3000}}]"
# The hot rows of synthetic tables are the first ones: no cut of rows evens them out, which no estimate knows.
WHOLE_ROWS = "planner.constraints=[{tables: ['*'], sharding_types: [table_wise, column_wise]}]"
WATCH = ["imbalance.warmup_steps=10", "imbalance.baseline_steps=60", "train.checkpoint=false"]
RESHARDING = ["resharding.enabled=true", "resharding.settle_steps=20", "resharding.cool_down_steps=60"]
MIGRATION_KEYS = {"step", "reason", "moved_bytes", "pause_ms", "predicted_gain_ms", "realised_gain_ms"}


def train(ray_head: RayHead, repository: Path, runs: Path, *more: str) -> dict[str, Any]:
    words = ["train", "--config", "configs/quickstart_drift.yaml", "--json"]
    wanted = keys(ray_head.address, runs, *WATCH, *RESHARDING, DRIFT, WHOLE_ROWS, *more)
    ran = shardwright(*words, *wanted, environment=ray_head.environment, cwd=repository)
    assert ran.code == 0, ran.err
    report: dict[str, Any] = ran.json
    return report


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]


def lookup_imbalance(block: Block, since_step: int = 0) -> float:
    """Max / mean over ranks of the median lookups, forward and backward."""
    columns = list(block.labels["columns"])
    picked = [columns.index(f"{phase}_ms") for phase in LOOKUP_PHASES]
    ranks_ms = np.median(block.rows[block.steps > since_step][..., picked].sum(axis=2), axis=0)
    return float(ranks_ms.max() / ranks_ms.mean())


def test_a_hot_table_leads_to_a_move_that_mends_the_balance(
    ray_head: RayHead, repository: Path, tmp_path: Path
) -> None:
    report = train(ray_head, repository, tmp_path, "run.name=moved", "train.steps=420")
    assert report["result"] == "done" and report["steps"] == 420
    first = report["migrations"][0]
    assert set(first) >= MIGRATION_KEYS and first["is_committed"] and first["step"] > DRIFT_STEP, report["decisions"]
    assert first["moved_bytes"] > 0 and first["pause_ms"] > 0 and first["predicted_gain_ms"] > 0
    before, after = read_steps(RunDir(tmp_path / "moved"))[:2]
    assert before.steps[-1] == first["step"] == after.steps[0] - 1
    assert lookup_imbalance(after) - 1 < 0.7 * (lookup_imbalance(before, since_step=DRIFT_STEP) - 1)
    assert len(report["plans"]) == 1 + len(report["migrations"])
    assert report["plans"][0]["tables"] != report["plans"][1]["tables"]
    kinds = [record["kind"] for record in records(tmp_path / "moved")]
    assert kinds.index("verdict") < kinds.index("decision") < kinds.index("migration") < kinds.index("outcome")
    events = EventAccumulator(str(tmp_path / "moved" / "tensorboard"))
    events.Reload()
    assert events.Scalars("resharding/moved_bytes")[0].step == first["step"]
    assert {"events/decision/text_summary", "events/migration/text_summary"} <= set(events.Tags()["tensors"])


def test_advice_moves_nothing(ray_head: RayHead, repository: Path, tmp_path: Path) -> None:
    report = train(ray_head, repository, tmp_path, "run.name=advised", "train.steps=600", "resharding.mode=advise")
    assert report["migrations"] == [] and len(report["plans"]) == 1
    answers = [(decision["answer"], decision["reason"]) for decision in report["decisions"]]
    assert "advised" in dict(answers), "\n".join(map(str, answers))


def wait_for_records(run: Path, process: "subprocess.Popen[str]") -> None:
    deadline_s = time.monotonic() + 120
    while not (run / "records.jsonl").exists() or not (run / "records.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline_s, "the run never wrote a record"
        time.sleep(0.2)


def swapped_plan(run: Path) -> dict[str, Any]:
    """The plan that trains, with the ranks of its unreplicated tables in each other's place."""
    plan = json.loads((run / "plans" / "000.json").read_text())
    for table in plan["tables"]:
        for shard in table["shards"] if table["sharding_type"] != "data_parallel" else []:
            shard["rank"] = 1 - shard["rank"]
    return dict(plan)


def test_a_users_plan_is_moved_to_and_a_wrong_one_refused(ray_head: RayHead, repository: Path, tmp_path: Path) -> None:
    words = command_line("train", "--config", "configs/quickstart.yaml")
    endless = keys(ray_head.address, tmp_path, "run.name=asked", "train.steps=1000000")
    process = subprocess.Popen(
        [*words, *endless], env=ray_head.environment, cwd=repository, stdout=subprocess.PIPE, text=True
    )
    run, file = tmp_path / "asked", tmp_path / "plan.json"
    try:
        wait_for_records(run, process)
        plan = swapped_plan(run)
        file.write_text(json.dumps(plan))
        moved = shardwright("reshard", run, "--plan", file, environment=ray_head.environment, cwd=repository)
        again = shardwright("reshard", run, "--plan", file, "--json", environment=ray_head.environment, cwd=repository)
        file.write_text(json.dumps({**plan, "tables": plan["tables"][1:]}))
        refused = shardwright("reshard", run, "--plan", file, environment=ray_head.environment, cwd=repository)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 75
    assert moved.code == 0 and "moved after step" in moved.out and "training paused for" in moved.out, moved
    assert again.code == 0 and again.json["status"] == "unchanged"
    assert refused.code == 3 and "is missing from the plan" in refused.out
    late = shardwright("reshard", run, "--plan", file, environment=ray_head.environment, cwd=repository)
    assert late.code == 2 and "the run is over (stopped)" in " ".join(late.err.split())
    report = shardwright("report", run, "--json", environment=ray_head.environment, cwd=repository).json
    (migration,) = report["migrations"]
    assert migration["trigger"] == "request" and migration["is_committed"]
    assert report["plans"][1]["tables"] == plan["tables"]
    resumed = keys(
        ray_head.address, tmp_path, "run.name=resumed", f"run.resume={run}", f"train.steps={report['steps'] + 5}"
    )
    words = ["train", "--json", "--config", "configs/quickstart.yaml", *resumed]
    went_on = shardwright(*words, environment=ray_head.environment, cwd=repository)
    assert went_on.code == 0 and went_on.json["plans"][0]["tables"] == plan["tables"], went_on.err
