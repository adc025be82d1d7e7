"""What the data tests share: rows that can be told apart, readers of lists, and drained streams."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from dlrm.data.bad_rows import BadRowLog
from dlrm.data.batches import Batch
from dlrm.data.file_source import FileSource, RankShare, Split
from dlrm.data.rows import Ragged, Rows
from dlrm.data.stream import BatchStream


@dataclass(frozen=True)
class NumberedRows:
    """Raw rows: their numbers, [N]."""

    numbers: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)

    def slice(self, start: int, stop: int) -> "NumberedRows":
        return NumberedRows(self.numbers[start:stop])

    def take(self, index: npt.NDArray[np.intp]) -> "NumberedRows":
        return NumberedRows(self.numbers[index])

    @classmethod
    def concatenate(cls, parts: Sequence["NumberedRows"]) -> "NumberedRows":
        return cls(np.concatenate([part.numbers for part in parts]))


def numbered_rows(numbers: npt.NDArray[np.int64]) -> Rows:
    """Rows whose dense value, and every id of whose ragged feature, is the row's own number."""
    lengths = numbers % 4
    ragged = Ragged(np.repeat(numbers, lengths), lengths)
    single = Ragged(numbers * 10, np.ones_like(numbers))
    return Rows(numbers.astype(np.float32)[:, None], (numbers % 2).astype(np.float32), (single, ragged))


@dataclass
class NumberedReader:
    """Reads `num_rows` numbered rows in chunks of uneven size, and notes which ones it had to encode."""

    num_rows: int
    encoded: list[int] = field(default_factory=list)

    def read(self, bad_rows: BadRowLog) -> Iterator[NumberedRows]:
        """The rows."""
        start, size = 0, 1
        while start < self.num_rows:
            stop = min(start + size, self.num_rows)
            yield NumberedRows(np.arange(start, stop))
            start, size = stop, size * 3 % 17 + 1

    def encode(self, rows: NumberedRows) -> Rows:
        """Rows whose values are their numbers."""
        self.encoded += rows.numbers.tolist()
        return numbered_rows(rows.numbers)


def numbered_source(
    data: int | NumberedReader, split: str, batch_size: int, rank: int, world_size: int, **options: int | None
) -> FileSource[NumberedRows]:
    """A source over numbered rows: so many, or those of a reader."""
    reader = NumberedReader(data) if isinstance(data, int) else data
    settings = {"holdout_every": 5, "shuffle_rows": 0, "max_bad_rows": 0, "seed": 7, **options}
    share = RankShare(batch_size, rank, world_size)
    return FileSource(reader, ("single", "ragged"), Split(split), share, **settings)  # type: ignore[arg-type]


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
