"""A plan for people: which rank holds what, and what it is estimated to cost."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from launcher.priced_plan import PINNED, PricedPlan
from launcher.views.plan_words import ABBREVIATIONS, NO_MOVE, move_words, summary
from launcher.views.rank_bars import render_ranks
from launcher.views.slowest_rank import render_filling
from launcher.views.tables import make_table
from planner.search.move_text import name_ranks
from planner.search.registry import PlanResult
from planner.sharding import ShardingType
from planner.tables import TableSpec
from planner.text import human_bytes
from planner.topology import Topology

# The largest tables are shown one by one, the rest as a count; --json has them all.
MOST_TABLES = 40


def render_plan(planned: PricedPlan, tables: Sequence[TableSpec], topology: Topology) -> Iterator[Table | str]:
    """The plan as a table of tables, bars of the ranks, what fills the slowest, and the totals in words."""
    plan = planned.to_dict()
    distinct_rows = dict(zip(planned.problem.tables, planned.problem.arrays.distinct_rows, strict=True))
    yield make_table("tables", _TABLE_COLUMNS, _table_rows(plan, tables, distinct_rows), left=2)
    if len(tables) > MOST_TABLES:
        yield f"  ... and {len(tables) - MOST_TABLES} smaller tables (--json lists all)"
    yield from render_ranks(plan, topology)
    yield render_filling(planned)
    yield summary(plan)
    yield from _best_move(planned)


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


def _best_move(planned: PricedPlan) -> Iterator[str]:
    """The best single change where there is one; that there is none is told of a plan that a user pinned."""
    if planned.is_polished:
        return
    if planned.best_move is not None:
        yield move_words(planned.best_move)
    elif planned.strategy == PINNED:
        yield NO_MOVE


def _ranks_of(table: dict[str, Any]) -> str:
    return name_ranks(shard["rank"] for shard in table["shards"])
