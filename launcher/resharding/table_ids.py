"""How many ids a step looks up in each table, from samples of what each shard of a plan looked up."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.telemetry import Block
from planner.plan import ShardingPlan
from planner.sharding import ShardingType

NUM_SAMPLES = 16
"""Samples kept of the first steps of a plan, and of the last: a median of so many hardly scatters."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One sampled step.

    Attributes:
        step: Its number.
        ids: float64 [T], ids of the global batch.
        distinct_ids: float64 [T], different ones among them; NaN where not counted.
    """

    step: int
    ids: NDArray[np.float64]
    distinct_ids: NDArray[np.float64]


class TableIds:
    """Samples of the series "shards" under one plan, added up by table."""

    def __init__(self, plan: ShardingPlan) -> None:
        """There is no sample yet."""
        self._first: list[Sample] = []
        self._last: deque[Sample] = deque(maxlen=NUM_SAMPLES)
        self.tables = tuple(table.name for table in plan.tables)
        self._index = {name: index for index, name in enumerate(self.tables)}
        # Each column shard looks up all ids of the batch.
        widths = [len({shard.col_offset for shard in table.shards}) for table in plan.tables]
        self._num_column_shards = np.array(widths, dtype=np.float64)
        kinds = [table.sharding_type for table in plan.tables]
        # Ranks that hold the same rows in other columns meet the same ids, replicas meet ids that overlap by an unknown
        # number; all other shards divide the rows.
        self._is_same_rows = np.array([kind is ShardingType.COLUMN_WISE for kind in kinds], dtype=bool)
        self._is_replicated = np.array([kind is ShardingType.DATA_PARALLEL for kind in kinds], dtype=bool)

    def add(self, block: Block) -> None:
        """Take a block; tables that the plan does not know are a plan's of before, and the block is left out."""
        names, columns = block.labels["tables"], list(block.labels["columns"])
        if not set(names) <= set(self._index):
            return
        table = np.array([self._index[name] for name in names], dtype=np.int64)
        ids, distinct = (block.rows[..., columns.index(name)] for name in ("ids", "distinct_ids"))
        for index, step in enumerate(block.steps.tolist()):
            sample = Sample(step, self._ids(table, ids[index]), self._distinct(table, distinct[index]))
            self._last.append(sample)
            if len(self._first) < NUM_SAMPLES:
                self._first.append(sample)

    def since(self, step: int) -> tuple[dict[str, float], dict[str, float]]:
        """(ids, distinct ids) of a step by table: medians of the last samples after a step, else of the newest one."""
        later = [sample for sample in self._last if sample.step > step]
        return self._medians(later or list(self._last)[-1:])

    def before(self, step: int) -> tuple[dict[str, float], dict[str, float]]:
        """The same of the first samples of the plan, those before a step."""
        return self._medians([sample for sample in self._first if sample.step < step])

    def _ids(self, table: NDArray[np.int64], ids: NDArray[np.float64]) -> NDArray[np.float64]:
        summed = np.zeros(len(self.tables))
        np.add.at(summed, table, ids)
        return summed / self._num_column_shards

    def _distinct(self, table: NDArray[np.int64], distinct: NDArray[np.float64]) -> NDArray[np.float64]:
        summed, most = np.zeros(len(self.tables)), np.zeros(len(self.tables))
        np.add.at(summed, table, distinct)
        with np.errstate(invalid="ignore"):  # not counted is NaN, and stays so
            np.maximum.at(most, table, distinct)
        return np.where(self._is_replicated, np.nan, np.where(self._is_same_rows, most, summed))

    def _medians(self, samples: Iterable[Sample]) -> tuple[dict[str, float], dict[str, float]]:
        found = list(samples)
        if not found:
            return {}, {}
        ids = np.median([sample.ids for sample in found], axis=0)
        counted = np.array([sample.distinct_ids for sample in found])
        is_counted = np.isfinite(counted).any(axis=0)
        distinct = {
            self.tables[index]: float(np.nanmedian(counted[:, index])) for index in np.flatnonzero(is_counted).tolist()
        }
        return dict(zip(self.tables, ids.tolist(), strict=True)), distinct
