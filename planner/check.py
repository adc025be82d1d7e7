"""Whether a plan is legal for a problem; every violation is told at once."""

from collections import Counter
from itertools import pairwise

from planner.errors import PlanningError
from planner.memory import rank_bytes
from planner.plan import ShardingPlan, TablePlacement
from planner.problem import PlanningProblem
from planner.sharding import Shard, ShardingType, is_data_parallel_legal, row_blocks
from planner.tables import DIM_MULTIPLE, TableSpec
from planner.text import render_bytes
from planner.topology import Topology


def check(plan: ShardingPlan, problem: PlanningProblem) -> None:
    """Passes if a plan places every table exactly once, legally, within the constraints and the memory.

    Raises:
        PlanningError: Listing every violation; reason `memory` if all that is wrong is a rank over its
            memory, otherwise `plan`.
    """
    found = _world_faults(plan, problem) + _name_faults(plan, problem)
    for placement in plan.tables:
        if placement.name in problem.tables:
            found += _table_faults(placement, problem)
    found += _together_faults(plan, problem)
    reason = "plan" if found else "memory"
    if not any(_has_bad_rank(placement, problem) for placement in plan.tables):
        found += _memory_faults(plan, problem)
    if found:
        raise PlanningError(f"plan is not valid, faults: {len(found)}\n  " + "\n  ".join(found), reason=reason)


def _world_faults(plan: ShardingPlan, problem: PlanningProblem) -> list[str]:
    expected = problem.topology.world_size
    if plan.world_size == expected:
        return []
    return [f"world_size is {plan.world_size}, expected {expected} ({problem.topology.name})"]


def _name_faults(plan: ShardingPlan, problem: PlanningProblem) -> list[str]:
    counts = Counter(placement.name for placement in plan.tables)
    found = [f"table {name!r} is missing from the plan" for name in problem.tables if name not in counts]
    found += [f"table {name!r} is not one of the model's" for name in counts if name not in problem.tables]
    found += [f"table {name!r} is placed {count} times, expected once" for name, count in counts.items() if count > 1]
    return found


def _has_bad_rank(placement: TablePlacement, problem: PlanningProblem) -> bool:
    is_in_range = all(0 <= rank < problem.topology.world_size for rank in placement.ranks)
    return not is_in_range or placement.name not in problem.tables


def _table_faults(placement: TablePlacement, problem: PlanningProblem) -> list[str]:
    table, rule = problem.tables[placement.name], problem.rules[placement.name]
    if _has_bad_rank(placement, problem):
        found = [f"uses ranks {sorted(set(placement.ranks))}, expected 0 to {problem.topology.world_size - 1}"]
    else:
        found = _layout_faults(placement, table, problem.topology)
    if placement.sharding_type is ShardingType.DATA_PARALLEL and not is_data_parallel_legal(problem.workload.optimizer):
        found.append(f"data_parallel with {problem.workload.optimizer} trains untouched rows too; use another type")
    if rule.sharding_types is not None and placement.sharding_type not in rule.sharding_types:
        found.append(f"is {placement.sharding_type}, its constraint allows {', '.join(rule.sharding_types)}")
    if rule.ranks is not None and not set(placement.ranks) <= set(rule.ranks):
        found.append(f"uses ranks {sorted(set(placement.ranks))}, its constraint allows {sorted(rule.ranks)}")
    return [f"table {placement.name!r} {fault}" for fault in found]


def _layout_faults(placement: TablePlacement, table: TableSpec, topology: Topology) -> list[str]:
    if placement.sharding_type is ShardingType.TABLE_WISE:
        return _whole_faults(placement, table, num_shards=1)
    if placement.sharding_type is ShardingType.DATA_PARALLEL:
        expected = tuple(range(topology.world_size))
        wrong_ranks = [f"is replicated on ranks {list(placement.ranks)}, expected each of {len(expected)} once"]
        faults = [] if placement.ranks == expected else wrong_ranks
        return faults + _whole_faults(placement, table, num_shards=topology.world_size)
    if placement.sharding_type is ShardingType.COLUMN_WISE:
        return _column_faults(placement.shards, table)
    return _row_faults(placement, table, topology)


