"""The frozen plan: where every shard of every table lives, in memory and as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from planner.errors import PlanningError
from planner.sharding import Shard, ShardingType


@dataclass(frozen=True)
class TablePlacement:
    """One table's sharding type and shards, in the order of their offsets (data parallel: of their ranks)."""

    name: str
    sharding_type: ShardingType
    shards: tuple[Shard, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        """The rank of each shard, in shard order."""
        return tuple(shard.rank for shard in self.shards)


@dataclass(frozen=True)
class ShardingPlan:
    """A placement of every table of a model on `world_size` ranks."""

    world_size: int
    tables: tuple[TablePlacement, ...]

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values: `world_size` and `tables`."""
        return {"world_size": self.world_size, "tables": [_placement_dict(table) for table in self.tables]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ShardingPlan":
        """The plan that `to_dict` wrote.

        Raises:
            PlanningError: A key is missing or unknown, or a value has the wrong type (reason `plan`).
        """
        try:
            tables = tuple(_placement_from_dict(table) for table in data["tables"])
            return cls(world_size=int(data["world_size"]), tables=tables)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise PlanningError(
                f"plan: cannot be read ({type(error).__name__}: {error}); expected what `plan --json` "
                "writes: world_size and tables: [{name, sharding_type, shards: [{rank, row_offset, num_rows, "
                "col_offset, num_cols}]}]",
                reason="plan",
            ) from error


def _placement_dict(table: TablePlacement) -> dict[str, Any]:
    return {
        "name": table.name,
        "sharding_type": table.sharding_type.value,
        "shards": [asdict(shard) for shard in table.shards],
    }


def _placement_from_dict(data: Mapping[str, Any]) -> TablePlacement:
    shards = tuple(Shard(**{key: int(np.int64(value)) for key, value in shard.items()}) for shard in data["shards"])
    return TablePlacement(str(data["name"]), ShardingType(data["sharding_type"]), shards)
