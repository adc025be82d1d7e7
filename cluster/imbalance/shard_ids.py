"""Which tables of a rank are looked up more than they were, by samples of what each shard looked up."""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from cluster.imbalance.running import SPAN
from cluster.telemetry import Block

NUM_SAMPLES = 16
"""Samples kept before a change and after it; a median of so many hardly scatters."""

EXPLAINED_SHARE = 0.8
"""The tables named are the fewest that explain so much of the growth: the rest is chance."""


class ShardIds:
    """Samples of the series "shards"; those up to the baseline's end are the usual ones, if there are any."""

    def __init__(self) -> None:
        """There is no sample yet."""
        self._usual: deque[NDArray[np.float64]] = deque(maxlen=NUM_SAMPLES)
        self._recent: deque[tuple[int, NDArray[np.float64]]] = deque(maxlen=NUM_SAMPLES)
        self._ranks = np.zeros(0, dtype=np.int64)
        self._tables: tuple[str, ...] = ()

    @property
    def last_step(self) -> int | None:
        """Of the newest sample."""
        return self._recent[-1][0] if self._recent else None

    def add(self, block: Block, baseline_end: int | None) -> None:
        """Keep a block's samples as the usual ones up to step `baseline_end`, all of them while it is not known."""
        ranks, tables = np.asarray(block.labels["ranks"]), tuple(block.labels["tables"])
        if tables != self._tables or not np.array_equal(ranks, self._ranks):
            self._usual.clear()
            self._recent.clear()
            self._ranks, self._tables = ranks, tables
        column = list(block.labels["columns"]).index("ids")
        for step, ids in zip(block.steps.tolist(), block.rows[..., column], strict=True):
            self._recent.append((step, ids))
            if baseline_end is None or step <= baseline_end:
                self._usual.append(ids)

    def hot_tables(self, rank: int, since_step: int) -> tuple[str, ...]:
        """The fewest tables of the rank that explain most of the growth of its ids since a step, most first.

        Where windows are so long that none ended within the baseline, all samples kept from before that step are the
        usual ones. Empty where no sample was taken before, or after the change was surely there.
        """
        since = [ids for step, ids in self._recent if step >= since_step + SPAN]
        usual = list(self._usual) or [ids for step, ids in self._recent if step < since_step]
        if not since or not usual:
            return ()
        growth = np.median(since, axis=0) - np.median(usual, axis=0)
        by_table: dict[str, float] = {}
        for shard in np.flatnonzero((self._ranks == rank) & (growth > 0)):
            by_table[self._tables[shard]] = by_table.get(self._tables[shard], 0.0) + growth[shard]
        names = sorted(by_table, key=by_table.__getitem__, reverse=True)
        explained = np.cumsum([by_table[name] for name in names])
        return tuple(names[: int(np.searchsorted(explained, EXPLAINED_SHARE * explained[-1])) + 1]) if names else ()
