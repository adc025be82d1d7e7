"""Plans that a user hands in to a running job: files in the run's folder, one asks, one answers.

`requests/ID.request` holds `{"plan": ShardingPlan.to_dict()}`. The controller renames it to `ID.taken`, so a request is
acted upon once, and answers in `ID.answer`: `{"status", "message", "migration"}`. Who asked takes a request back by
deleting it before it is taken. A run that is resumed has a folder of its own: what was asked of another is not there.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.run_dir import RunDir, write_beside
from planner.errors import PlanningError
from planner.plan import ShardingPlan

MOVED, UNCHANGED, REFUSED, FAILED, ENDED = "moved", "unchanged", "refused", "failed", "ended"
"""Answers: the plan trains; it did already; it is not feasible; the migration failed and the old plan trains on; the
run ended before."""

POLL_S = 0.2
"""Between two looks for an answer: a migration takes longer, a person does not notice."""


class RequestError(Exception):
    """A run cannot be asked, or did not answer."""


@dataclass(frozen=True)
class Request:
    """A plan that somebody wants a running job to train under; None where the file holds none, and what is wrong."""

    name: str
    plan: ShardingPlan | None
    fault: str = ""


class RequestBox:
    """The controller's end."""

    def __init__(self, run: RunDir) -> None:
        """Opens the box: the folder is there from now on."""
        self._folder = run.requests
        self._folder.mkdir(exist_ok=True)

    def take(self) -> Request | None:
        """The oldest request that was not taken."""
        for path in sorted(self._folder.glob("*.request")):
            taken = path.with_suffix(".taken")
            try:
                path.rename(taken)
            except FileNotFoundError:
                continue  # taken back
            try:
                return Request(path.stem, ShardingPlan.from_dict(json.loads(taken.read_text())["plan"]))
            except (ValueError, KeyError, TypeError, RecursionError, OSError, PlanningError) as error:
                return Request(path.stem, None, f"the request holds no plan: {error!r}")
        return None

    def answer(self, name: str, status: str, message: str, migration: Mapping[str, Any] | None = None) -> None:
        """Answer a request that was taken."""
        found = {"status": status, "message": message, "migration": migration}
        write_beside(self._folder / f"{name}.answer", json.dumps(found) + "\n")

    def close(self) -> None:
        """Tell everybody who still waits that the run has ended."""
        message = "the run has ended; nothing was moved for this request"
        for path in [*self._folder.glob("*.request"), *self._folder.glob("*.taken")]:
            if not path.with_suffix(".answer").exists():
                self.answer(path.stem, ENDED, message)
                path.with_suffix(".request").unlink(missing_ok=True)


def check_running(path: Path) -> RunDir:
    """The run of a folder, which takes requests; raises RequestError where it does not."""
    run = RunDir(path)
    try:
        status = run.read_json("status.json")["status"]
    except (OSError, ValueError, KeyError):
        raise RequestError(f"{path} is not the folder of a run: it has no status.json that can be read") from None
    if status != "running":
        raise RequestError(f"{path}: the run is over ({status}); a plan can be handed in only while it trains")
    if not run.requests.is_dir():
        raise RequestError(f"{path}: the run takes no requests yet: its workers are still starting; try again")
    return run


def hand_in(run: RunDir, plan: ShardingPlan) -> str:
    """Ask for a plan; gives the request's name."""
    name = f"{time.time_ns()}-{os.getpid()}"
    write_beside(run.requests / f"{name}.request", json.dumps({"plan": plan.to_dict()}) + "\n")
    return name


def await_answer(run: RunDir, name: str, timeout_s: float) -> dict[str, Any]:
    """The answer to a request; raises RequestError, and takes the request back, where none comes in time."""
    deadline_s = time.monotonic() + timeout_s
    path = run.requests / f"{name}.answer"
    try:
        while not path.exists():
            if time.monotonic() >= deadline_s:
                raise RequestError(_late(run, name, timeout_s))
            time.sleep(POLL_S)
    finally:
        (run.requests / f"{name}.request").unlink(missing_ok=True)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _late(run: RunDir, name: str, timeout_s: float) -> str:
    """Take a request back that nobody took, and say so; of one that was taken, that it goes on."""
    try:
        (run.requests / f"{name}.request").unlink()
    except FileNotFoundError:
        return (
            f"{run.path}: the move was begun, but is not through after {timeout_s:g} s; "
            f"`shardwright report {run.path}` will tell what came of it"
        )
    return (
        f"{run.path}: nobody took the request within {timeout_s:g} s, and it was taken back: nothing moves for it. "
        "Either another move is still under way (wait longer: --wait), or the process of the run is gone"
    )
