"""One rank's whole job: build, shard, then step after step until the data, the user or an error ends it."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from dlrm.checkpoint import load_checkpoint, save_checkpoint
from dlrm.checkpoint_folder import Progress, describe_settings
from dlrm.data.batches import Batch
from dlrm.data.factory import open_stream
from dlrm.data.stream import BatchStream
from dlrm.errors import DivergedError
from dlrm.exchange import Window, WindowExchange, agree, first_rank_where
from dlrm.job import TrainJob, resolve_pipeline
from dlrm.metrics import BinaryMetrics, MetricValues, compute_metrics
from dlrm.model import build_dlrm
from dlrm.optimizers import combine_optimizers
from dlrm.phases import build_timed_pipeline
from dlrm.records import evaluation_record, warning_record, window_record
from dlrm.sharded import shard_model
from dlrm.shards import local_tensors
from dlrm.timing import DATA_WAIT, make_clock
from dlrm.window import WindowLog

START = {"epoch": 0, "batch": 0}


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

    The checkpoint comes before the last evaluation, so that nothing that goes wrong there costs the training.
    Returns `{"result": "done" | "stopped", "step", "checkpoint" (path or None), "metrics" (held-out, or None)}`.
    Raises DivergedError with the step and rank of the first loss that is not a number.
    """
    trainer = Trainer(place, job)
    try:
        while trainer.wants_more:
            trainer.run_leg()
            if not trainer.wants_more:
                trainer.save()
            if trainer.is_evaluation_due:
                trainer.evaluate()
        trainer.save()
        return trainer.conclude()
    finally:
        trainer.close()


