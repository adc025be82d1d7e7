"""The job's driver: plan, launch, watch, conclude. It owns every decision; workers only train."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from cluster.session import open_session
from cluster.worker_group import GroupOptions, WorkerGroup
from dlrm.trainer import train
from launcher.config import render_config
from launcher.delivery import Delivery, make_watcher
from launcher.exit_codes import ExitCode, result_word
from launcher.faults import exit_code_of
from launcher.preparation import Prepared, prepare
from launcher.run_dir import RunDir
from launcher.schema import RunConfig
from launcher.stop_signals import StopSignals
from launcher.views.observer import open_observers
from launcher.views.profiling import follow_profile
from launcher.views.terminal import Terminal
from planner.profile_file import render_profile

POLL_S = 1.0
# The last records are waited for longer: no later poll would bring them.
LAST_POLL_S = 20.0


def run_training(
    config: RunConfig, config_path: Path | None, terminal: Terminal, stop: StopSignals
) -> tuple[ExitCode, RunDir]:
    """Run the whole job and leave its records in the run folder.

    Raises what `prepare` raises, WorkerFailure when a rank failed, StopRequested when the user stopped it before
    any worker trained.
    """
    with stop.ray_included(), open_session(config.cluster.address):
        prepared = prepare(config, topology_path=None, follow=partial(follow_profile, terminal.console))
        run = start_run(config, config_path, prepared)
        terminal.show_plan(prepared)
        terminal.show_run(run.path)
        with status_of_failure(run):
            code, step = launch_and_watch(prepared, run, stop, terminal)
        run.write_status(result_word(code), int(code), step=step)
    return code, run


@contextmanager
def status_of_failure(run: RunDir) -> Iterator[None]:
    """Leave in status.json the very exit code with which the command is about to end."""
    try:
        yield
    except BaseException as error:
        code = exit_code_of(error) or ExitCode.TRAINING_FAILED
        step = max((record["step"] for record in run.records()), default=0)
        run.write_status(result_word(code), int(code), message=str(error) or "interrupted", step=step)
        raise


def start_run(config: RunConfig, config_path: Path | None, prepared: Prepared) -> RunDir:
    """A new run folder with the configuration, the versions, the profile and the first plan."""
    run = RunDir.create(config.run.dir, config.run.name, config_path)
    run.write_config(render_config(config))
    run.write_versions()
    if prepared.profile is not None:
        run.write_profile(render_profile(prepared.profile))
    run.write_plan(prepared.planned.to_dict())
    run.write_status("running", None)
    return run


def launch_and_watch(prepared: Prepared, run: RunDir, stop: StopSignals, terminal: Terminal) -> tuple[ExitCode, int]:
    """Train under the plan to the end; returns how it ended and at which step."""
    cluster = prepared.task.config.cluster
    options = GroupOptions(start_timeout_s=cluster.start_timeout_s, collective_timeout_s=cluster.collective_timeout_s)
    assert prepared.inventory is not None
    with ExitStack() as stack:
        observers = stack.enter_context(open_observers(run, terminal, prepared))
        group = stack.enter_context(WorkerGroup.start(prepared.inventory, options))
        stack.enter_context(stop.deferred())
        delivery = Delivery(group, observers, make_watcher(prepared))
        group.run(train, prepared.job(run))
        try:
            watch(group, delivery, stop)
            result = group.join()[0]
        finally:
            delivery.carry_last(LAST_POLL_S)
    return (ExitCode.STOPPED if result["result"] == "stopped" else ExitCode.OK), result["step"]


def watch(group: WorkerGroup, delivery: Delivery, stop: StopSignals) -> None:
    """Carry on what the workers measured about once a second, and a stop request to them, until the run ends."""
    while not group.wait(POLL_S):
        if stop.is_requested:
            delivery.stop()
        delivery.carry(POLL_S)
