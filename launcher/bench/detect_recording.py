"""Records real traces for `bench detect`: faults planted into one training job, run after run, on real ranks."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.session import open_session
from cluster.telemetry import Block
from cluster.worker_group import WorkerGroup
from dlrm.injection.config import HOT_TABLE, SLOW_LINK
from dlrm.job import TrainJob
from launcher.bench.detect_traces import Trace, load_traces, save_traces
from launcher.bench.recorded_runs import CLEAN_STEPS, FAULT_STEPS, KINDS, Run, draw_run
from launcher.controller import LAST_POLL_S, POLL_S
from launcher.preparation import prepare
from launcher.run_dir import RunDir
from launcher.schema import RunConfig

if TYPE_CHECKING:
    from dlrm.trainer import Place, Trainer

# Before the first run, while caches and allocators fill.
WARMUP_STEPS = 50
# Made beforehand, as for measured steps: where there are no more cores than ranks their making would take turns with
# the training. They come again in another order in every run.
NUM_BATCHES = 40
# Runs between two writings of the file: about half a minute's work is lost by whoever breaks off.
RUNS_PER_SAVE = 8
RUN = "run"

Progress = Callable[[str], None]


def record_traces(config: RunConfig, path: Path, num_runs: int, progress: Progress) -> tuple[Trace, ...]:
    """So many traces of every kind, seeds from 0, of the ranks of `config`; those that `path` has are not made again.

    One job trains through all runs: CLEAN_STEPS steps, FAULT_STEPS with the fault, and so on. Kinds take turns, so that
    whatever else the machine does disturbs them alike. A second call goes on where the first was broken off.

    Raises:
        ValueError: The file holds something else, the plan has no place for a hot table, or rows were lost.
        ClusterError, WorkerFailure, ConfigError, DataError, PlanningError: As in training.
    """
    traces = {(trace.kind, trace.seed): trace for trace in (load_traces(path) if path.exists() else ())}
    wanted = [(kind, seed) for seed in range(num_runs) for kind in KINDS]
    missing = [each for each in wanted if each not in traces]
    progress(f"{len(wanted) - len(missing)} of {len(wanted)} traces are in {path}")
    if missing:
        with ExitStack() as stack:
            stack.enter_context(open_session(config.cluster.address))
            prepared = prepare(config, topology_path=None)
            assert prepared.inventory is not None
            job = prepared.job(RunDir(Path(config.run.dir)))
            runs = tuple(draw_run(kind, seed, prepared) for kind, seed in missing)
            group = stack.enter_context(WorkerGroup.start(prepared.inventory))
            kept = stack.enter_context(closing(TraceFile(path, traces.values())))
            group.run(record_runs, replace(job, train=replace(job.train, checkpoint=False)), runs)
            for trace in collect_traces(group, runs, progress):
                kept.add(trace)
                traces[trace.kind, trace.seed] = trace
    return tuple(traces[each] for each in wanted)


def record_runs(place: "Place", job: TrainJob, runs: Sequence[Run]) -> None:
    """Train one job through all runs on one rank; what is measured goes to the controller as in training. Collective.

    Behind each run rank 0 puts a record `{"kind": "run", "step", "first_step", "number", "send_ms"}`.
    """
    # Whoever only reads traces needs no torch.
    from dlrm.trainer import Trainer

    with closing(Trainer(place, job)) as trainer:
        batches = list(islice(trainer.train_stream, NUM_BATCHES))
        # Ranks have different batches, and must draw the same numbers of steps only.
        generator = np.random.default_rng(place.rank)
        _train(trainer, batches, WARMUP_STEPS, generator)
        for number, run in enumerate(runs):
            first_step = trainer.step + 1
            _train(trainer, batches, CLEAN_STEPS, generator)
            send_ms = _train_with_fault(trainer, batches, run, generator)
            if place.rank == 0:
                ends = {"kind": RUN, "step": trainer.step, "first_step": first_step, "number": number}
                place.outbox.put({**ends, "send_ms": send_ms})


def _train_with_fault(
    trainer: "Trainer", batches: Sequence[Any], run: Run, generator: np.random.Generator
) -> list[list[float]] | None:
    """The steps with the fault; then, while a slow link is there, what a probe says of the links."""
    from dlrm.injection.injections import Injections
    from dlrm.links import probe_links

    place = trainer.place
    faults = [run.injection] if run.injection else []
    with closing(Injections(faults, place.rank, place.world_size, trainer.device)) as injections:
        injections.attach(trainer.rig.model, trainer.rig.optimizer)
        if run.kind == HOT_TABLE:
            # Made beforehand, as all batches: within the steps it would be work of its own.
            injections.at_step(trainer.step + 1)
            batches = [injections.transform(batch) for batch in batches]
        else:
            trainer.rig.injections = injections
        _train(trainer, batches, FAULT_STEPS, generator)
        if run.kind != SLOW_LINK:
            return None
        send_ms: list[list[float]] = probe_links(
            place.rank, place.world_size, trainer.device, injections.delay_send
        ).tolist()
        return send_ms


def _train(trainer: "Trainer", batches: Sequence[Any], num_steps: int, generator: np.random.Generator) -> None:
    """Train on batches in any order, window after window."""
    window_steps = trainer.job.train.window_steps
    for first in range(0, num_steps, window_steps):
        chosen = generator.integers(len(batches), size=min(window_steps, num_steps - first))
        trainer.time_steps([batches[index] for index in chosen])


def collect_traces(group: WorkerGroup, runs: Sequence[Run], progress: Progress) -> Iterator[Trace]:
    """A trace of every run as soon as it has ended, fetched as a controller does, until the ranks are through."""
    log, began_s, num_done, is_over = StepLog(), time.monotonic(), 0, False
    while not is_over:
        is_over = group.wait(POLL_S)
        (drained,) = group.poll(LAST_POLL_S if is_over else POLL_S, ranks=[0])
        for block in drained.blocks:
            log.add(block)
        for record in (record for record in drained.records if record["kind"] == RUN):
            run = runs[record["number"]]
            yield log.cut(run, record)
            num_done += 1
            left_s = (time.monotonic() - began_s) / num_done * (len(runs) - num_done)
            progress(f"{num_done}/{len(runs)}  {run.kind}, seed {run.seed}; about {left_s:.0f} s left")
    group.join()


class StepLog:
    """The rows of both series since the last run that was cut off."""

    def __init__(self) -> None:
        self._blocks: dict[str, list[Block]] = {"steps": [], "shards": []}

    def add(self, block: Block) -> None:
        """Keep further rows; raises ValueError where some were overwritten before they were fetched."""
        if block.num_dropped:
            raise ValueError(f"{block.num_dropped} rows of {block.name} were lost: this process was too slow")
        self._blocks[block.name].append(block)

    def cut(self, run: Run, record: dict[str, Any]) -> Trace:
        """The trace of the run behind which this record was put; everything up to there is forgotten."""
        steps, shards = (self._cut(name, record["first_step"], record["step"]) for name in self._blocks)
        send_ms = None if record["send_ms"] is None else np.array(record["send_ms"])
        return Trace(run.kind, run.seed, steps, shards, run.fault, send_ms)

    def _cut(self, name: str, first: int, last: int) -> Block:
        """The rows of these steps, counted from 1."""
        blocks = self._blocks[name]
        steps = np.concatenate([block.steps for block in blocks])
        rows = np.concatenate([block.rows for block in blocks])
        self._blocks[name] = [Block(name, blocks[0].labels, steps[steps > last], rows[steps > last])]
        is_inside = (steps >= first) & (steps <= last)
        return Block(name, blocks[0].labels, steps[is_inside] - first + 1, rows[is_inside])


class TraceFile:
    """The file, written anew now and then while traces come, and at the end."""

    def __init__(self, path: Path, traces: Iterable[Trace]) -> None:
        self._path, self._traces = path, list(traces)
        self._num_unsaved = 0

    def add(self, trace: Trace) -> None:
        """Keep one more."""
        self._traces.append(trace)
        self._num_unsaved += 1
        if self._num_unsaved >= RUNS_PER_SAVE:
            self.close()

    def close(self) -> None:
        """Write what is not in the file."""
        if self._num_unsaved:
            save_traces(self._path, self._traces)
            self._num_unsaved = 0
