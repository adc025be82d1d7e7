"""From the rows of files to one rank's batches: holdout split, shuffle window, global batches, this rank's slice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from dlrm.data.bad_rows import BadRowLog
from dlrm.data.rows import RawRows, Rows
from dlrm.data.stream import ReadReport
from dlrm.errors import DataError

if TYPE_CHECKING:
    from dlrm.data.batches import Batch


class Split(StrEnum):
    """Which rows: those trained on, or those held out."""

    TRAIN = "train"
    EVAL = "eval"


R = TypeVar("R", bound=RawRows)


class RowReader(Protocol[R]):
    """Reads the files of a data set.

    Every rank reads and judges all rows, but encodes only those of its own batches: encoding must not fail.
    """

    def read(self, bad_rows: BadRowLog) -> Iterator[R]:
        """One pass over the good rows, always the same, in chunks of bounded size; bad ones go to the log."""
        ...

    def encode(self, rows: R) -> Rows:
        """The rows' dense values, labels and ids."""
        ...


@dataclass(frozen=True)
class RankShare:
    """Which part of every global batch is this rank's.

    Attributes:
        batch_size: rows per rank.
        rank: of `world_size`.
        world_size: ranks.
    """

    batch_size: int
    rank: int
    world_size: int

    @property
    def global_rows(self) -> int:
        """Rows of a global batch."""
        return self.batch_size * self.world_size

    def least_rows(self, split: Split) -> int:
        """Rows of files that make a batch: training takes whole ones alone, evaluation any equal shares."""
        return self.global_rows if split is Split.TRAIN else self.world_size

    def index(self, num_rows: int, global_rows: int) -> npt.NDArray[np.intp]:
        """This rank's rows among `num_rows`, [global batches, rows of a batch]; a global batch is divided evenly."""
        if not num_rows:
            return np.empty((0, 0), np.intp)
        rows_per_rank = global_rows // self.world_size
        starts = np.arange(0, num_rows, global_rows) + self.rank * rows_per_rank
        return starts[:, None] + np.arange(rows_per_rank)


def holdout_mask(first_number: int, num_rows: int, holdout_every: int) -> npt.NDArray[np.bool_]:
    """True for held-out rows among `num_rows` good rows numbered from `first_number`: numbers n-1, 2n-1, ..."""
    return (np.arange(first_number, first_number + num_rows) + 1) % holdout_every == 0


def read_head(reader: RowReader[R], max_bad_rows: int, path: str) -> R:
    """The first chunk that has rows.

    Raises:
        DataError: `too_short` where there is none, and what reading raises.
    """
    for rows in reader.read(BadRowLog(max_bad_rows)):
        if len(rows):
            return rows
    raise DataError(f"{path} holds no row: correct data.path or data.eval_path.", "too_short")


