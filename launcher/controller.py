"""The job's driver: plan, launch, watch, conclude. It owns every decision; workers only train."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cluster.session import open_session
from cluster.worker_group import GroupOptions, WorkerGroup
from dlrm.trainer import train
from launcher.config import render_config
from launcher.exit_codes import ExitCode, result_word
from launcher.preparation import Prepared, prepare
from launcher.run_dir import RunDir
from launcher.schema import RunConfig
from launcher.stop_signals import StopSignals
from launcher.views.observer import Observer, open_observers
from launcher.views.terminal import Terminal

POLL_S = 1.0


def run_training(config: RunConfig, config_path: Path | None, terminal: Terminal) -> tuple[ExitCode, RunDir]:
    """Run the whole job and leave its records in the run folder.

    Raises what `prepare` raises, and WorkerFailure when a rank failed.
    """
    with ExitStack() as stack:
        stack.enter_context(open_session(config.cluster.address))
        stop = stack.enter_context(StopSignals())
        prepared = prepare(config, topology_path=None)
        run = start_run(config, config_path, prepared)
        terminal.show_plan(prepared.planned, prepared.task, prepared.topology)
        terminal.show_run(run.path)
        try:
            code, step = launch_and_watch(prepared, run, stop, terminal)
        except BaseException as error:
            run.write_status("failed", int(ExitCode.TRAINING_FAILED), message=str(error))
            raise
        run.write_status(result_word(code), int(code), step=step)
    return code, run


def start_run(config: RunConfig, config_path: Path | None, prepared: Prepared) -> RunDir:
    """A new run folder with the configuration, the versions and the first plan."""
    run = RunDir.create(config.run.dir, config.run.name, config_path)
    run.write_config(render_config(config))
    run.write_versions()
    run.write_plan(prepared.planned.to_dict())
    run.write_status("running", None)
    return run


def launch_and_watch(prepared: Prepared, run: RunDir, stop: StopSignals, terminal: Terminal) -> tuple[ExitCode, int]:
    """Train under the plan to the end; returns how it ended and at which step."""
    config = prepared.task.config
    options = GroupOptions(
        start_timeout_s=config.cluster.start_timeout_s, collective_timeout_s=config.cluster.collective_timeout_s
    )
    assert prepared.inventory is not None
    with ExitStack() as stack:
        observers = stack.enter_context(open_observers(run, terminal, prepared.task, prepared.planned))
        group = stack.enter_context(WorkerGroup.start(prepared.inventory, options))
        job = prepared.task.job(prepared.planned.plan, prepared.topology, run.checkpoints, prepared.resume)
        group.run(train, job)
        watch(group, observers, stop)
        result = group.join()[0]
        deliver(group, observers)
    return (ExitCode.STOPPED if result["result"] == "stopped" else ExitCode.OK), result["step"]


def watch(group: WorkerGroup, observers: Observer, stop: StopSignals) -> None:
    """Carry records to the observers about once a second, and a stop request to the workers, until the run ends."""
    is_stop_posted = False
    while not group.wait(POLL_S):
        if stop.is_requested and not is_stop_posted:
            group.post({"kind": "stop"})
            is_stop_posted = True
        deliver(group, observers)


def deliver(group: WorkerGroup, observers: Observer) -> None:
    """Hand every new record to the observers; rank 0 speaks for all."""
    records: tuple[dict[str, Any], ...] = group.poll()[0].records
    for record in records:
        observers.show(record)