class Trainer:
    """The state of one rank between legs: a leg runs from one drained pipeline to the next."""

    def __init__(self, place: Place, job: TrainJob) -> None:
        self.place, self.job = place, job
        self.device = torch.device(place.device)
        self.train_stream = self._open("train", num_epochs=None if job.train.steps else job.train.epochs)
        self.eval_stream = self._open("eval", num_epochs=1)
        self._build()
        exchange = WindowExchange(place.rank, place.world_size, self.device)
        self.log = WindowLog(job.train.window_steps, job.train.batch_size, self.device, exchange)
        self.step = self.done_command = self.told_bad_rows = 0
        self.saved_step = self.evaluated_step = -1
        self.checkpoint: Path | None = None
        self.held_out: MetricValues | None = None
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
        self._train_on(self._feed(self.train_stream, self._leg_steps()))

    def time_steps(self, batches: Sequence[Batch]) -> np.ndarray:
        """Train on batches at hand; milliseconds `[len(batches), len(STEP_COLUMNS)]` of every step of this rank.

        Collective. At least one batch, and no more than the job's `window_steps`: no exchange comes between two steps.
        """
        assert 0 < len(batches) <= self.job.train.window_steps
        self._train_on(self._feed(iter(batches), len(batches)))
        return self.log.steps_ms

    def evaluate(self) -> None:
        """Score the held-out batches with the tables as they are placed; a stop request ends it without a score."""
        if isinstance(self.pipeline, TrainPipelineSparseDist):
            self.pipeline.detach()
        self.model.eval()
        metrics = BinaryMetrics(self.device)
        self.eval_stream.seek(START)
        batches = islice(self.eval_stream, self.job.train.eval_batches)
        with torch.no_grad():
            for number, batch in enumerate(batches, start=1):
                _, (_, logits, labels) = self.model(batch.to(self.device))
                metrics.update(logits, labels)
                if number % self.job.train.window_steps == 0:
                    self._heed(agree(self._newest_command(), self.device))
                    if self.is_stopping:
                        return
        dist.all_reduce(metrics.state)
        self.held_out = compute_metrics(metrics.state.cpu())
        self.evaluated_step = self.step
        self._say(evaluation_record(self.held_out, self.step))
        self.window_began = time.perf_counter()

    def save(self) -> None:
        """Write a checkpoint of this step, once; raises DivergedError rather than keep weights that are no numbers."""
        if not self.job.train.checkpoint or self.saved_step == self.step:
            return
        is_bad = not all(torch.isfinite(tensor).all() for tensor in local_tensors(self.model))
        bad_rank = first_rank_where(is_bad, self.place.rank, self.place.world_size, self.device)
        if bad_rank is not None:
            raise DivergedError("model", self.step, bad_rank)
        job = self.job
        settings = describe_settings(
            job.model, job.data, job.sparse_optimizer, job.dense_optimizer, job.train, self.place.world_size
        )
        progress = Progress(self.step, self.train_stream.position(), settings)
        folder = Path(self.job.checkpoint_folder)
        self.checkpoint = save_checkpoint(folder, self.model, self.optimizer, self.job.plan, progress)
        self.saved_step = self.step

    def conclude(self) -> dict[str, Any]:
        """What the job came to."""
        if dropped := self.train_stream.report().num_dropped_rows:
            message = f"{dropped} rows at the end of each pass are not trained: they fill no batch on every rank"
            self._say(warning_record(message, self.step))
        return {
            "result": "stopped" if self.is_stopping else "done",
            "step": self.step,
            "checkpoint": str(self.checkpoint) if self.checkpoint else None,
            "metrics": asdict(self.held_out) if self.held_out else None,
        }

    def close(self) -> None:
        """Stop the data threads."""
        self.train_stream.close()
        self.eval_stream.close()

    def _build(self) -> None:
        job = self.job
        model = build_dlrm(job.model, job.tables, job.schema.num_dense, job.train.seed)
        self.model = shard_model(
            model, job.tables, job.plan, job.topology, job.sparse_optimizer, self.device, job.train.seed
        )
        self.optimizer = combine_optimizers(self.model, job.sparse_optimizer, job.dense_optimizer)
        self.clock = make_clock(self.device, job.train.window_steps)
        kind = resolve_pipeline(job.train.pipeline, self.device.type)
        self.pipeline = build_timed_pipeline(kind, self.model, self.optimizer, self.device, self.clock)

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
        self.step = self.saved_step = progress.step
        self.checkpoint = checkpoint
        self.train_stream.seek(progress.position)

    def _leg_steps(self) -> int | None:
        train = self.job.train
        ends = [train.steps] if train.steps is not None else []
        if train.eval_every is not None:
            ends.append((self.step // train.eval_every + 1) * train.eval_every)
        return min(ends) - self.step if ends else None

    def _train_on(self, feed: Iterator[Batch]) -> None:
        """Train to the end of `feed`, window after window; the last one may be short."""
        self.model.train()
        self.pipeline.reset()
        while self._take_step(feed):
            if self.log.is_full:
                self._close_window()
        if not self.log.is_empty:
            self._close_window()

    def _take_step(self, feed: Iterator[Batch]) -> bool:
        """Train one step; False where there is no batch left."""
        self.clock.begin_step()
        try:
            loss, logits, labels = self.pipeline.progress(feed)
        except StopIteration:
            return False
        self.log.add(loss, logits, labels)
        self.clock.end_step()
        self.step += 1
        return True

    def _feed(self, batches: Iterator[Batch], limit: int | None) -> Iterator[Batch]:
        """Batches for one leg. Ends by itself on every rank after the same batch, so no rank waits alone."""
        given = 0
        while not self.is_stopping and (limit is None or given < limit):
            before = self.clock.enter(DATA_WAIT)
            batch = next(batches, None)
            self.clock.enter(before)
            if batch is None:
                self.is_exhausted = True
                return
            given += 1
            yield batch

    def _close_window(self) -> None:
        """Exchange what happened, tell it, and act on what all ranks agreed upon."""
        window = self.log.close(self.clock, self._newest_command(), self.step)
        if window.first_bad_step is not None:
            raise DivergedError("loss", *window.first_bad_step)
        self._tell(window)
        self._heed(window.agreed_command)

    def _newest_command(self) -> int:
        command = self.place.inbox.latest()
        return command["id"] if command else 0

    def _heed(self, agreed_command: int) -> None:
        """Do what a command says that all ranks hold: the one there is stops the run."""
        if agreed_command > self.done_command:
            self.done_command = agreed_command
            self.is_stopping = True

    def _tell(self, window: Window) -> None:
        """Make the window's record and say what was found in the data since; rank 0 speaks for all."""
        now = time.perf_counter()
        seconds, self.window_began = now - self.window_began, now
        if self.place.rank != 0:
            return
        epoch = self.train_stream.position()["epoch"]
        self._say(window_record(window, self.step, epoch, self._total_steps(), seconds))
        found = self.train_stream.report()
        # Said once, and again whenever the number has doubled.
        if found.num_bad_rows >= max(1, 2 * self.told_bad_rows):
            self.told_bad_rows = found.num_bad_rows
            message = f"{found.num_bad_rows} bad rows left out so far, the first: {found.bad_rows[0]}"
            self._say(warning_record(message, self.step))

    def _total_steps(self) -> int | None:
        """Steps of the whole job; unknown in the first pass over files."""
        train, num_batches = self.job.train, self.train_stream.num_batches
        if train.steps is not None:
            return train.steps
        return None if num_batches is None else num_batches * train.epochs

    def _say(self, record: dict[str, Any]) -> None:
        if self.place.rank == 0:
            self.place.outbox.put(record)
