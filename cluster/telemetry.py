"""Bounded buffers for what a rank measures: rows of numbers in named series, which training never waits to leave."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Room of a series. A row of 256 ranks and 20 columns takes 40 KiB, so this is 800 steps of them: what a controller
# misses that is away for 8 s (a slow disk, a search for a plan) from steps of 10 ms. With 2 ranks it is 100,000 steps.
DEFAULT_RING_BYTES = 32 * 2**20
# Room of a series whose rows are larger than that: a window of the default length, and a few rows more.
LEAST_ROWS = 16


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive rows of one series, as drained; take its arrays as read-only, which they are after a journey by Ray.

    Attributes:
        name: The series.
        labels: What was said at its declaration; JSON-able, names of the last axis under `columns`.
        steps: int64 [N], strictly increasing: the number of each row.
        rows: float64 [N, *row_shape].
        num_dropped: Older rows that were overwritten since the last drain.
    """

    name: str
    labels: Mapping[str, Any]
    steps: NDArray[np.int64]
    rows: NDArray[np.float64]
    num_dropped: int = 0


class Rings:
    """The series of one rank: preallocated, thread-safe, and of bounded size whether or not anybody drains them.

    A writer waits for a drain no longer than one copy of the series takes. Declared anew with other labels, or written
    with a step that does not follow the last one, a series begins again; of the rows before, those that nobody has
    drained are kept as they were, so a series takes twice its room at most. What a further beginning pushes out counts
    as dropped.

    >>> rings = Rings()
    >>> rings.declare("steps", (2, 1), {"columns": ["step_ms"]})
    >>> rings.append("steps", np.array([7, 8]), np.ones((2, 2, 1)))
    >>> [(block.name, block.steps.tolist()) for block in rings.drain()]
    [('steps', [7, 8])]
    """

    def __init__(self, capacity_bytes: int = DEFAULT_RING_BYTES) -> None:
        """Makes room for no series yet; each gets `capacity_bytes` for its rows, or LEAST_ROWS rows if that is more."""
        if capacity_bytes < 1:
            raise ValueError(f"room of a series: expected at least 1 byte, found {capacity_bytes}")
        self._capacity_bytes = capacity_bytes
        self._rings: dict[str, _Ring] = {}
        self._ended: dict[str, Block] = {}
        self._lock = threading.Lock()

    def declare(self, name: str, row_shape: tuple[int, ...], labels: Mapping[str, Any]) -> None:
        """Makes room for a series; nothing happens where it is there with this shape and equal labels.

        Raises:
            ValueError: Where `labels["columns"]` does not name the last axis of a row.
        """
        num_columns = len(labels.get("columns", ()))
        if not row_shape or num_columns != row_shape[-1]:
            raise ValueError(
                f"series {name}: expected a name for each column of a row {row_shape}, found {num_columns}"
            )
        with self._lock:
            present = self._rings.get(name)
            if present is not None and present.shape == row_shape and present.labels == labels:
                return
            if present is not None:
                self._end(present)
            self._rings[name] = _Ring(name, row_shape, dict(labels), self._capacity_bytes)

    def append(self, name: str, steps: NDArray[np.int64], rows: NDArray[np.float64]) -> None:
        """Copies rows `[N, *row_shape]` with increasing numbers `[N]` into place; the oldest ones go where room ends.

        Raises:
            ValueError: For a series that was not declared, arrays of other shapes, numbers that do not increase.
        """
        with self._lock:
            ring = self._rings.get(name)
            if ring is None:
                raise ValueError(f"series {name}: not declared; there are: {', '.join(self._rings) or 'none'}")
            if rows.shape != (len(steps), *ring.shape):
                raise ValueError(f"series {name}: expected rows {(len(steps), *ring.shape)}, found {rows.shape}")
            if (steps[1:] <= steps[:-1]).any():
                raise ValueError(f"series {name}: expected increasing numbers of rows, found {steps}")
            if len(steps) and not ring.is_followed_by(int(steps[0])):
                self._end(ring)
                ring.clear()
            ring.append(steps, rows)

    def drain(self, after: Mapping[str, int] | None = None) -> tuple[Block, ...]:
        """Gives what was appended since the last drain, series by series, oldest first; none for a series without news.

        Args:
            after: Of a series named here only rows with higher numbers are given, and only those count as dropped: it
                is how a rank that was never drained goes on where another one ended. Their number is exact where rows
                are numbered without gaps, else the most that it can be.
        """
        after = after or {}
        with self._lock:
            ended, self._ended = self._ended, {}
            blocks = [*ended.values(), *(ring.drain() for ring in self._rings.values())]
        cut = [_cut(block, after[block.name]) if block.name in after else block for block in blocks]
        return tuple(block for block in cut if len(block.steps))

    def _end(self, ring: _Ring) -> None:
        """Keeps what was not drained of a ring that begins anew, in place of what was kept before."""
        block = ring.drain()
        if not len(block.steps):
            return
        before = self._ended.pop(ring.name, None)
        lost = before.num_dropped + len(before.steps) if before else 0
        self._ended[ring.name] = replace(block, num_dropped=block.num_dropped + lost)


