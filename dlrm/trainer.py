"""One rank's whole job: build, shard, then step after step until the data, the user or an error ends it."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist

from dlrm.checkpoint import load_checkpoint, save_checkpoint
from dlrm.checkpoint_folder import Progress
from dlrm.data.batches import Batch
from dlrm.data.factory import open_stream
from dlrm.data.stream import BatchStream
from dlrm.errors import NonFiniteLossError
from dlrm.exchange import BAD_STEP, COMMAND_ID, OWN_COLUMNS, PEAK_BYTES, TIMINGS, Window, WindowExchange
from dlrm.job import TrainJob, resolve_pipeline
from dlrm.memory import peak_bytes
from dlrm.metrics import BinaryMetrics, MetricValues, compute_metrics
from dlrm.model import build_dlrm
from dlrm.optimizers import combine_optimizers
from dlrm.sharded import shard_model
from dlrm.timing import DATA_WAIT, STEP, make_clock, time_lookups

PIPELINES = {"sparse_dist": TrainPipelineSparseDist, "base": TrainPipelineBase}


class Place(Protocol):
    """Where this rank runs and whom it talks to; the cluster's worker context has this form."""

    @property
    def rank(self) -> int:
        """0 to world_size - 1."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""

    @property
    def device(self) -> str:
        """`cpu` or `cuda:0`."""

    @property
    def outbox(self) -> Any:
        """`put(record)`, which never blocks."""

    @property
    def inbox(self) -> Any:
        """`latest()`, the newest command or None, which never blocks."""


def train(place: Place, /, job: TrainJob) -> dict[str, Any]:
    """Train to the end of the job on one rank; every rank calls it with the same job.

    Returns `{"result": "done" | "stopped", "step", "metrics" (held-out)}`. Raises NonFiniteLossError with the
    step and rank of the first loss that is not a number.
    """
    trainer = Trainer(place, job)
    try:
        while trainer.wants_more:
            trainer.run_leg()
            if trainer.is_evaluation_due:
                trainer.evaluate()
        return trainer.conclude()
    finally:
        trainer.close()


class Trainer:
    """The state of one rank between legs: a leg runs from one drained pipeline to the next."""

    def __init__(self, place: Place, job: TrainJob) -> None:
        self.place, self.job = place, job
        self.device = torch.device(place.device)
        model = build_dlrm(job.model, job.tables, job.schema.num_dense, job.train.seed)
        self.model = shard_model(
            model, job.tables, job.plan, job.topology, job.sparse_optimizer, self.device, job.train.seed
        )
        self.optimizer = combine_optimizers(self.model, job.sparse_optimizer, job.dense_optimizer)
        self.clock = make_clock(self.device, job.train.window_steps)
        time_lookups(self.model, self.clock)
        kind = resolve_pipeline(job.train.pipeline, self.device.type)
        self.pipeline = PIPELINES[kind](self.model, self.optimizer, self.device)
        self.stream = self._open("train", num_epochs=None if job.train.steps else job.train.epochs)
        self.metrics = BinaryMetrics(self.device)
        self.exchange = WindowExchange(place.rank, place.world_size, self.device)
        self.losses = torch.zeros(job.train.window_steps, dtype=torch.float32, device=self.device)
        self.step = self.in_window = self.done_command = self.told_bad_rows = 0
        self.held_out: MetricValues | None = None
        self.evaluated_step = -1
        self.is_exhausted = self.is_stopping = False
        if job.resume is not None:
            self._restore(Path(job.resume))
        self.window_began = time.perf_counter()

    @property
    def wants_more(self) -> bool:
        """Whether there are steps left to train."""
        steps = self.job.train.steps
        return not (self.is_stopping or self.is_exhausted or (steps is not None and self.step >= steps))

    @property
    def is_evaluation_due(self) -> bool:
        """Whether the leg that just ended stopped for an evaluation or for the end of the job."""
        return not self.is_stopping and self.evaluated_step != self.step

    def run_leg(self) -> None:
        """Train up to the next evaluation or the end, and drain the pipeline."""
        self.model.train()
        feed = self._feed(self._leg_steps())
        self.pipeline.reset()
        while True:
            self.clock.start(STEP)
            try:
                loss, logits, labels = self.pipeline.progress(feed)
            except StopIteration:
                break
            self.clock.stop(STEP)
            self._account(loss, logits, labels)
        if self.in_window:
            self._close_window()

    def evaluate(self) -> None:
        """Score the held-out batches with the tables as they are placed; all ranks together."""
        if isinstance(self.pipeline, TrainPipelineSparseDist):
            self.pipeline.detach()
        self.model.eval()
        metrics = BinaryMetrics(self.device)
        with torch.no_grad(), self._open("eval", num_epochs=1) as batches:
            for batch in _take(batches, self.job.train.eval_batches):
                _, (_, logits, labels) = self.model(batch.to(self.device))
                metrics.update(logits, labels)
        dist.all_reduce(metrics.state)
        self.held_out = compute_metrics(metrics.state.cpu())
        self.evaluated_step = self.step
        self._say({"kind": "evaluation", "step": self.step, **asdict(self.held_out)})
        self.window_began = time.perf_counter()

    def conclude(self) -> dict[str, Any]:
        """Save a checkpoint, all ranks together, and say what the job came to."""
        saved = None
        if self.job.train.checkpoint:
            progress = Progress(self.step, self.stream.position())
            saved = save_checkpoint(
                Path(self.job.checkpoint_folder), self.model, self.optimizer, self.job.plan, progress
            )
        return {
            "result": "stopped" if self.is_stopping else "done",
            "step": self.step,
            "checkpoint": str(saved) if saved else None,
            "metrics": asdict(self.held_out) if self.held_out else None,
        }

    def close(self) -> None:
        """Stop the data thread."""
        self.stream.close()

    def _open(self, split: str, num_epochs: int | None) -> BatchStream:
        job, place = self.job, self.place
        return open_stream(
            job.data,
            job.schema,
            split,
            job.train.batch_size,
            place.rank,
            place.world_size,
            job.train.seed,
            num_epochs,
            is_pinned=self.device.type == "cuda",
        )

    def _restore(self, checkpoint: Path) -> None:
        progress = load_checkpoint(checkpoint, self.model, self.optimizer)
        self.step = progress.step
        self.stream.seek(progress.position)

    def _leg_steps(self) -> int | None:
        train = self.job.train
        ends = [train.steps] if train.steps is not None else []
        if train.eval_every is not None:
            ends.append((self.step // train.eval_every + 1) * train.eval_every)
        return min(ends) - self.step if ends else None

    def _feed(self, limit: int | None) -> Iterator[Batch]:
        """Batches for one leg. Ends by itself on every rank after the same batch, so no rank waits alone."""
        given = 0
        while not self.is_stopping and (limit is None or given < limit):
            self.clock.start(DATA_WAIT)
            batch = next(self.stream, None)
            self.clock.stop(DATA_WAIT)
            if batch is None:
                self.is_exhausted = True
                return
            given += 1
            yield batch

    def _account(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self.losses[self.in_window] = loss
        self.metrics.update(logits, labels)
        self.clock.next_step()
        self.step += 1
        self.in_window += 1
        if self.in_window == self.job.train.window_steps:
            self._close_window()

    def _close_window(self) -> None:
        """Exchange what happened, report it, and act on what all ranks agreed upon."""
        window = self.exchange.share(self._own_row(), self.metrics)
        self._report(window)
        self._report_bad_rows()
        self.in_window = 0
        self.metrics.reset()
        if window.first_bad_step is not None:
            raise NonFiniteLossError(*window.first_bad_step)
        if window.agreed_command > self.done_command:
            self.done_command = window.agreed_command
            self.is_stopping = True

    def _own_row(self) -> np.ndarray:
        own = np.zeros(len(OWN_COLUMNS))
        command = self.place.inbox.latest()
        own[COMMAND_ID] = command["id"] if command else 0
        bad = torch.nonzero(~torch.isfinite(self.losses[: self.in_window]))
        if bad.numel():
            own[BAD_STEP] = self.step - self.in_window + int(bad[0]) + 1
        own[PEAK_BYTES] = peak_bytes(self.device)
        own[TIMINGS] = self.clock.read().mean(axis=0)
        return own

    def _report(self, window: Window) -> None:
        now = time.perf_counter()
        samples = self.in_window * self.job.train.batch_size * self.place.world_size
        record = {
            "kind": "window",
            "step": self.step,
            "epoch": self.stream.position()["epoch"],
            **asdict(compute_metrics(window.metrics)),
            "qps": samples / (now - self.window_began),
            "columns": list(OWN_COLUMNS[2:]),
            "ranks": window.own[:, 2:].tolist(),
        }
        self.window_began = now
        self._say(record)

    def _report_bad_rows(self) -> None:
        """Say once, and again whenever their number has doubled, that rows are left out, and which came first."""
        found = self.stream.report()
        if found.num_bad_rows >= max(1, 2 * self.told_bad_rows):
            self.told_bad_rows = found.num_bad_rows
            message = f"{found.num_bad_rows} bad rows left out so far, the first: {found.bad_rows[0]}"
            self._say({"kind": "warning", "step": self.step, "message": message})

    def _say(self, record: dict[str, Any]) -> None:
        """Rank 0 speaks for all: after an exchange every rank knows the same."""
        if self.place.rank == 0:
            self.place.outbox.put({k: None if _is_nan(v) else v for k, v in record.items()})


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _take(batches: Iterator[Batch], limit: int | None) -> Iterator[Batch]:
    for taken, batch in enumerate(batches):
        if limit is not None and taken >= limit:
            return
        yield batch
