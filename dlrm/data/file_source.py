"""From the rows of files to one rank's batches: holdout split, shuffle window, global batches, this rank's slice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from dlrm.data.bad_rows import BadRowLog
from dlrm.data.rows import Rows, concatenate
from dlrm.data.stream import ReadReport
from dlrm.errors import DataError

if TYPE_CHECKING:
    from dlrm.data.batches import Batch


class Split(StrEnum):
    """Which rows: those trained on, or those held out."""

    TRAIN = "train"
    EVAL = "eval"


class RowReader(Protocol):
    """Reads the files of a data set."""

    def read(self, bad_rows: BadRowLog) -> Iterator[Rows]:
        """One pass over the good rows, always the same, in chunks of bounded size; bad ones go to the log."""
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

    def slice(self, rows: Rows) -> Rows:
        """This rank's rows of a global batch, whose rows are divided evenly."""
        rows_per_rank = len(rows) // self.world_size
        return rows.slice(self.rank * rows_per_rank, (self.rank + 1) * rows_per_rank)


def holdout_mask(first_number: int, num_rows: int, holdout_every: int) -> npt.NDArray[np.bool_]:
    """True for held-out rows among `num_rows` good rows numbered from `first_number`: numbers n-1, 2n-1, ..."""
    return (np.arange(first_number, first_number + num_rows) + 1) % holdout_every == 0


class FileSource:
    """One rank's batches of files.

    All ranks read the same rows in the same order and judge bad rows alike, so that their batches agree in number and
    together are the stream's rows, each once.
    """

    def __init__(
        self,
        reader: RowReader,
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

    def read_epoch(self, epoch: int, first_batch: int) -> Iterator[Batch]:
        """The batches of one pass from number `first_batch` on; what lies before is read and left.

        Raises:
            DataError: `too_short` without a single batch, `position` where the pass ends before `first_batch`, and
                what the reader raises.
        """
        self._bad_rows = BadRowLog(self._max_bad_rows)
        self._num_rows = self._num_dropped_rows = 0
        num_batches = 0
        for rows in self._global_batches(self._shuffled(self._split_rows(), epoch)):
            num_batches += 1
            if num_batches > first_batch:
                yield self._share.slice(rows).to_batch(self._names)
        if num_batches == 0:
            self._raise_too_short()
        if num_batches < first_batch:
            raise DataError(
                f"The saved position is batch {first_batch} of epoch {epoch}, but the epoch has {num_batches} batches: "
                f"the data, the batch size or the number of ranks is not what it was.",
                "position",
            )

    def report(self) -> ReadReport:
        """Rows, bad rows and dropped rows of the latest pass so far."""
        log = self._bad_rows
        return ReadReport(self._num_rows, log.count, tuple(map(str, log.examples)), self._num_dropped_rows)

    def _split_rows(self) -> Iterator[Rows]:
        """The rows of this split, chunk by chunk."""
        for rows in self._reader.read(self._bad_rows):
            first_number = self._num_rows
            self._num_rows += len(rows)
            if self._holdout_every is None:
                yield rows
                continue
            is_held_out = holdout_mask(first_number, len(rows), self._holdout_every)
            yield rows.take(np.flatnonzero(is_held_out == (self._split is Split.EVAL)))

    def _shuffled(self, chunks: Iterator[Rows], epoch: int) -> Iterator[Rows]:
        """Windows of `shuffle_rows` rows, each permuted; the seed depends on the epoch and the window alone."""
        if not self._shuffle_rows:
            yield from chunks
            return
        for window, rows in enumerate(_regroup(chunks, self._shuffle_rows)):
            generator = np.random.default_rng([self._seed, epoch, window])
            yield rows.take(generator.permutation(len(rows)))

    def _global_batches(self, chunks: Iterator[Rows]) -> Iterator[Rows]:
        """Global batches; at the end training drops what is incomplete, evaluation cuts it into equal shares."""
        for rows in _regroup(chunks, self._share.global_rows):
            kept = len(rows)
            if kept < self._share.global_rows:
                kept = 0 if self._split is Split.TRAIN else kept - kept % self._share.world_size
                self._num_dropped_rows = len(rows) - kept
            if kept:
                yield rows.slice(0, kept)

    def _raise_too_short(self) -> None:
        """Say how many rows there are and how many a batch takes."""
        share = self._share
        needed = share.global_rows if self._split is Split.TRAIN else share.world_size
        raise DataError(
            f"The data ended before a single {self._split} batch: {self._num_dropped_rows} of {self._num_rows} good "
            f"rows ({self._bad_rows.count} bad ones left out) belong to {self._split}, a global batch needs {needed} "
            f"({share.world_size} ranks x batch size {share.batch_size}): use a smaller batch size or more data.",
            "too_short",
        )


def _regroup(chunks: Iterator[Rows], group_rows: int) -> Iterator[Rows]:
    """The same rows in groups of `group_rows`, the last one smaller; holds one group and one chunk at a time."""
    parts: list[Rows] = []
    num_rows = 0
    for chunk in chunks:
        parts.append(chunk)
        num_rows += len(chunk)
        if num_rows < group_rows:
            continue
        rows = concatenate(parts)
        whole = num_rows - num_rows % group_rows
        for start in range(0, whole, group_rows):
            yield rows.slice(start, start + group_rows)
        parts = [rows.slice(whole, num_rows)]
        num_rows -= whole
    if num_rows:
        yield concatenate(parts)
