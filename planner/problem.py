"""One planning task: tables, devices and the user's constraints."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.access import AccessStatistics, BatchRows, batch_rows
from planner.errors import PlanningError
from planner.sharding import ShardingOption, ShardingType, enumerate_options
from planner.tables import TableSpec, Workload
from planner.text import did_you_mean
from planner.topology import Topology

Item = TypeVar("Item")


@dataclass(frozen=True)
class TableConstraint:
    """A user's wish about some tables.

    Attributes:
        tables: Table names or shell patterns (`cat_*`).
        ranks: Ranks that may hold shards of them; None for any.
        sharding_types: Types they may have; None for any.
        together: Keep all of them on the same ranks, cut the same way.
    """

    tables: tuple[str, ...]
    ranks: tuple[int, ...] | None = None
    sharding_types: tuple[ShardingType, ...] | None = None
    together: bool = False


@dataclass(frozen=True)
class TableRule:
    """All constraints of one table, intersected; None means free."""

    ranks: tuple[int, ...] | None = None
    sharding_types: tuple[ShardingType, ...] | None = None


@dataclass(frozen=True)
class TableArrays:
    """Table figures as float64 arrays [T], in the workload's order.

    Attributes:
        num_rows: Rows.
        num_cols: Columns.
        num_features: Features that read the table.
        ids_per_sample: Mean ids of one sample over all its features.
        access: How rows are looked up, T statistics or None.
        samples: Samples of the global batch, which a shard serves.
        local_samples: Samples of a rank's own batch, which a replica serves.
    """

    num_rows: NDArray[np.float64]
    num_cols: NDArray[np.float64]
    num_features: NDArray[np.float64]
    ids_per_sample: NDArray[np.float64]
    access: tuple[AccessStatistics | None, ...]
    samples: int
    local_samples: int

    @property
    def distinct_rows(self) -> NDArray[np.float64]:
        """Rows [T] that the global batch looks up at least once."""
        return self._global_rows.distinct_rows

    @property
    def reuse(self) -> NDArray[np.float64]:
        """Shares [T, bins] of these rows by how often; bins as in `planner.lookups.NUM_REUSE_BINS`."""
        return self._global_rows.reuse

    @property
    def local_distinct_rows(self) -> NDArray[np.float64]:
        """Rows [T] that a rank's own batch looks up at least once."""
        return self._local_rows.distinct_rows

    @property
    def local_reuse(self) -> NDArray[np.float64]:
        """Shares [T, bins] of these rows by how often."""
        return self._local_rows.reuse

    @cached_property
    def _global_rows(self) -> BatchRows:
        return batch_rows(self.access, self.num_rows, self.ids_per_sample, self.samples)

    @cached_property
    def _local_rows(self) -> BatchRows:
        return batch_rows(self.access, self.num_rows, self.ids_per_sample, self.local_samples)


@dataclass(frozen=True)
class DeviceArrays:
    """Device figures as arrays [W], in rank order.

    Attributes:
        hbm_bytes_per_s: float64.
        flops_per_s: float64.
        launch_s: float64.
        node_index: int64, position of the rank's node in `Topology.nodes`.
        node_size: float64, ranks on the rank's node.
        by_node: int64, ranks ordered by node.
        node_starts: int64 [N], position of each node's first rank in `by_node`.
    """

    hbm_bytes_per_s: NDArray[np.float64]
    flops_per_s: NDArray[np.float64]
    launch_s: NDArray[np.float64]
    node_index: NDArray[np.int64]
    node_size: NDArray[np.float64]
    by_node: NDArray[np.int64]
    node_starts: NDArray[np.int64]

    def node_sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """For each rank the sum [..., W] of values [..., W] over all ranks of its node."""
        sums = np.add.reduceat(values[..., self.by_node], self.node_starts, axis=-1)
        return np.asarray(sums[..., self.node_index])


