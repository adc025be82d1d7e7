"""The job's driver: plan, launch, watch, conclude. It owns every decision; workers only train."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from cluster.imbalance.watcher import Watcher
from cluster.session import open_session
from cluster.worker_group import GroupOptions, WorkerGroup
from dlrm.records import warning_record
from dlrm.trainer import train
from launcher.commands import Commands
from launcher.config import render_config
from launcher.delivery import Delivery, make_watcher, watch_settings
from launcher.exit_codes import ExitCode, result_word
from launcher.faults import exit_code_of
from launcher.preparation import Prepared, prepare
from launcher.priced_plan import PricedPlan
from launcher.resharding.loop import Resharding, Surroundings
from launcher.resharding.price import PriceList, estimate_price
from launcher.resharding.requests import RequestBox
from launcher.resharding.search import Search, replanner
from launcher.run_dir import RunDir
from launcher.schema import RunConfig
from launcher.stop_signals import StopSignals
from launcher.views.base import Observer
from launcher.views.observer import open_observers
from launcher.views.profiling import follow_profile
from launcher.views.terminal import Terminal
from planner.profile_file import render_profile
from planner.replan import ReplanSettings

POLL_S = 1.0
# The last records are waited for longer: no later poll would bring them.
LAST_POLL_S = 20.0
# A longer search for a better plan would cost more steps under the worse one than it could still win.
MOST_REPLAN_S = 2.0


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
        commands, watcher = Commands(group.post), make_watcher(prepared)
        resharding = make_resharding(prepared, run, commands, observers, watcher)
        delivery = Delivery(group, observers, watcher, commands, resharding)
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


def make_resharding(
    prepared: Prepared, run: RunDir, commands: Commands, observer: Observer, watcher: Watcher | None
) -> Resharding:
    """What decides about the plan while the job trains; without `resharding.enabled` it serves users' requests only."""
    config, planned = prepared.task.config, prepared.planned
    budget_s = min(MOST_REPLAN_S, config.planner.budget_s)
    settings = ReplanSettings(margin=config.resharding.margin, budget_s=budget_s, seed=config.train.seed)

    def adopt(moved_to: PricedPlan, step: int, is_promise: bool) -> None:
        """Another plan trains after this step: keep it, show it, and watch it by what it promises."""
        try:
            run.write_plan(moved_to.to_dict())
        except OSError as error:
            observer.show(warning_record(f"the plan of step {step} could not be kept in {run.path}: {error}", step))
        observer.show_plan(moved_to, step)
        if watcher is not None:
            watcher.reset(moved_to.cost.lookup_ms if is_promise else None)

    return Resharding(
        config.resharding,
        watch_settings(config),
        planned,
        PriceList(estimate_price(planned.problem, planned.estimator)),
        Search(replanner(planned.problem, planned.estimator, settings)),
        Surroundings(commands, observer.show, adopt, RequestBox(run)),
    )