class FileSource(Generic[R]):
    """One rank's batches of files.

    All ranks read the same rows in the same order and judge bad rows alike, so that their batches agree in number and
    together are the stream's rows, each once.
    """

    def __init__(
        self,
        reader: RowReader[R],
        names: Sequence[str],
        split: Split,
        share: RankShare,
        *,
        holdout_every: int | None,
        shuffle_rows: int,
        max_bad_rows: int,
        seed: int,
    ) -> None:
        """Prepare; nothing is read.

        Args:
            reader: the files.
            names: the features' names, in the order of the rows' features.
            split: which rows.
            share: which of them are this rank's.
            holdout_every: every n-th good row is held out; None = all rows belong to the split.
            shuffle_rows: rows permuted together in training; 0 = the order of the files.
            max_bad_rows: bad rows tolerated in a pass.
            seed: of the permutations.
        """
        self._reader = reader
        self._names = tuple(names)
        self._split = split
        self._share = share
        self._holdout_every = holdout_every
        self._shuffle_rows = shuffle_rows if split is Split.TRAIN else 0
        self._seed = seed
        self._max_bad_rows = max_bad_rows
        self._bad_rows = BadRowLog(max_bad_rows)
        self._num_rows = 0
        self._num_dropped_rows = 0
        self._num_batches: int | None = None

    @property
    def num_batches(self) -> int | None:
        """Batches of an epoch; None until one was read to its end."""
        return self._num_batches

    def read_epoch(self, epoch: int, first_batch: int) -> Iterator[Batch]:
        """The batches of one pass from number `first_batch` on; raises as `read_rows` does."""
        for rows in self.read_rows(epoch, first_batch):
            yield rows.to_batch(self._names)

    def read_rows(self, epoch: int, first_batch: int) -> Iterator[Rows]:
        """The rows of these batches, for which torch is not loaded; what lies before is read, but not encoded.

        Raises:
            DataError: `too_short` without a single batch, `position` where the pass ends before `first_batch`, and
                what the reader raises.
        """
        self._bad_rows = BadRowLog(self._max_bad_rows)
        self._num_rows = 0
        num_batches = num_split_rows = num_used_rows = 0
        global_rows = self._share.global_rows
        for group in _regroup(self._shuffled(self._split_rows(), epoch), global_rows):
            rows = self._usable(group)
            yield from self._batches(rows, max(0, first_batch - num_batches))
            num_split_rows += len(group)
            num_used_rows += len(rows)
            num_batches += -(-len(rows) // global_rows)
        if num_batches == 0:
            self._raise_too_short(num_split_rows)
        self._num_dropped_rows = num_split_rows - num_used_rows
        self._num_batches = num_batches
        if num_batches < first_batch:
            raise DataError(
                f"The saved position is batch {first_batch} of epoch {epoch}, but the epoch has {num_batches} batches: "
                f"the data, the batch size or the number of ranks is not what it was.",
                "position",
            )

    def report(self) -> ReadReport:
        """Rows and bad rows of the latest pass so far, dropped rows of the latest that was read to its end."""
        log = self._bad_rows
        return ReadReport(self._num_rows, log.count, tuple(map(str, log.examples)), self._num_dropped_rows)

    def _split_rows(self) -> Iterator[R]:
        """The rows of this split, chunk by chunk."""
        for rows in self._reader.read(self._bad_rows):
            first_number = self._num_rows
            self._num_rows += len(rows)
            if self._holdout_every is None:
                yield rows
                continue
            is_held_out = holdout_mask(first_number, len(rows), self._holdout_every)
            yield rows.take(np.flatnonzero(is_held_out == (self._split is Split.EVAL)))

    def _shuffled(self, chunks: Iterator[R], epoch: int) -> Iterator[R]:
        """Windows of `shuffle_rows` rows, each permuted; the seed depends on the epoch and the window alone."""
        if not self._shuffle_rows:
            yield from chunks
            return
        window = 0
        for rows in _regroup(chunks, self._shuffle_rows):
            for start in range(0, len(rows), self._shuffle_rows):
                num_rows = min(self._shuffle_rows, len(rows) - start)
                generator = np.random.default_rng([self._seed, epoch, window])
                yield rows.take(start + generator.permutation(num_rows))
                window += 1

    def _usable(self, rows: R) -> R:
        """Whole global batches; of the incomplete one at the end training keeps nothing, evaluation equal shares."""
        if len(rows) % self._share.global_rows == 0:
            return rows
        return rows.slice(0, 0 if self._split is Split.TRAIN else len(rows) - len(rows) % self._share.world_size)

    def _batches(self, rows: R, num_skipped: int) -> Iterator[Rows]:
        """This rank's part of usable rows but for the first global batches; encoded together, which costs less."""
        global_rows = min(self._share.global_rows, len(rows))
        own = self._share.index(len(rows), global_rows)[num_skipped:]
        if own.size:
            encoded = self._reader.encode(rows.take(own.ravel()))
            yield from encoded.split(own.shape[1])

    def _raise_too_short(self, num_split_rows: int) -> None:
        """Say how many rows there are and how many a batch takes."""
        share, needed = self._share, self._share.least_rows(self._split)
        raise DataError(
            f"The data ended before a single {self._split} batch: {num_split_rows} of {self._num_rows} good "
            f"rows ({self._bad_rows.count} bad ones left out) belong to {self._split}, a global batch needs {needed} "
            f"({share.world_size} ranks x batch size {share.batch_size}): use a smaller batch size or more data.",
            "too_short",
        )


def _regroup(chunks: Iterator[R], group_rows: int) -> Iterator[R]:
    """The same rows in multiples of `group_rows`, the last piece smaller; holds one group and one chunk at a time."""
    parts: list[R] = []
    num_rows = 0
    for chunk in chunks:
        parts.append(chunk)
        num_rows += len(chunk)
        if num_rows < group_rows:
            continue
        rows = _joined(parts)
        whole = num_rows - num_rows % group_rows
        yield rows.slice(0, whole)
        parts = [rows.slice(whole, num_rows)]
        num_rows -= whole
    if num_rows:
        yield _joined(parts)


def _joined(parts: list[R]) -> R:
    """The rows of the parts; a single part is not copied."""
    return parts[0] if len(parts) == 1 else parts[0].concatenate(parts)