@dataclass(frozen=True)
class PlanningProblem:
    """Tables to place, devices to place them on, constraints to keep.

    Raises:
        PlanningError: Listing every constraint that names no table or a rank that is not there (reason
            `constraint`).
    """

    workload: Workload
    topology: Topology
    constraints: tuple[TableConstraint, ...] = ()

    def __post_init__(self) -> None:
        """Checks the constraints against the tables and the devices."""
        found = [problem for constraint in self.constraints for problem in self._faults(constraint)]
        if not found:
            found = [
                f"table {name!r}: its constraints leave no {what} in common; loosen one of them"
                for name, rule in self.rules.items()
                for what, left in (("rank", rule.ranks), ("sharding type", rule.sharding_types))
                if left == ()
            ]
        if found:
            raise PlanningError("constraints: " + "\n".join(found), reason="constraint")

    @cached_property
    def tables(self) -> dict[str, TableSpec]:
        """Tables by name."""
        return {table.name: table for table in self.workload.tables}

    @cached_property
    def index_of(self) -> dict[str, int]:
        """Position of each table in the workload, by name."""
        return {table.name: index for index, table in enumerate(self.workload.tables)}

    @cached_property
    def arrays(self) -> TableArrays:
        """The tables' figures as arrays [T]."""
        tables = self.workload.tables
        num_features = np.array([len(table.feature_names) for table in tables], dtype=np.float64)
        return TableArrays(
            num_rows=np.array([table.num_embeddings for table in tables], dtype=np.float64),
            num_cols=np.array([table.embedding_dim for table in tables], dtype=np.float64),
            num_features=num_features,
            ids_per_sample=num_features * np.array([table.pooling_factor for table in tables]),
            access=tuple(table.access for table in tables),
            samples=self.workload.batch_size * self.topology.world_size,
            local_samples=self.workload.batch_size,
        )

    @cached_property
    def devices(self) -> DeviceArrays:
        """The devices' figures as arrays [W]."""
        devices = self.topology.devices
        nodes = {node: index for index, node in enumerate(self.topology.nodes)}
        node_index = np.array([nodes[device.node] for device in devices], dtype=np.int64)
        node_sizes = np.bincount(node_index)
        return DeviceArrays(
            hbm_bytes_per_s=np.array([device.hbm_bytes_per_s for device in devices]),
            flops_per_s=np.array([device.flops_per_s for device in devices]),
            launch_s=np.array([device.launch_s for device in devices]),
            node_index=node_index,
            node_size=node_sizes[node_index].astype(np.float64),
            by_node=np.argsort(node_index, kind="stable"),
            node_starts=np.cumsum(node_sizes) - node_sizes,
        )

    @cached_property
    def rules(self) -> dict[str, TableRule]:
        """Each table's constraints, intersected, by name."""
        rules = {name: TableRule() for name in self.tables}
        for constraint in self.constraints:
            for name in self.matching(constraint.tables):
                rule = rules[name]
                rules[name] = TableRule(
                    _intersect(rule.ranks, constraint.ranks),
                    _intersect(rule.sharding_types, constraint.sharding_types),
                )
        return rules

    @cached_property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Tables that are placed as one, every table in exactly one group, in the workload's order."""
        group_of = {name: {name} for name in self.tables}
        for constraint in self.constraints:
            if constraint.together:
                merged = set().union(*(group_of[name] for name in self.matching(constraint.tables)))
                group_of.update({name: merged for name in merged})
        ordered = {min(self.index_of[name] for name in group): group for group in group_of.values()}
        return tuple(tuple(sorted(ordered[first], key=self.index_of.__getitem__)) for first in sorted(ordered))

    def matching(self, patterns: Iterable[str]) -> list[str]:
        """Names of the tables that any of the names or shell patterns match, in the workload's order."""
        wanted = tuple(patterns)
        return [name for name in self.tables if any(name == each or fnmatchcase(name, each) for each in wanted)]

    def options(self, name: str) -> tuple[ShardingOption, ...]:
        """The legal sharding options of a table under its constraints."""
        rule = self.rules[name]
        return enumerate_options(
            self.tables[name], self.topology, self.workload.optimizer, rule.ranks, rule.sharding_types
        )

    def _faults(self, constraint: TableConstraint) -> list[str]:
        where = f"constraint on {', '.join(constraint.tables) or 'nothing'}"
        found = [
            f"{where}: no table is called {pattern!r}{did_you_mean(pattern, self.tables)}"
            for pattern in constraint.tables
            if not self.matching([pattern])
        ]
        if not constraint.tables:
            found.append(f"{where}: names no table; give table names or patterns in `tables`")
        world_size = self.topology.world_size
        found += [
            f"{where}: rank {rank} is not there, expected 0 to {world_size - 1} ({self.topology.name})"
            for rank in constraint.ranks or ()
            if not 0 <= rank < world_size
        ]
        return found


def _intersect(left: tuple[Item, ...] | None, right: tuple[Item, ...] | None) -> tuple[Item, ...] | None:
    if left is None or right is None:
        kept = left if right is None else right
        return None if kept is None else tuple(dict.fromkeys(kept))
    return tuple(item for item in left if item in right)
