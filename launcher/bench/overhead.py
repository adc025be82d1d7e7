"""What telemetry costs: the same steps with and without it, in turns, while a controller watches as in any run.

Counted is everything that telemetry does to the time of a step: clocks and hooks in the ranks, the exchange of their
rows at each window, and, where ranks and driver share a machine, the driver's fetching, watching and writing (the
telemetry file, TensorBoard). The arm without telemetry still exchanges losses and metrics, and its windows are recorded
and shown. Not counted are what is done once a run (the plan's page, the report), profiles on request, and the making
of batches, which both arms find ready.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from io import StringIO
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.session import open_session
from cluster.telemetry import Block
from cluster.worker_group import WorkerGroup
from launcher.bench.overhead_blocks import ARMS, TIMED_STEPS, WASH_IN_STEPS, CpuLog, summarise, time_arms
from launcher.controller import LAST_POLL_S, POLL_S, start_run
from launcher.delivery import Delivery, make_watcher
from launcher.preparation import Prepared, prepare
from launcher.run_dir import RunDir
from launcher.schema import RunConfig
from launcher.views.observer import Observer, open_observers
from launcher.views.tables import MAX_WIDTH, make_table
from launcher.views.terminal import Terminal

Progress = Callable[[str], None]


def run_overhead(config: RunConfig, num_pairs: int, progress: Progress) -> dict[str, Any]:
    """What `bench overhead --json` prints: see `overhead_blocks.summarise`.

    Args:
        config: What trains; its `telemetry.enabled` does not count. The run's folder is a temporary one.
        num_pairs: Blocks of each arm.
        progress: Told every few windows.

    Raises:
        ClusterError, WorkerFailure, ConfigError, DataError, PlanningError: As in training.
    """
    config = deepcopy(config)
    with ExitStack() as stack:
        config.run.dir = stack.enter_context(TemporaryDirectory(prefix="overhead-"))
        config.run.name, config.telemetry.enabled, config.train.checkpoint = "overhead", True, False
        stack.enter_context(open_session(config.cluster.address))
        prepared = prepare(config, topology_path=None)
        assert prepared.inventory is not None
        group = stack.enter_context(WorkerGroup.start(prepared.inventory))
        return _measure(group, prepared, start_run(config, None, prepared), num_pairs, progress)


def _measure(group: WorkerGroup, prepared: Prepared, run: RunDir, num_pairs: int, progress: Progress) -> dict[str, Any]:
    """Run both arms under a controller that polls, watches and writes as `launcher.controller` does."""
    at_s: list[float] = []
    used_s: list[float] = []

    def note_cpu() -> None:
        at_s.append(time.monotonic())
        used_s.append(time.process_time())

    terminal = Terminal(Console(file=StringIO(), width=MAX_WIDTH))
    with open_observers(run, terminal, prepared) as observers:
        num_windows = -(
            -num_pairs * len(ARMS) * (WASH_IN_STEPS + TIMED_STEPS) // prepared.task.config.train.window_steps
        )
        delivery = Delivery(group, Counted(observers, num_windows, progress), make_watcher(prepared))
        group.run(time_arms, prepared.job(run), num_pairs)
        while not group.wait(POLL_S):
            note_cpu()
            delivery.carry(POLL_S)
            note_cpu()
        ranks = group.join()
        delivery.carry_last(LAST_POLL_S)
        return summarise(ranks, CpuLog(at_s, used_s))


class Counted(Observer):
    """An observer that says now and then how many windows it has seen."""

    def __init__(self, inner: Observer, num_windows: int, progress: Progress) -> None:
        self._inner, self._num_windows, self._progress = inner, num_windows, progress
        self._num_seen = 0

    def show(self, record: dict[str, Any]) -> None:
        """See Observer."""
        self._inner.show(record)
        if record["kind"] == "window":
            self._num_seen += 1
            if self._num_seen % max(1, self._num_windows // 10) == 0:
                self._progress(f"{self._num_seen / self._num_windows:.0%} of the steps")

    def show_block(self, block: Block) -> None:
        """See Observer."""
        self._inner.show_block(block)

    def flush(self) -> None:
        """See Observer."""
        self._inner.flush()


def render_overhead(found: dict[str, Any]) -> Iterator[Table | str]:
    """The object that `run_overhead` gives, for people."""
    rows = [(arm, *(f"{found[arm][key]:.2f}" for key in ("step_ms", "worker_cpu_ms", "driver_cpu_ms"))) for arm in ARMS]
    title = f"{found['pairs']} pairs of blocks of {found['steps_per_block']} steps"
    yield make_table(title, ("telemetry", "step ms", "ranks' CPU ms", "driver's CPU ms"), rows)
    low, high = found["interval"]
    yield (
        f"telemetry costs {found['overhead']:+.2%} of a step's time (95 % of the median: {low:+.2%} to {high:+.2%}; "
        f"quartiles of the pairs are {found['spread']:.2%} apart, those of a fixed product and gather "
        f"{found['canary_spread']:.2%})"
    )
    low, high = found["worker_cpu_interval"]
    yield f"CPU time of the ranks: {found['worker_cpu_overhead']:+.2%} ({low:+.2%} to {high:+.2%})"
