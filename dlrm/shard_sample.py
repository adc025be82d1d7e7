"""How many ids, and how many different ones, each shard of a plan looks up: counted in one step of a window."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from planner.memory import FLOAT_BYTES
from planner.plan import ShardingPlan
from planner.tables import TableSpec

# gathered_bytes: what the ids take of the weights, columns of the shard that they hit times its bytes a weight.
SHARD_COLUMNS = ("ids", "distinct_ids", "gathered_bytes")
# Different ids need a sort; counted in one window of this many, it is a few hundredths of a percent of a step.
DISTINCT_EVERY_WINDOWS = 10
# No table has as many rows: ids of different tables do not meet.
ROWS_APART = 1 << 44


class ShardSampler:
    """Counts what this rank looks up for each of its tables; knows the order in which all ranks' counts stand.

    Attributes:
        labels: Of the series of all ranks: rank, table and sharding type of every row.
        sizes: How many tables each rank holds a part of; their counts stand rank after rank.
    """

    def __init__(self, plan: ShardingPlan, tables: tuple[TableSpec, ...], rank: int) -> None:
        held = [
            [table for table in plan.tables if any(shard.rank == each for shard in table.shards)]
            for each in range(plan.world_size)
        ]
        self.sizes = [len(tables) for tables in held]
        self.labels: dict[str, Any] = {
            "columns": list(SHARD_COLUMNS),
            "ranks": [each for each, tables in enumerate(held) for _ in tables],
            "tables": [table.name for tables in held for table in tables],
            "sharding_types": [str(table.sharding_type) for tables in held for table in tables],
        }
        features = {table.name: table.feature_names for table in tables}
        self._index = {feature: i for i, table in enumerate(held[rank]) for feature in features[table.name]}
        widths = [[shard.num_cols for shard in table.shards if shard.rank == rank] for table in held[rank]]
        # Ids count for each column shard, so each takes the mean width of those on this rank.
        self._id_bytes = torch.tensor([FLOAT_BYTES * sum(each) / len(each) for each in widths], dtype=torch.float64)

    def count(self, lookups: Mapping[int, KeyedJaggedTensor], is_distinct: bool, device: torch.device) -> torch.Tensor:
        """Counts `[sizes[rank], 3]` of what each group looked up; NaN for different ids where they are not asked for.

        Column shards of one table on one rank look up the same ids: those count for each shard, different ones once.
        Counting different ids waits for the device.
        """
        counts = torch.zeros(len(self._id_bytes), len(SHARD_COLUMNS), dtype=torch.float64, device=device)
        counts[:, 1] = 0.0 if is_distinct else torch.nan
        for features in lookups.values():
            if not features.keys():
                continue
            at = torch.tensor([self._index[key] for key in features.keys()], device=device)  # noqa: SIM118
            lengths = features.lengths().view(len(at), -1).sum(dim=1)
            counts[:, 0].index_add_(0, at, lengths.double())
            if is_distinct:
                found = torch.unique(torch.repeat_interleave(at, lengths) * ROWS_APART + features.values())
                counts[:, 1] += torch.bincount(found // ROWS_APART, minlength=len(counts))
        counts[:, 2] = counts[:, 0] * self._id_bytes.to(device)
        return counts


def is_distinct_window(number: int) -> bool:
    """Whether different ids are counted in this window, counted from 0."""
    return number % DISTINCT_EVERY_WINDOWS == 0


def split_shards(gathered: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Counts `[S, 3]` of all ranks in the order of the labels, from what each rank padded: `[W, most, 3]`."""
    return np.concatenate([rows[:size] for rows, size in zip(gathered, sizes, strict=True)])
