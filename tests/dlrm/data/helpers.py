"""What the data tests share: rows that can be told apart, readers of lists, and drained streams."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dlrm.data.bad_rows import BadRowLog
from dlrm.data.batches import Batch
from dlrm.data.file_source import FileSource, RankShare, Split
from dlrm.data.rows import Ragged, Rows, offsets_of
from dlrm.data.stream import BatchStream


def numbered_rows(start: int, stop: int) -> Rows:
    """Rows whose dense value, and every id of whose ragged feature, is the row's own number."""
    number = np.arange(start, stop)
    lengths = number % 4
    ragged = Ragged(np.repeat(number, lengths), offsets_of(lengths))
    single = Ragged(number * 10, np.arange(stop - start + 1))
    return Rows(number.astype(np.float32)[:, None], (number % 2).astype(np.float32), (single, ragged))


@dataclass
class NumberedReader:
    """Reads `num_rows` numbered rows in chunks of uneven size."""

    num_rows: int

    def read(self, bad_rows: BadRowLog) -> Iterator[Rows]:
        """The rows."""
        start, size = 0, 1
        while start < self.num_rows:
            stop = min(start + size, self.num_rows)
            yield numbered_rows(start, stop)
            start, size = stop, size * 3 % 17 + 1


def numbered_source(
    num_rows: int, split: str, batch_size: int, rank: int, world_size: int, **options: int | None
) -> FileSource:
    """A source over numbered rows."""
    settings = {"holdout_every": 5, "shuffle_rows": 0, "max_bad_rows": 0, "seed": 7, **options}
    share = RankShare(batch_size, rank, world_size)
    return FileSource(NumberedReader(num_rows), ("single", "ragged"), Split(split), share, **settings)  # type: ignore[arg-type]


def row_numbers(batch: Batch) -> list[int]:
    """Which numbered rows a batch holds."""
    return batch.dense_features[:, 0].int().tolist()


def drain(stream: BatchStream) -> list[Batch]:
    """All that is left in a stream, which is then closed."""
    with stream:
        return list(stream)


def same(a: Batch, b: Batch) -> bool:
    """Two batches are equal to the last bit."""
    return (
        torch.equal(a.dense_features, b.dense_features)
        and torch.equal(a.labels, b.labels)
        and a.sparse_features.keys() == b.sparse_features.keys()
        and torch.equal(a.sparse_features.values(), b.sparse_features.values())
        and torch.equal(a.sparse_features.lengths(), b.sparse_features.lengths())
    )
