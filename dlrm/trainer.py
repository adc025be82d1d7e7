"""One rank's whole job: build, shard, then step after step until the data, the user or an error ends it."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dlrm.checkpoint import load_checkpoint, save_checkpoint
from dlrm.checkpoint_folder import Progress, describe_settings
from dlrm.data.batches import Batch
from dlrm.data.factory import open_stream
from dlrm.data.stream import BatchStream
from dlrm.errors import DivergedError
from dlrm.exchange import agree, first_rank_where
from dlrm.job import TrainJob
from dlrm.links import probe_links
from dlrm.metrics import BinaryMetrics, MetricValues, compute_metrics
from dlrm.move import decline, move
from dlrm.place import Place
from dlrm.records import evaluation_record, links_record
from dlrm.reporter import Reporter
from dlrm.rig import Rig
from dlrm.shards import local_tensors
from dlrm.step_columns import DATA_WAIT, STEP_COLUMNS
from dlrm.window import Exchanged, Span, WindowLog

START = {"epoch": 0, "batch": 0}
NO_COMMAND: dict[str, Any] = {"id": 0, "kind": ""}
# What a controller may ask of all ranks.
STOP, PROBE_LINKS, RESHARD = "stop", "probe_links", "reshard"


def train(place: Place, /, job: TrainJob) -> dict[str, Any]:
    """Train to the end of the job on one rank; every rank calls it with the same job.

    The checkpoint comes before the last evaluation, so that nothing that goes wrong there costs the training.
    Returns `{"result": "done" | "stopped", "step", "checkpoint" (path or None), "metrics" (held-out, or None)}`.
    Raises DivergedError with the step and rank of the first loss that is not a number.
    """
    trainer = Trainer(place, job)
    try:
        while trainer.wants_more:
            trainer.move_if_asked()
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
        self.reporter = Reporter(place)
        self.device = torch.device(place.device)
        self.train_stream = self._open("train", num_epochs=None if job.train.steps else job.train.epochs)
        self.eval_stream = self._open("eval", num_epochs=1)
        self.rig = Rig(place, job, self.device)
        self.log = self._new_log()
        self.step = self.done_command = 0
        self.command = NO_COMMAND
        self.asked_move: dict[str, Any] | None = None
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
        """Whether the leg that just ended stopped for an evaluation or for the end of the job, not only for a move."""
        every = self.job.train.eval_every
        is_due = not self.wants_more or (every is not None and self.step % every == 0)
        return is_due and not self.is_stopping and self.evaluated_step != self.step

    def move_if_asked(self) -> None:
        """Move the tables where the controller asked for it, between two legs."""
        command, self.asked_move = self.asked_move, None
        if command is None:
            return
        self.reporter.say(move(self.rig, command, self.step))
        self.log = self._new_log()
        self.window_began = time.perf_counter()

    def run_leg(self) -> None:
        """Train up to the next evaluation, move or the end, and drain the pipeline."""
        self._train_on(self._feed(self.train_stream, self._leg_steps()))

    def time_steps(self, batches: Sequence[Batch]) -> np.ndarray:
        """Train on batches at hand; milliseconds `[len(batches), len(STEP_COLUMNS)]` of every step of this rank.

        Collective. At least one batch, and no more than the job's `window_steps`: no exchange comes between two steps.
        """
        assert 0 < len(batches) <= self.job.train.window_steps
        self._train_on(self._feed(iter(batches), len(batches)))
        return self.log.own_steps[:, : len(STEP_COLUMNS)]

    def evaluate(self) -> None:
        """Score the held-out batches with the tables as they are placed; a stop request ends it without a score."""
        self.rig.detach()
        self.rig.model.eval()
        metrics = BinaryMetrics(self.device)
        self.eval_stream.seek(START)
        batches = islice(self.eval_stream, self.job.train.eval_batches)
        with torch.no_grad():
            for number, batch in enumerate(batches, start=1):
                _, (_, logits, labels) = self.rig.model(batch.to(self.device))
                metrics.update(logits, labels)
                if number % self.job.train.window_steps == 0:
                    self._heed(agree(self._newest_command(), self.device))
                    if self.is_stopping:
                        return
        dist.all_reduce(metrics.state)
        self.held_out = compute_metrics(metrics.state.cpu())
        self.evaluated_step = self.step
        self.reporter.say(evaluation_record(self.held_out, self.step))
        self.window_began = time.perf_counter()

    def save(self) -> None:
        """Write a checkpoint of this step, once; raises DivergedError rather than keep weights that are no numbers."""
        if not self.job.train.checkpoint or self.saved_step == self.step:
            return
        is_bad = not all(torch.isfinite(tensor).all() for tensor in local_tensors(self.rig.model))
        bad_rank = first_rank_where(is_bad, self.place.rank, self.place.world_size, self.device)
        if bad_rank is not None:
            raise DivergedError("model", self.step, bad_rank)
        job = self.rig.job
        settings = describe_settings(
            job.model, job.data, job.sparse_optimizer, job.dense_optimizer, job.train, self.place.world_size
        )
        progress = Progress(self.step, self.train_stream.position(), settings)
        folder = Path(job.checkpoint_folder)
        self.checkpoint = save_checkpoint(folder, self.rig.model, self.rig.optimizer, job.plan, progress)
        self.saved_step = self.step

    def conclude(self) -> dict[str, Any]:
        """What the job came to."""
        if dropped := self.train_stream.report().num_dropped_rows:
            message = f"{dropped} rows at the end of each pass are not trained: they fill no batch on every rank"
            self.reporter.warn(message, self.step)
        if self.asked_move is not None:
            self.reporter.say(decline(self.asked_move, self.step))
        return {
            "result": "stopped" if self.is_stopping else "done",
            "step": self.step,
            "checkpoint": str(self.checkpoint) if self.checkpoint else None,
            "metrics": asdict(self.held_out) if self.held_out else None,
        }

    def close(self) -> None:
        """Stop the data threads and what was planted."""
        self.rig.close()
        if self.rig.profiler is not None:
            self.reporter.note(self.rig.profiler.close(), self.step)
        self.train_stream.close()
        self.eval_stream.close()

    def _new_log(self) -> WindowLog:
        train = self.job.train
        return WindowLog(train.window_steps, train.batch_size, self.device, self.place.world_size, self.rig.meter)

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
        progress = load_checkpoint(checkpoint, self.rig.model, self.rig.optimizer)
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
        self.rig.model.train()
        self.rig.pipeline.reset()
        while self._take_step(feed):
            if self.log.is_full:
                self._close_window()
        if self.log.num_steps:
            self._close_window()
        if (late := self.log.flush()) is not None:
            self._act_on(late)

    def _take_step(self, feed: Iterator[Batch]) -> bool:
        """Train one step; False where there is no batch left."""
        rig = self.rig
        for message in rig.injections.at_step(self.step + 1):
            self.reporter.warn(message, self.step)
        if rig.profiler is not None:
            self.reporter.note(rig.profiler.at_step(self.step + 1), self.step)
        rig.clock.begin_step()
        try:
            loss, logits, labels = rig.pipeline.progress(feed)
        except StopIteration:
            rig.clock.cancel_step()
            return False
        self.log.add(loss, logits, labels)
        rig.meter.end_step()
        self.step += 1
        return True

    def _feed(self, batches: Iterator[Batch], limit: int | None) -> Iterator[Batch]:
        """Batches for one leg. Ends by itself on every rank after the same batch, so no rank waits alone."""
        given, clock = 0, self.rig.clock
        while not (self.is_stopping or self.asked_move) and (limit is None or given < limit):
            before = clock.enter(DATA_WAIT)
            batch = next(batches, None)
            if batch is None:
                self.is_exhausted = True
                return
            batch = self.rig.injections.transform(batch)
            clock.enter(before)
            given += 1
            yield batch

    def _close_window(self) -> None:
        """Exchange what happened since the last window."""
        now = time.perf_counter()
        seconds, self.window_began = now - self.window_began, now
        epoch = self.train_stream.position()["epoch"]
        span = Span(self.step, self.log.num_steps, epoch, self._total_steps(), seconds)
        self._act_on(self.log.close(span, self._newest_command()))

    def _act_on(self, exchanged: Exchanged) -> None:
        """Tell of the window that arrived, and do what all ranks agreed upon."""
        window = exchanged.window
        if window is not None:
            if window.first_bad_step is not None:
                raise DivergedError("loss", *window.first_bad_step)
            self.reporter.tell(window)
            self.reporter.tell_bad_rows(self.train_stream.report(), self.step)
        self._heed(exchanged.agreed_command)

    def _newest_command(self) -> int:
        self.command = self.place.inbox.latest() or NO_COMMAND
        return int(self.command["id"])

    def _heed(self, agreed_command: int) -> None:
        """Do what a command says, once all ranks hold it: then it is the one that this rank saw last."""
        if agreed_command <= self.done_command:
            return
        self.done_command = agreed_command
        if self.command["kind"] == STOP:
            self.is_stopping = True
        elif self.command["kind"] == RESHARD:
            self.asked_move = self.command
        elif self.command["kind"] == PROBE_LINKS:
            place = self.place
            send_ms = probe_links(place.rank, place.world_size, self.device, self.rig.injections.delay_send)
            self.reporter.say(links_record(send_ms, self.step))
            self.window_began = time.perf_counter()

    def _total_steps(self) -> int | None:
        """Steps of the whole job; unknown in the first pass over files."""
        train, num_batches = self.job.train, self.train_stream.num_batches
        if train.steps is not None:
            return train.steps
        return None if num_batches is None else num_batches * train.epochs
