"""The stream of one rank's batches: made ahead in a thread, with a position that can be saved and sought."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dlrm.errors import DataError

if TYPE_CHECKING:
    from dlrm.data.batches import Batch

# How long the thread waits for room before it looks whether it should end.
POLL_S = 0.1


@dataclass(frozen=True)
class ReadReport:
    """What a pass over the data met so far; the thread that reads ahead is up to a few batches ahead of the consumer.

    Attributes:
        num_rows: good rows read, of both splits.
        num_bad_rows: rows left out because they cannot be read.
        bad_rows: the first of them as `file:line: why`.
        num_dropped_rows: rows at the end of an epoch that fill no global batch (training), or no equal share of one
            (evaluation); 0 until an epoch was read to its end, from then on that of the latest one.
    """

    num_rows: int = 0
    num_bad_rows: int = 0
    bad_rows: tuple[str, ...] = ()
    num_dropped_rows: int = 0


class BatchSource(Protocol):
    """Makes one rank's batches of an epoch; the number of batches must be the same on every rank."""

    @property
    def num_batches(self) -> int | None:
        """Batches of an epoch; None while that is not known."""
        ...

    def read_epoch(self, epoch: int, first_batch: int) -> Iterator[Batch]:
        """The batches of an epoch from number `first_batch` on; raises `DataError` where the epoch is shorter."""
        ...

    def report(self) -> ReadReport:
        """What the latest pass met so far."""
        ...


class BatchStream:
    """Iterates over the batches of `num_epochs` epochs, one after the other without a pause.

    Usable as a context manager, which closes it.

    Example:
        with open_stream(config, schema, "train", batch_size=512, rank=0, world_size=2, seed=0) as stream:
            stream.seek(saved_position)
            for batch in stream:
                ...
    """

    def __init__(
        self, source: BatchSource, prefetch_batches: int, num_epochs: int | None, is_pinned: bool = False
    ) -> None:
        """Prepare; the thread starts with the first batch that is taken.

        Args:
            source: makes the batches.
            prefetch_batches: batches that wait in the queue at most.
            num_epochs: epochs, counted from the very first, after which the stream ends; None = never.
            is_pinned: the thread puts batches into page-locked memory, from where they copy to a GPU without blocking.
        """
        self._source = source
        self._prefetch_batches = prefetch_batches
        self._num_epochs = num_epochs
        self._is_pinned = is_pinned
        self._epoch = 0
        self._batch = 0
        self._worker: _Prefetcher | None = None

    def __iter__(self) -> BatchStream:
        """Itself: the stream goes on where it stands."""
        return self

    def __next__(self) -> Batch:
        """The next batch; what went wrong in the thread is raised here."""
        if self._worker is None:
            start = (self._epoch, self._batch)
            self._worker = _Prefetcher(self._source, start, self._num_epochs, self._prefetch_batches, self._is_pinned)
        item = self._worker.take()
        if item is None:
            raise StopIteration
        self._epoch, self._batch, batch = item
        return batch

    def __enter__(self) -> BatchStream:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    @property
    def num_batches(self) -> int | None:
        """Batches of one epoch: known at once for synthetic data, for files once an epoch was read to its end."""
        return self._source.num_batches

    def position(self) -> dict[str, int]:
        """Where the consumer stands, for JSON: batches it TOOK of this epoch, whatever was made ahead."""
        return {"epoch": self._epoch, "batch": self._batch}

    def seek(self, position: dict[str, int]) -> None:
        """Go on after the batch that `position()` was asked after; `{"epoch": 0, "batch": 0}` is the start.

        A position that lies past the end of its epoch is found out by the next batch, which then raises `DataError`.
        """
        self.close()
        epoch, batch = position["epoch"], position["batch"]
        if epoch < 0 or batch < 0:
            raise DataError(
                f"A position counts from 0, found epoch {epoch}, batch {batch}: use what position() gave.", "position"
            )
        self._epoch, self._batch = epoch, batch

    def report(self) -> ReadReport:
        """What the present pass over the data met so far: rows, bad rows, rows dropped at the end."""
        return self._source.report()

    def close(self) -> None:
        """End the thread and drop what it made ahead; taking another batch starts it anew at `position()`."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None


_Item = tuple[int, int, "Batch"]


class _Prefetcher:
    """A thread that fills a bounded queue with (epoch, batches taken with this one, batch)."""

    def __init__(
        self, source: BatchSource, start: tuple[int, int], num_epochs: int | None, capacity: int, is_pinned: bool
    ) -> None:
        self._source = source
        self._is_pinned = is_pinned
        self._start = start
        self._num_epochs = num_epochs
        self._queue: queue.Queue[_Item | BaseException | None] = queue.Queue(maxsize=capacity)
        self._is_stopped = threading.Event()
        self._end: BaseException | None = None
        self._is_done = False
        self._thread = threading.Thread(target=self._run, name="data-prefetch", daemon=True)
        self._thread.start()

    def take(self) -> _Item | None:
        """The next item, None at the end; raises what the thread raised, again on every later call."""
        if not self._is_done:
            item = self._queue.get()
            if isinstance(item, tuple):
                return item
            self._is_done, self._end = True, item
        if self._end is not None:
            raise self._end
        return None

    def close(self) -> None:
        """Stop the thread and wait until it is gone."""
        self._is_stopped.set()
        self._thread.join()

    def _run(self) -> None:
        """Fill the queue until the end, an error or close()."""
        try:
            for item in self._items():
                if not self._put(item):
                    return
            self._put(None)
        except BaseException as error:  # whatever it is, it belongs to the consumer
            self._put(error)

    def _items(self) -> Iterator[_Item]:
        """The batches of all epochs from the start position on."""
        epoch, first_batch = self._start
        while self._num_epochs is None or epoch < self._num_epochs:
            for number, batch in enumerate(self._source.read_epoch(epoch, first_batch), start=first_batch + 1):
                yield epoch, number, batch.pin_memory() if self._is_pinned else batch
            epoch, first_batch = epoch + 1, 0

    def _put(self, item: _Item | BaseException | None) -> bool:
        """Wait for room; False when the stream was closed meanwhile."""
        while not self._is_stopped.is_set():
            try:
                self._queue.put(item, timeout=POLL_S)
            except queue.Full:
                continue
            return True
        return False
