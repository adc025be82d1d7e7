"""From Criteo's categories to rows of tables: by hash, or by a vocabulary of the frequent ones."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dlrm.data.criteo_format import NUM_CATEGORIES, CriteoBlock
from dlrm.data.criteo_origin import VocabularyOrigin
from dlrm.data.hashing import mix
from dlrm.errors import DataError

# Row 0 of every table stands for a missing value; with a vocabulary row 1 stands for all categories outside it.
MISSING_ROW = 0
OUT_OF_VOCABULARY_ROW = 1
NUM_RESERVED_ROWS = 2

# Distinct categories counted per column at a time: 26 columns x 2^21 x 12 bytes = 624 MiB at the worst.
MAX_COUNTED = 2**21


class CriteoEncoder(Protocol):
    """Gives every category of a block its row."""

    def encode(self, block: CriteoBlock) -> npt.NDArray[np.int64]:
        """Rows [N, 26]."""
        ...

    @property
    def num_embeddings(self) -> tuple[int, ...]:
        """Rows of each of the 26 tables."""
        ...


@dataclass(frozen=True)
class HashedEncoder:
    """Rows by a hash that differs from column to column; `rows` per table, of which row 0 is for missing values."""

    rows: int

    @property
    def num_embeddings(self) -> tuple[int, ...]:
        """The same for every column."""
        return (self.rows,) * NUM_CATEGORIES

    def encode(self, block: CriteoBlock) -> npt.NDArray[np.int64]:
        """Rows [N, 26]."""
        # The column stands above the category's 32 bits, so that no two columns hash alike.
        salted = block.categories.astype(np.uint64) | (
            np.arange(1, NUM_CATEGORIES + 1, dtype=np.uint64) << np.uint64(32)
        )
        hashed = 1 + (mix(salted) % np.uint64(self.rows - 1)).astype(np.int64)
        return np.where(block.is_missing, MISSING_ROW, hashed)


class Vocabulary:
    """Rows of the categories that were frequent when it was built; rare and unseen ones share row 1."""

    def __init__(
        self, columns: list[npt.NDArray[np.uint32]], origin: VocabularyOrigin, num_rows: int, max_undercount: int
    ) -> None:
        """Take 26 arrays of distinct categories, most frequent first, and how they came about.

        Args:
            columns: the categories.
            origin: what was counted, and by which rules.
            num_rows: rows counted.
            max_undercount: by how much a count may have fallen short of the truth.
        """
        self.columns = columns
        self.origin = origin
        self.num_rows = num_rows
        self.max_undercount = max_undercount
        self._order = [np.argsort(column) for column in columns]
        self._sorted = [column[order] for column, order in zip(columns, self._order, strict=True)]

    @property
    def num_embeddings(self) -> tuple[int, ...]:
        """Each column's frequent categories and the two reserved rows."""
        return tuple(len(column) + NUM_RESERVED_ROWS for column in self.columns)

    def encode(self, block: CriteoBlock) -> npt.NDArray[np.int64]:
        """Rows [N, 26]."""
        rows = np.full(block.categories.shape, OUT_OF_VOCABULARY_ROW, np.int64)
        for column, (known, order) in enumerate(zip(self._sorted, self._order, strict=True)):
            if not len(known):
                continue
            values = block.categories[:, column]
            position = np.minimum(np.searchsorted(known, values), len(known) - 1)
            rows[:, column] = np.where(
                known[position] == values, order[position] + NUM_RESERVED_ROWS, OUT_OF_VOCABULARY_ROW
            )
        return np.where(block.is_missing, MISSING_ROW, rows)

    def save(self, path: Path) -> None:
        """Write it beside and rename, so that no reader sees half a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        arrays = {f"column_{i}": column for i, column in enumerate(self.columns)}
        meta = {"origin": asdict(self.origin), "num_rows": self.num_rows, "max_undercount": self.max_undercount}
        with beside.open("wb") as file:
            np.savez(file, meta=np.array(json.dumps(meta)), **arrays)  # type: ignore[arg-type]
        os.replace(beside, path)


def load_vocabulary(path: Path, expected: VocabularyOrigin) -> Vocabulary:
    """The vocabulary of a file.

    Args:
        path: what `save` wrote.
        expected: the data and settings that it must have been built with.

    Raises:
        DataError: `vocabulary` where the file is absent, is something else or was built with other data or settings.
    """
    if not path.is_file():
        raise DataError(
            f"{path} (data.criteo.vocabulary_path) does not exist here: every node must see the file.", "vocabulary"
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            meta = json.loads(str(arrays["meta"]))
            columns = [arrays[f"column_{i}"] for i in range(NUM_CATEGORIES)]
        origin = VocabularyOrigin(**meta.pop("origin"))
        vocabulary = Vocabulary(columns, origin, **meta)
    except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
        raise DataError(
            f"{path} is not a vocabulary of this version ({error}): choose another "
            f"data.criteo.vocabulary_path, where one is then built.",
            "vocabulary",
        ) from error
    if differences := origin.differences(expected):
        raise DataError(
            f"{path} was built with {'; '.join(differences)}. Delete it, or choose another "
            f"data.criteo.vocabulary_path; it is then built anew.",
            "vocabulary",
        )
    return vocabulary


@dataclass
class _Counter:
    """Counts of one column's categories, in bounded memory.

    Where more than `max_counted` distinct ones are at hand the rarest are dropped until at most half remain; a count
    then falls short of the truth by at most `max_undercount`, 0 if nothing was ever dropped.
    Source: lossy counting (Manku and Motwani 2002, VLDB, section 4.2), but pruned when full, not by a fixed period.
    """

    keys: npt.NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    max_undercount: int = 0

    def add(self, values: npt.NDArray[np.uint32], max_counted: int) -> None:
        """Count the values."""
        keys, counts = np.unique(values, return_counts=True)
        merged, inverse = np.unique(np.concatenate([self.keys, keys]), return_inverse=True)
        totals = np.zeros(len(merged), np.int64)
        np.add.at(totals, inverse, np.concatenate([self.counts, counts]))
        self.keys, self.counts = merged, totals
        if len(merged) > max_counted:
            self._prune(max_counted // 2)

    def _prune(self, num_kept: int) -> None:
        """Drop the rarest and remember how often one of them may have been seen."""
        threshold = int(np.partition(self.counts, len(self.counts) - num_kept)[len(self.counts) - num_kept])
        is_kept = self.counts > threshold
        self.keys, self.counts = self.keys[is_kept], self.counts[is_kept]
        self.max_undercount += threshold

    def most_frequent(self, min_count: int, max_rows: int) -> npt.NDArray[np.uint32]:
        """Categories seen at least `min_count` times, the most frequent first, at most `max_rows`; ties by value."""
        is_frequent = self.counts >= min_count
        keys, counts = self.keys[is_frequent], self.counts[is_frequent]
        return keys[np.lexsort((keys, -counts))][:max_rows]


def build_vocabulary(
    blocks: Iterable[CriteoBlock], origin: VocabularyOrigin, max_counted: int = MAX_COUNTED
) -> Vocabulary:
    """Count the categories of the blocks, in one pass.

    Args:
        blocks: the rows trained on.
        origin: where the blocks come from, and the rules to count by; kept with the vocabulary.
        max_counted: distinct categories per column counted at a time.
    """
    counters = [_Counter() for _ in range(NUM_CATEGORIES)]
    num_rows = 0
    for block in blocks:
        num_rows += len(block)
        for column, counter in enumerate(counters):
            counter.add(block.categories[~block.is_missing[:, column], column], max_counted)
    limit = origin.num_embeddings - NUM_RESERVED_ROWS
    columns = [counter.most_frequent(origin.min_count, limit) for counter in counters]
    return Vocabulary(columns, origin, num_rows, max(counter.max_undercount for counter in counters))
