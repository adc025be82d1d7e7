"""A plan for people: which rank holds what, and what it is estimated to cost."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from rich.table import Table

from launcher.views.tables import make_table
from planner.search.registry import PlanResult
from planner.sharding import ShardingType
from planner.tables import TableSpec
from planner.text import human_bytes
from planner.topology import Topology

# Source: style of the field; the long names stand in JSON.
ABBREVIATIONS = {
    "data_parallel": "DP",
    "table_wise": "TW",
    "column_wise": "CW",
    "row_wise": "RW",
    "table_row_wise": "TWRW",
}
# The largest tables are shown one by one, the rest as a count; --json has them all.
MOST_TABLES = 40
MOST_RANKS = 64


def render_plan(planned: PlanResult, tables: Sequence[TableSpec], topology: Topology) -> Iterator[Table | str]:
    """The plan as a table of ranks, a table of tables and the totals."""
    plan = planned.to_dict()
    distinct_rows = dict(zip(planned.problem.tables, planned.problem.arrays.distinct_rows, strict=True))
    yield make_table("tables", _TABLE_COLUMNS, _table_rows(plan, tables, distinct_rows), left=2)
    if len(tables) > MOST_TABLES:
        yield f"  ... and {len(tables) - MOST_TABLES} smaller tables (--json lists all)"
    yield make_table(f"ranks of {topology.name}", _RANK_COLUMNS, _rank_rows(plan, topology), left=2)
    if topology.world_size > MOST_RANKS:
        yield f"  ... and {topology.world_size - MOST_RANKS} more ranks (--json lists all)"
    yield summary(plan)


def summary(plan: dict[str, Any]) -> str:
    """Two lines: estimated step, imbalance and distance to the lower bound; strategy and time to plan."""
    return (
        f"estimated step {plan['estimated_step_ms']:.2f} ms, imbalance {plan['imbalance']:.2f}, at most "
        f"{plan['gap']:.0%} above the best plan\nby {plan['strategy']} in {plan['plan_seconds']:.2f} s"
    )


def plan_markdown(planned: PlanResult) -> str:
    """The plan as a Markdown table, for TensorBoard's text page."""
    plan = planned.to_dict()
    rows = [
        (table["name"], ABBREVIATIONS[table["sharding_type"]], _ranks_of(table), str(len(table["shards"])))
        for table in plan["tables"]
    ]
    head = [summary(plan), "", "| table | type | ranks | shards |", "|---|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])


def gathered_bytes(planned: PlanResult, tables: Sequence[TableSpec]) -> np.ndarray:
    """Bytes that each rank gathers from each table for one global sample: `[W, T]`, tables in the plan's order.

    A replica serves its own rank's samples only; rows of a row-wise shard are taken as equally hot.
    """
    weight_bytes = planned.problem.workload.weight_bytes
    plan = planned.plan
    specs = {table.name: table for table in tables}
    gathered = np.zeros((plan.world_size, len(plan.tables)))
    for column, placement in enumerate(plan.tables):
        table = specs[placement.name]
        is_replicated = placement.sharding_type is ShardingType.DATA_PARALLEL
        ids = table.pooling_factor * len(table.feature_names) / (plan.world_size if is_replicated else 1)
        for shard in placement.shards:
            gathered[shard.rank, column] += ids * shard.num_cols * weight_bytes * shard.num_rows / table.num_embeddings
    return gathered


_TABLE_COLUMNS = ("table", "type", "rows", "dim", "pooling", "distinct", "size", "shards", "ranks")
_RANK_COLUMNS = ("rank", "node", "memory", "free", "shards", "lookup ms", "comms ms", "total ms")


def _table_rows(
    plan: dict[str, Any], tables: Sequence[TableSpec], distinct_rows: dict[str, float]
) -> Iterator[tuple[str, ...]]:
    """A row a table; `distinct` is the rows that a global batch looks up."""
    placed = {table["name"]: table for table in plan["tables"]}
    largest = sorted(tables, key=lambda t: t.num_embeddings * t.embedding_dim, reverse=True)
    for table in largest[:MOST_TABLES]:
        entry = placed[table.name]
        yield (
            table.name,
            ABBREVIATIONS[entry["sharding_type"]],
            f"{table.num_embeddings:,}",
            str(table.embedding_dim),
            f"{table.pooling_factor:.1f}",
            f"{distinct_rows[table.name]:,.0f}",
            human_bytes(table.num_embeddings * table.embedding_dim * 4),
            str(len(entry["shards"])),
            _ranks_of(entry),
        )


def _rank_rows(plan: dict[str, Any], topology: Topology) -> Iterator[tuple[str, ...]]:
    for rank in plan["ranks"][:MOST_RANKS]:
        device = topology.devices[rank["rank"]]
        yield (
            str(rank["rank"]),
            rank["node"][:12],
            human_bytes(rank["hbm_bytes"]),
            human_bytes(device.hbm_bytes - device.reserved_bytes - rank["hbm_bytes"]),
            str(rank["num_shards"]),
            f"{rank['lookup_ms']:.3f}",
            f"{rank['comms_ms']:.3f}",
            f"{rank['total_ms']:.3f}",
        )


def _ranks_of(table: dict[str, Any]) -> str:
    """Ranks as ranges: `0-3,7`."""
    ranks = sorted({shard["rank"] for shard in table["shards"]})
    # Within a run of neighbours, rank minus position stays the same.
    runs = [list(run) for _, run in groupby(enumerate(ranks), key=lambda pair: pair[1] - pair[0])]
    ends = [(run[0][1], run[-1][1]) for run in runs]
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)
