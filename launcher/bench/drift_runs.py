"""One run of `bench drift`, and what its folder says of the steps after the drift."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from launcher.bench.drift_scenario import Hot
from launcher.controller import launch_and_watch, start_run
from launcher.preparation import prepare
from launcher.run_dir import RunDir
from launcher.schema import RunConfig
from launcher.stop_signals import StopSignals
from launcher.views.tables import MAX_WIDTH
from launcher.views.terminal import Terminal

MS_PER_S = 1e3


@dataclass(frozen=True)
class Arm:
    """One way to meet the drift.

    Attributes:
        name: Of it.
        plan: File of the plan that trains first.
        is_resharded: Whether shards may move.
    """

    name: str
    plan: Path
    is_resharded: bool


@dataclass(frozen=True)
class RunFigures:
    """What a run's folder says; steps are counted from the last one before the drift.

    Attributes:
        samples_per_s: Of all ranks together after the drift, by the wall clock: windows and pauses.
        before_samples_per_s: The same before it, the first windows left out.
        detect_steps: When the first finding was told; None without one.
        decide_steps: When the first move was decided on.
        move_steps: When the first migration was made.
        pause_ms: Of all migrations together.
        moved_bytes: By them.
        num_migrations: That were committed.
        is_rolled_back: Whether one of them was taken back.
        decisions: What was decided about the plan, in words.
    """

    samples_per_s: float
    before_samples_per_s: float
    detect_steps: int | None
    decide_steps: int | None
    move_steps: int | None
    pause_ms: float
    moved_bytes: int
    num_migrations: int
    is_rolled_back: bool
    decisions: tuple[str, ...] = ()


def run_arm(config: RunConfig, arm: Arm, hot: Hot) -> RunDir:
    """Train under the arm's plan to the end, in the open Ray session, and give the run's folder.

    Raises:
        ClusterError, WorkerFailure, ConfigError, DataError, PlanningError: As in training.
    """
    config = deepcopy(config)
    config.run.name, config.resharding.enabled, config.inject = arm.name, arm.is_resharded, [hot.injection]
    prepared = prepare(config, topology_path=None, pinned_path=arm.plan)
    run = start_run(config, None, prepared)
    launch_and_watch(prepared, run, StopSignals(), Terminal(Console(file=StringIO(), width=MAX_WIDTH)))
    return run


def read_figures(run: RunDir, hot: Hot, num_warmup: int) -> RunFigures:
    """The figures of a run that has ended; `num_warmup` steps at its beginning count nowhere.

    Windows tell how long they took, with whatever the ranks waited for in them; the time between two of them is that of
    a migration, which tells its pause.
    """
    records, last_before = list(run.records()), hot.from_step - 1
    made = [each for each in _of_kind(records, "migration") if each["is_committed"]]
    pause_ms = sum(each["pause_ms"] for each in _of_kind(records, "migration"))
    return RunFigures(
        samples_per_s=_speed(records, last_before, None, pause_ms),
        before_samples_per_s=_speed(records, num_warmup, last_before, 0.0),
        detect_steps=_first_step(_of_kind(records, "verdict"), last_before),
        decide_steps=_first_step(
            (each for each in _of_kind(records, "decision") if each["answer"] == "move"), last_before
        ),
        move_steps=_first_step(made, last_before),
        pause_ms=pause_ms,
        moved_bytes=sum(each["moved_bytes"] for each in made),
        num_migrations=len(made),
        is_rolled_back=any(each["is_rolled_back"] for each in _of_kind(records, "outcome")),
        decisions=tuple(f"step {each['step']}: {each['message']}" for each in _of_kind(records, "decision")),
    )


def weights_difference(first: RunDir, second: RunDir) -> float:
    """The largest difference between two runs' last weights, as a share of the largest weight of its tensor."""
    # Only this needs torch.
    import torch

    ours, theirs = (_read_model(run) for run in (first, second))
    assert ours.keys() == theirs.keys()
    shares = [0.0]
    for name, values in ours.items():
        if isinstance(values, torch.Tensor) and values.numel():
            largest = float(values.abs().max())
            difference = float((values - theirs[name]).abs().max())
            shares.append(difference / largest if largest else difference)
    return max(shares)


def _read_model(run: RunDir) -> dict[str, Any]:
    """The weights of a run's newest checkpoint, by name, whole."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    newest = max(run.checkpoints.iterdir())
    found: dict[str, Any] = {}
    planner = _EmptyStateDictLoadPlanner(keys={"model"})
    _load_state_dict(found, FileSystemReader(newest), planner=planner, no_dist=True)
    return dict(found["model"])


def _of_kind(records: list[dict[str, Any]], kind: str) -> Iterator[dict[str, Any]]:
    return (record for record in records if record["kind"] == kind)


def _first_step(records: Iterator[dict[str, Any]] | list[dict[str, Any]], last_before: int) -> int | None:
    """Steps from the drift to the first of some records; those of before it are false alarms, and do not count."""
    return next((record["step"] - last_before for record in records if record["step"] > last_before), None)


def _speed(records: list[dict[str, Any]], after: int, up_to: int | None, pause_ms: float) -> float:
    """Samples a second of the windows whose steps lie behind `after`, and not behind `up_to`."""
    windows = [
        record
        for record in _of_kind(records, "window")
        if record["step"] > after and (up_to is None or record["step"] <= up_to)
    ]
    seconds = sum(record["samples"] / record["qps"] for record in windows) + pause_ms / MS_PER_S
    return float(sum(record["samples"] for record in windows) / seconds)
