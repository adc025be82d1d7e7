"""`ray job submit` to a real head with its dashboard, through the job server's client."""

import json
import time
from pathlib import Path

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from tests.conftest import RayHead
from tests.e2e.command import SMALL

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ENTRY = "python -m launcher train --config configs/quickstart.yaml "


@pytest.fixture(scope="module")
def client(ray_head: RayHead) -> JobSubmissionClient:
    return JobSubmissionClient(ray_head.dashboard)


def submit(client: JobSubmissionClient, repository: Path, keys: list[str]) -> str:
    environment = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}, "working_dir": str(repository)}
    excluded = [".venv", "runs", ".git"]
    return client.submit_job(entrypoint=ENTRY + " ".join(keys), runtime_env={**environment, "excludes": excluded})


def wait_for_end(client: JobSubmissionClient, job: str, timeout_s: float = 180) -> JobStatus:
    deadline_s = time.monotonic() + timeout_s
    while not client.get_job_status(job).is_terminal():
        assert time.monotonic() < deadline_s, client.get_job_logs(job)
        time.sleep(0.3)
    return client.get_job_status(job)


def test_a_job_runs_to_succeeded(client: JobSubmissionClient, repository: Path, tmp_path: Path) -> None:
    job = submit(client, repository, [f"run.dir={tmp_path}", "run.name=job", "train.steps=20", *SMALL])
    assert wait_for_end(client, job) == JobStatus.SUCCEEDED, client.get_job_logs(job)
    status = json.loads((tmp_path / "job" / "status.json").read_text())
    assert (status["status"], status["exit_code"], status["step"]) == ("done", 0, 20)
    assert "balance" in client.get_job_logs(job)


def test_a_typo_fails_with_the_right_key_before_anything_starts(
    client: JobSubmissionClient, repository: Path, tmp_path: Path
) -> None:
    job = submit(client, repository, [f"run.dir={tmp_path}", "train.batchsize=64"])
    assert wait_for_end(client, job) == JobStatus.FAILED
    assert "did you mean train.batch_size?" in client.get_job_logs(job)
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_job_leaves_75_in_its_status(client: JobSubmissionClient, repository: Path, tmp_path: Path) -> None:
    job = submit(client, repository, [f"run.dir={tmp_path}", "run.name=job", "train.steps=1000000", *SMALL])
    records, deadline_s = tmp_path / "job" / "records.jsonl", time.monotonic() + 120
    while not records.exists() or not records.read_text():
        assert time.monotonic() < deadline_s, client.get_job_logs(job)
        time.sleep(0.2)
    client.stop_job(job)
    assert wait_for_end(client, job) == JobStatus.STOPPED
    status = json.loads((tmp_path / "job" / "status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("stopped", 75)
