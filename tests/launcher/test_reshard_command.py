"""`shardwright reshard` against a run's folder: who is asked, who answers, what a user reads."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from launcher.resharding.requests import FAILED, MOVED, REFUSED, UNCHANGED, Request, RequestBox, hand_in
from launcher.run_dir import RunDir
from planner.plan import ShardingPlan, TablePlacement
from planner.sharding import Shard, ShardingType

PLAN = ShardingPlan(2, (TablePlacement("a", ShardingType.TABLE_WISE, (Shard(1, 0, 8, 0, 4),)),))
MIGRATION = {"step": 40, "moved_bytes": 2**21, "pause_ms": 120.0, "is_committed": True}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """The folder of a run that trains."""
    run = RunDir.create(str(tmp_path), "job", None)
    run.write_status("running", None)
    (tmp_path / "plan.json").write_text(json.dumps(PLAN.to_dict()))
    return run


@contextmanager
def controller(
    run: RunDir, status: str, message: str, migration: dict[str, Any] | None = None
) -> Iterator[list[Request]]:
    """Polls the run's requests as a controller does and gives each the same answer."""
    box, taken, is_over = RequestBox(run), [], threading.Event()

    def poll() -> None:
        while not is_over.wait(0.02):
            if (request := box.take()) is not None:
                taken.append(request)
                box.answer(request.name, status, message, migration)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield taken
    finally:
        is_over.set()
        thread.join()


def ask(run: RunDir, *more: str, plan: str = "plan.json") -> int:
    return main(["reshard", str(run.path), "--plan", str(run.path.parent / plan), *more])


def errors(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on stderr, unfolded."""
    return " ".join(capsys.readouterr().err.split())


def test_a_move_is_told_with_its_bytes_and_its_pause(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    with controller(run, MOVED, "done", MIGRATION) as taken:
        assert ask(run) == 0
        assert "moved after step 40: 2.0 MiB over links, training paused for 120 ms" in capsys.readouterr().out
        assert ask(run, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"status": "moved", "message": "done", "migration": MIGRATION}
    assert [request.plan for request in taken] == [PLAN, PLAN]


@pytest.mark.parametrize(("status", "code"), [(UNCHANGED, 0), (REFUSED, 3), (FAILED, 4)])
def test_every_other_answer_has_its_exit_code(
    run: RunDir, capsys: pytest.CaptureFixture[str], status: str, code: int
) -> None:
    with controller(run, status, "this is why"):
        assert ask(run) == code
    assert f"{status}: this is why" in capsys.readouterr().out


def test_the_end_of_the_run_is_an_answer(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    box = RequestBox(run)
    closing = threading.Timer(0.3, box.close)
    closing.start()
    assert ask(run) == 2
    closing.join()
    assert "the run has ended" in capsys.readouterr().out


def test_a_request_that_nobody_takes_is_taken_back(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    box = RequestBox(run)
    assert ask(run, "--wait", "0.3") == 2
    assert "nobody took the request within 0.3 s" in errors(capsys)
    assert box.take() is None


def test_a_move_that_is_not_through_in_time_goes_on(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    box = RequestBox(run)
    taking = threading.Timer(0.1, box.take)
    taking.start()
    assert ask(run, "--wait", "0.6") == 2
    taking.join()
    assert "the move was begun" in errors(capsys)


@pytest.mark.parametrize("status", ["done", "failed", "stopped"])
def test_a_run_that_is_over_is_not_asked(run: RunDir, capsys: pytest.CaptureFixture[str], status: str) -> None:
    RequestBox(run)
    run.write_status(status, 0)
    assert ask(run) == 2
    assert f"the run is over ({status})" in errors(capsys) and list(run.requests.iterdir()) == []


def test_other_folders_and_files_are_told_apart(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(run) == 2 and "still starting" in errors(capsys)
    box = RequestBox(run)
    assert ask(run, plan="none.json") == 2 and "none.json" in errors(capsys)
    (run.path.parent / "other.json").write_text("{}")
    assert ask(run, plan="other.json") == 2 and "holds no plan" in errors(capsys)
    assert main(["reshard", str(run.path.parent), "--plan", "x"]) == 2
    assert "is not the folder of a run" in errors(capsys) and box.take() is None


@pytest.mark.parametrize("text", ["{", '{"plan": {"world_size": 2, "tables": [{"shards": [5]}]}}', "[" * 100_000])
def test_a_broken_request_holds_no_plan_and_the_next_one_does(run: RunDir, text: str) -> None:
    box = RequestBox(run)
    (run.requests / "0.request").write_text(text)
    name = hand_in(run, PLAN)
    broken = box.take()
    assert broken is not None and broken.plan is None and "holds no plan" in broken.fault
    assert box.take() == Request(name, PLAN) and box.take() is None
