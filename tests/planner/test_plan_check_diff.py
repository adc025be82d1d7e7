"""Plans as JSON, what `check` refuses, and what a change of plan moves."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from planner.check import check
from planner.diff import diff, render_diff
from planner.errors import PlanningError
from planner.memory import rank_bytes
from planner.plan import ShardingPlan, TablePlacement
from planner.problem import PlanningProblem, TableConstraint
from planner.search.registry import make_plan
from planner.sharding import Shard, ShardingType, row_blocks
from planner.tables import OptimizerKind, Workload
from planner.topology import Topology


@pytest.fixture
def problem(make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]) -> PlanningProblem:
    """Five tables on two nodes of two ranks."""
    return PlanningProblem(make_workload(*[(10, 16, 2.0)] * 5), make_topology(2, 2))


@pytest.fixture
def plan() -> ShardingPlan:
    """One table of each sharding type, all legal."""
    halves = (Shard(1, 0, 10, 0, 4), Shard(3, 0, 10, 4, 12))
    return ShardingPlan(
        4,
        (
            TablePlacement("table_0", ShardingType.TABLE_WISE, (Shard(2, 0, 10, 0, 16),)),
            TablePlacement("table_1", ShardingType.COLUMN_WISE, halves),
            TablePlacement("table_2", ShardingType.ROW_WISE, _rows((0, 1, 2, 3))),
            TablePlacement("table_3", ShardingType.TABLE_ROW_WISE, _rows((2, 3))),
            TablePlacement(
                "table_4", ShardingType.DATA_PARALLEL, tuple(Shard(rank, 0, 10, 0, 16) for rank in range(4))
            ),
        ),
    )


def _rows(ranks: tuple[int, ...]) -> tuple[Shard, ...]:
    counts, start, shards = row_blocks(10, len(ranks)).tolist(), 0, []
    for rank, count in zip(ranks, counts, strict=True):
        shards.append(Shard(rank, start, count, 0, 16))
        start += count
    return tuple(shards)


def _with(plan: ShardingPlan, name: str, **changes: object) -> ShardingPlan:
    tables = tuple(replace(table, **changes) if table.name == name else table for table in plan.tables)
    return replace(plan, tables=tables)


def test_every_sharding_type_passes(plan: ShardingPlan, problem: PlanningProblem) -> None:
    check(plan, problem)


def test_json_round_trip(plan: ShardingPlan) -> None:
    assert ShardingPlan.from_dict(plan.to_dict()) == plan
    with pytest.raises(PlanningError, match="shards"):
        ShardingPlan.from_dict({"world_size": 1, "tables": [{"name": "a", "sharding_type": "table_wise"}]})
    with pytest.raises(PlanningError, match="diagonal"):
        ShardingPlan.from_dict({"world_size": 1, "tables": [{"name": "a", "sharding_type": "diagonal", "shards": []}]})


@pytest.mark.parametrize(
    ("name", "shards", "message"),
    [
        ("table_0", (Shard(4, 0, 10, 0, 16),), "expected 0 to 3"),
        ("table_0", (Shard(0, 0, 9, 0, 16),), "expected the whole 10 x 16"),
        ("table_1", (Shard(0, 0, 10, 0, 8), Shard(1, 0, 10, 4, 12)), "gap or overlap"),
        ("table_1", (Shard(0, 0, 10, 0, 6), Shard(1, 0, 10, 6, 10)), "multiple of 4"),
        ("table_2", _rows((1, 0, 2, 3)), "expected all ranks, ascending"),
        (
            "table_2",
            tuple(replace(shard, row_offset=0) for shard in _rows((0, 1, 2, 3))),
            "expected rows 3 + 3",
        ),
        ("table_3", _rows((1, 2)), "the ranks of one node"),
        ("table_4", tuple(Shard(rank, 0, 10, 0, 16) for rank in range(3)), "each of 4 once"),
    ],
)
def test_illegal_shards_are_refused(
    plan: ShardingPlan, problem: PlanningProblem, name: str, shards: tuple[Shard, ...], message: str
) -> None:
    with pytest.raises(PlanningError, match="not valid") as error:
        check(_with(plan, name, shards=shards), problem)
    assert message in str(error.value)
    assert name in str(error.value)
    assert error.value.reason == "plan"


def test_table_row_wise_on_nodes_of_unequal_size_is_refused(
    problem: PlanningProblem, make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    plan = ShardingPlan(3, (TablePlacement("table_0", ShardingType.TABLE_ROW_WISE, _rows((0, 1))),))
    unequal = PlanningProblem(make_workload((10, 16, 2.0)), make_topology(2, 2, num_ranks=3))
    with pytest.raises(
        PlanningError, match=r"table_row_wise.*ranks on every node; found nodes of \[1, 2\] ranks"
    ) as error:
        check(plan, unequal)
    assert error.value.reason == "plan"
    check(replace(plan, world_size=4), replace(unequal, topology=problem.topology))


def test_every_violation_is_listed(plan: ShardingPlan, problem: PlanningProblem) -> None:
    constraints = (
        TableConstraint(("table_0",), ranks=(0,)),
        TableConstraint(("table_1",), sharding_types=(ShardingType.TABLE_WISE,)),
        TableConstraint(("table_0", "table_3"), together=True),
    )
    adam = replace(problem.workload, optimizer=OptimizerKind.ADAM)
    strict = PlanningProblem(adam, problem.topology, constraints)
    lacking = replace(plan, tables=tuple(table for table in plan.tables if table.name != "table_2"))
    with pytest.raises(PlanningError) as error:
        check(lacking, strict)
    for part in (
        "'table_2' is missing",
        "'table_0' uses ranks [2], its constraint allows [0]",
        "'table_1' is column_wise, its constraint allows table_wise",
        "data_parallel with adam",
        "'table_0' and 'table_3' are to be kept together",
    ):
        assert part in str(error.value)


def test_memory_is_the_reason_when_only_memory_is_wrong(plan: ShardingPlan, problem: PlanningProblem) -> None:
    used = rank_bytes(problem, plan)
    devices = tuple(replace(device, hbm_bytes=max(used) - 1) for device in problem.topology.devices)
    tight = replace(problem, topology=replace(problem.topology, devices=devices))
    with pytest.raises(PlanningError, match="1 bytes too much") as error:
        check(plan, tight)
    assert error.value.reason == "memory"
    roomy = tuple(replace(device, hbm_bytes=max(used)) for device in problem.topology.devices)
    check(plan, replace(problem, topology=replace(problem.topology, devices=roomy)))


def test_diff_counts_only_bytes_a_rank_lacks(plan: ShardingPlan, problem: PlanningProblem) -> None:
    assert diff(plan, plan, problem.workload) == ()
    moved = _with(plan, "table_0", shards=(Shard(0, 0, 10, 0, 16),))
    (move,) = diff(plan, moved, problem.workload)
    assert (move.from_ranks, move.to_ranks, move.moved_bytes) == ((2,), (0,), 10 * 16 * 4 + 10 * 4)
    split = _with(plan, "table_0", sharding_type=ShardingType.TABLE_ROW_WISE, shards=_rows((2, 3)))
    (move,) = diff(plan, split, problem.workload)
    assert move.moved_bytes == 5 * 16 * 4 + 5 * 4
    assert move.to_type is ShardingType.TABLE_ROW_WISE
    text = render_diff(diff(plan, split, problem.workload))
    assert "table_0" in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_a_made_plan_is_what_json_says(problem: PlanningProblem) -> None:
    result = make_plan(problem, "size_greedy")
    data = result.to_dict()
    assert set(data) == {
        "strategy", "winner", "estimated_step_ms", "max_rank_ms", "mean_rank_ms", "imbalance", "lower_bound_ms", "gap",
        "plan_seconds", "ranks", "tables",
    }  # fmt: skip
    assert set(data["ranks"][0]) == {
        "rank",
        "node",
        "hbm_bytes",
        "lookup_ms",
        "lookup_forward_ms",
        "comms_ms",
        "total_ms",
        "num_shards",
    }
    assert ShardingPlan.from_dict({"world_size": 4, "tables": data["tables"]}) == result.plan
    assert [rank["hbm_bytes"] for rank in data["ranks"]] == rank_bytes(problem, result.plan)