def _whole_faults(placement: TablePlacement, table: TableSpec, num_shards: int) -> list[str]:
    found = []
    if len(placement.shards) != num_shards:
        found.append(f"has {len(placement.shards)} shards, expected {num_shards} as {placement.sharding_type}")
    for shard in placement.shards:
        rectangle = (shard.row_offset, shard.num_rows, shard.col_offset, shard.num_cols)
        if rectangle != (0, table.num_embeddings, 0, table.embedding_dim):
            found.append(
                f"on rank {shard.rank} is {shard.num_rows} x {shard.num_cols} at ({shard.row_offset}, "
                f"{shard.col_offset}), expected the whole {table.num_embeddings} x {table.embedding_dim}"
            )
    return found


def _column_faults(shards: tuple[Shard, ...], table: TableSpec) -> list[str]:
    found = [
        f"has {shard.num_cols} columns in a shard on rank {shard.rank}, expected a multiple of {DIM_MULTIPLE}"
        for shard in shards
        if shard.num_cols < DIM_MULTIPLE or shard.num_cols % DIM_MULTIPLE
    ]
    found += [
        f"has a column shard of rows {shard.row_offset} + {shard.num_rows}, expected {table.num_embeddings}"
        for shard in shards
        if (shard.row_offset, shard.num_rows) != (0, table.num_embeddings)
    ]
    edges = [0, *(shard.col_offset + shard.num_cols for shard in shards)]
    starts = [*(shard.col_offset for shard in shards), table.embedding_dim]
    found += [
        f"column shards leave a gap or overlap: one ends at {end}, the next starts at {start}"
        for end, start in zip(edges, starts, strict=True)
        if end != start
    ]
    return found


def _row_faults(placement: TablePlacement, table: TableSpec, topology: Topology) -> list[str]:
    is_in_node = placement.sharding_type is ShardingType.TABLE_ROW_WISE
    if is_in_node and topology.local_world_size is None:
        sizes = sorted({len(topology.ranks_of(node)) for node in topology.nodes})
        needed = "equally many, consecutive ranks on every node"
        return [f"is table_row_wise, which needs {needed}; found nodes of {sizes} ranks: use another type"]
    groups = [tuple(range(topology.world_size))]
    if is_in_node:
        groups = [topology.ranks_of(node) for node in topology.nodes]
    if placement.ranks not in groups:
        where = "the ranks of one node" if is_in_node else "all ranks"
        return [f"is {placement.sharding_type} on ranks {list(placement.ranks)}, expected {where}, ascending"]
    starts, expected = 0, row_blocks(table.num_embeddings, len(placement.shards))
    if not expected.all():
        return [
            f"is {placement.sharding_type} with {table.num_embeddings} rows in {len(placement.shards)} blocks, "
            "which leaves a rank without a row: use another type"
        ]
    found = []
    for shard, num_rows in zip(placement.shards, expected.tolist(), strict=True):
        rectangle = (shard.row_offset, shard.num_rows, shard.col_offset, shard.num_cols)
        if rectangle != (starts, num_rows, 0, table.embedding_dim):
            found.append(
                f"on rank {shard.rank} has rows {shard.row_offset} + {shard.num_rows} "
                f"and columns {shard.col_offset} + "
                f"{shard.num_cols}, expected rows {starts} + {num_rows} and columns 0 + {table.embedding_dim}"
            )
        starts += num_rows
    return found


def _together_faults(plan: ShardingPlan, problem: PlanningProblem) -> list[str]:
    placed = {placement.name: placement for placement in plan.tables}
    return [
        f"tables {left!r} and {right!r} are to be kept together, found {_render(placed[left])} and "
        f"{_render(placed[right])}"
        for group in problem.groups
        for left, right in pairwise(group)
        if left in placed and right in placed and _render(placed[left]) != _render(placed[right])
    ]


def _render(placement: TablePlacement) -> str:
    return f"{placement.sharding_type} on {sorted(set(placement.ranks))}"


def _memory_faults(plan: ShardingPlan, problem: PlanningProblem) -> list[str]:
    found = []
    for device, used in zip(problem.topology.devices, rank_bytes(problem, plan), strict=True):
        usable = device.hbm_bytes - device.reserved_bytes
        if used > usable:
            found.append(
                f"rank {device.rank} ({device.node}) needs {render_bytes(used)}, has {render_bytes(usable)}: "
                f"{render_bytes(used - usable)} too much"
            )
    return found
