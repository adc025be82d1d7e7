"""`shardwright train` on a real Ray head, and what it leaves behind."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launcher.config import load_config
from tests.conftest import RayHead
from tests.e2e.command import Ran, command_line, keys, shardwright

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REPORT_KEYS = {"steps", "qps", "loss", "ne", "auc", "step_ms", "imbalance", "plans", "migrations", "restarts", "result"}


def test_the_report_has_the_keys_that_scripts_rely_on(finished: tuple[Ran, Path]) -> None:
    ran, _ = finished
    assert ran.code == 0, ran.err
    report = ran.json
    assert set(report) >= REPORT_KEYS
    assert report["steps"] == 60 and report["result"] == "done"
    assert report["migrations"] == [] and report["restarts"] == 0
    assert report["auc"] > 0.55 and set(report["step_ms"]) == {"median", "p95"}
    assert set(report["imbalance"]) == {"first", "last", "max"} and report["imbalance"]["max"] >= 1


def test_the_run_folder_holds_everything(finished: tuple[Ran, Path]) -> None:
    _, run = finished
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["exit_code"], status["step"]) == ("done", 0, 60)
    assert json.loads((run / "versions.json").read_text())["torchrec"]
    plan = json.loads((run / "plans" / "000.json").read_text())
    assert {rank["rank"] for rank in plan["ranks"]} == {0, 1}
    assert load_config(run / "config.yaml", []).train.steps == 60
    kinds = [json.loads(line)["kind"] for line in (run / "records.jsonl").read_text().splitlines()]
    assert kinds.count("window") == 12 and kinds.count("evaluation") == 1
    assert (run / "checkpoints" / "step_00000060" / "progress.json").exists()


def test_tensorboard_reads_the_events(finished: tuple[Ran, Path]) -> None:
    _, run = finished
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    wanted = {"train/loss", "train/ne", "train/auc", "train/calibration", "speed/qps", "held_out/auc"}
    wanted |= {"lookup_ms/rank_00", "lookup_ms/rank_01", "step_ms/rank_00", "balance/lookup_imbalance"}
    assert wanted <= set(tags["scalars"])
    assert {"plan/gathered_bytes_rank_x_table", "plan/lookup_ms_rank_x_table"} <= set(tags["images"])
    assert "plan/tables/text_summary" in tags["tensors"]
    assert [event.step for event in events.Scalars("train/loss")] == list(range(5, 61, 5))
    assert events.Scalars("balance/work_imbalance")[-1].step == 60


def test_report_says_the_same_and_in_words(finished: tuple[Ran, Path], ray_head: RayHead, repository: Path) -> None:
    ran, run = finished
    again = shardwright("report", run, "--json", environment=ray_head.environment, cwd=repository)
    assert again.json == ran.json
    words = shardwright("report", run, environment=ray_head.environment, cwd=repository)
    assert "done after 60 steps" in words.out and "balance" in words.out
    assert max(len(line) for line in words.out.splitlines() if str(run) not in line) <= 100
    assert "\x1b" not in words.out


def test_dry_run_prints_the_plan_that_trained(finished: tuple[Ran, Path], ray_head: RayHead, repository: Path) -> None:
    _, run = finished
    words = ["train", "--dry-run", "--json", "--config", run / "config.yaml"]
    planned = shardwright(*words, environment=ray_head.environment, cwd=repository).json
    assert planned["tables"] == json.loads((run / "plans" / "000.json").read_text())["tables"]


def wait_for_records(run: Path, process: subprocess.Popen) -> None:
    deadline_s = time.monotonic() + 120
    while not (run / "records.jsonl").exists() or not (run / "records.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline_s, "the run never wrote a record"
        time.sleep(0.2)


def test_ctrl_c_stops_with_75_and_the_run_can_go_on(ray_head: RayHead, repository: Path, tmp_path: Path) -> None:
    words = command_line("train", "--config", "configs/quickstart.yaml")
    endless = keys(ray_head.address, tmp_path, "run.name=stopped", "train.steps=1000000")
    process = subprocess.Popen(
        [*words, *endless], env=ray_head.environment, cwd=repository, stdout=subprocess.PIPE, text=True
    )
    run = tmp_path / "stopped"
    try:
        wait_for_records(run, process)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 75
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("stopped", 75)
    assert f"stopped after {status['step']} steps" in out
    last = status["step"] + 10
    more = keys(ray_head.address, tmp_path, "run.name=resumed", f"run.resume={run}", f"train.steps={last}")
    words = ["train", "--json", "--config", "configs/quickstart.yaml", *more]
    resumed = shardwright(*words, environment=ray_head.environment, cwd=repository)
    assert resumed.code == 0, resumed.err
    steps = [json.loads(line)["step"] for line in (tmp_path / "resumed" / "records.jsonl").read_text().splitlines()]
    assert steps[0] > status["step"] and steps[-1] == last


def test_a_stop_before_anything_trains_is_75_too(
    ray_environment: dict[str, str], repository: Path, tmp_path: Path
) -> None:
    words = command_line("train", "--config", "configs/quickstart.yaml", f"run.dir={tmp_path}")
    process = subprocess.Popen(words, env=ray_environment, cwd=repository, stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(2)
        process.terminate()
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75 and "before any worker trained" in err


def test_a_diverged_run_ends_with_4_and_one_cause(ray_head: RayHead, repository: Path, tmp_path: Path) -> None:
    diverging = ["optimizer.dense.kind=sgd", "optimizer.dense.learning_rate=1e30"]
    more = keys(ray_head.address, tmp_path, "run.name=nan", *diverging)
    words = ["train", "--config", "configs/quickstart.yaml", *more]
    ran = shardwright(*words, environment=ray_head.environment, cwd=repository)
    assert ran.code == 4
    assert "the loss is not a number at step" in ran.err and "on rank" in ran.err
    assert "Traceback" not in ran.err and "1 other rank failed" in ran.err
    status = json.loads((tmp_path / "nan" / "status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("failed", 4)
    assert "the loss is not a number at step" in status["message"]