class _Ring:
    """The rows of one series in place, oldest overwritten first; counts are since the last beginning."""

    def __init__(self, name: str, shape: tuple[int, ...], labels: dict[str, Any], capacity_bytes: int) -> None:
        self.name, self.shape, self.labels = name, shape, labels
        self._num_slots = max(LEAST_ROWS, capacity_bytes // (8 * (1 + prod(shape))))  # a row and its number
        # Written once here, so that no step waits for the system to find a page.
        self._steps = np.full(self._num_slots, -1, dtype=np.int64)
        self._rows = np.full((self._num_slots, *shape), np.nan)
        self._num_written = self._num_drained = 0

    def is_followed_by(self, step: int) -> bool:
        """Whether `step` is a number after that of the last row."""
        return self._num_written == 0 or step > self._steps[(self._num_written - 1) % self._num_slots]

    def clear(self) -> None:
        """Begins anew, in the same room."""
        self._num_written = self._num_drained = 0

    def append(self, steps: NDArray[np.int64], rows: NDArray[np.float64]) -> None:
        """Copies rows in, in at most two pieces; of more rows than there is room for, the last ones."""
        end = self._num_written + len(steps)
        begin = max(self._num_written, end - self._num_slots)
        for slots, source in self._pieces(begin, end):
            skipped = slice(source.start + begin - self._num_written, source.stop + begin - self._num_written)
            self._steps[slots], self._rows[slots] = steps[skipped], rows[skipped]
        self._num_written = end

    def drain(self) -> Block:
        """Copies out what is new."""
        begin = max(self._num_drained, self._num_written - self._num_slots)
        steps = np.empty(self._num_written - begin, dtype=np.int64)
        rows = np.empty((self._num_written - begin, *self.shape))
        for slots, target in self._pieces(begin, self._num_written):
            steps[target], rows[target] = self._steps[slots], self._rows[slots]
        num_dropped, self._num_drained = begin - self._num_drained, self._num_written
        return Block(self.name, self.labels, steps, rows, num_dropped)

    def _pieces(self, begin: int, end: int) -> list[tuple[slice, slice]]:
        """Where rows `begin` to `end` lie, and where that is within them; one piece, or two around the ring's end."""
        first = begin % self._num_slots
        size = min(end - begin, self._num_slots - first)
        pieces = [(slice(first, first + size), slice(0, size))]
        return pieces if size == end - begin else [*pieces, (slice(0, end - begin - size), slice(size, end - begin))]


def _cut(block: Block, after: int) -> Block:
    """The rows of a block numbered higher than `after`, and how many such may have been dropped before them."""
    first = int(np.searchsorted(block.steps, after, side="right"))
    num_missing = int(block.steps[0]) - after - 1 if len(block.steps) else 0
    num_dropped = min(block.num_dropped, max(0, num_missing))
    return replace(block, steps=block.steps[first:], rows=block.rows[first:], num_dropped=num_dropped)
