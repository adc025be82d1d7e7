"""Holds the sums of all tables after a migration against those before it."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist

from dlrm.errors import DlrmError
from dlrm.reshard.checksum import table_sums
from dlrm.reshard.held import HeldShard
from dlrm.reshard.parcels import Layout
from dlrm.reshard.vote import Fault, GivenUp
from planner.plan import ShardingPlan, TablePlacement
from planner.sharding import ShardingType


class TableSums:
    """Sums of two plans' shards that can be compared.

    Of a replicated table only one copy of the old plan counts, and every copy of the new one. The row's value of
    row-wise Adagrad is another one where columns are cut otherwise: there its way is checked instead. Tables that stay
    as they are need no sum: their shards are held against the old ones bit by bit, which takes a third of the time.

    Attributes:
        cut_tables: Those that one of the plans cuts by columns.
    """

    def __init__(self, old: ShardingPlan, new: ShardingPlan, layout: Layout, rank: int) -> None:
        self._index = {table.name: number for number, table in enumerate(new.tables)}
        self._num_sums = layout.num_cell_values + layout.num_row_values
        was = {table.name: table for table in old.tables}
        self._stays = {table.name for table in new.tables if table == was[table.name]}
        self._replicas = {name for name, table in was.items() if _is_replicated(table)}
        copies = [new.world_size if _is_replicated(table) else 1 for table in new.tables]
        self._num_copies = torch.tensor(copies, dtype=torch.int64)[:, None]
        is_row_value = torch.arange(self._num_sums) >= layout.num_cell_values
        is_cut = [_is_column_cut(was[table.name]) or _is_column_cut(table) for table in new.tables]
        self.cut_tables = {table.name for table, each in zip(new.tables, is_cut, strict=True) if each}
        self._is_compared = ~(torch.tensor(is_cut)[:, None] & is_row_value)
        self._rank = rank

    def of_old(self, shards: Iterable[HeldShard]) -> torch.Tensor:
        """int64 [T, sums]: what this rank contributes under the old plan."""
        mine = (shard for shard in shards if self._rank == 0 or shard.table not in self._replicas)
        return self._add_up(mine)

    def of_new(self, shards: Sequence[HeldShard], old: Iterable[HeldShard]) -> torch.Tensor:
        """int64 [T, sums]: what it contributes under the new one.

        Raises:
            DlrmError: `checksum`, where a shard of a table that stays is not as it was.
        """
        was = {shard.place: shard for shard in old}
        for shard in shards:
            if shard.table in self._stays and not shard.is_like(was[shard.place]):
                raise DlrmError(f"table {shard.table!r} stays, and is not as it was before the move", "checksum")
        return self._add_up(shards)

    def _add_up(self, shards: Iterable[HeldShard]) -> torch.Tensor:
        moving = (shard for shard in shards if shard.table not in self._stays)
        return table_sums(moving, self._index, self._num_sums)

    def check(self, before: torch.Tensor, after: torch.Tensor, transit: torch.Tensor) -> None:
        """Pass where over all ranks the sums agree, int64 [T, sums] each, and [2] on the way. Collective.

        Raises:
            GivenUp: On all ranks alike, with the tables that do not.
        """
        totals = torch.cat([before.flatten(), after.flatten(), transit])
        dist.all_reduce(totals)
        was, now = (each.view_as(before) for each in totals[:-2].chunk(2))
        is_wrong = ((was * self._num_copies != now) & self._is_compared).any(dim=1)
        names = [name for name, number in self._index.items() if is_wrong[number]]
        if names:
            raise GivenUp(Fault(None, f"checksums of {', '.join(names)} are not those of before the move"))
        if totals[-2] != totals[-1]:
            raise GivenUp(Fault(None, "checksums of the optimizer's state are not those of before the move"))


def _is_replicated(table: TablePlacement) -> bool:
    return table.sharding_type is ShardingType.DATA_PARALLEL


def _is_column_cut(table: TablePlacement) -> bool:
    return table.sharding_type is ShardingType.COLUMN_WISE
