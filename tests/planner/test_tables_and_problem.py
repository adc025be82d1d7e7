"""Tables, workloads and constraints that cannot be, and how constraints combine."""

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest

from planner.errors import PlanningError
from planner.problem import PlanningProblem, TableConstraint
from planner.sharding import ShardingType
from planner.tables import OptimizerKind, TableSpec, Workload
from planner.topology import Topology


def test_a_wrong_table_lists_all_its_faults() -> None:
    with pytest.raises(PlanningError, match=r"num_embeddings is 0.*embedding_dim is 6.*no feature") as error:
        TableSpec("bad", 0, 6, ())
    assert error.value.reason == "workload"


def test_table_names_are_unique() -> None:
    table = TableSpec("same", 10, 8, ("a",))
    with pytest.raises(PlanningError, match="'same' is used 2 times"):
        Workload((table, table), 1, OptimizerKind.SGD)


@pytest.fixture
def problem_with(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> Callable[..., PlanningProblem]:
    """Builds a problem of four tables on four ranks with constraints."""
    workload, topology = make_workload(*[(100, 16, 1.0)] * 4), make_topology(2, 2)
    return lambda *constraints: PlanningProblem(workload, topology, constraints)


def test_unknown_table_and_rank_are_both_told(problem_with: Callable[..., PlanningProblem]) -> None:
    with pytest.raises(PlanningError) as error:
        problem_with(TableConstraint(("tabel_1",), ranks=(7,)))
    assert error.value.reason == "constraint"
    assert "did you mean 'table_1'" in str(error.value)
    assert "rank 7 is not there, expected 0 to 3" in str(error.value)


def test_constraints_intersect(problem_with: Callable[..., PlanningProblem]) -> None:
    problem = problem_with(TableConstraint(("table_*",), ranks=(0, 1, 2)), TableConstraint(("table_1",), ranks=(2, 3)))
    assert problem.rules["table_1"].ranks == (2,)
    assert problem.rules["table_0"].ranks == (0, 1, 2)
    with pytest.raises(PlanningError, match="no rank in common"):
        problem_with(TableConstraint(("table_1",), ranks=(0,)), TableConstraint(("table_1",), ranks=(1,)))


def test_overlapping_groups_merge(problem_with: Callable[..., PlanningProblem]) -> None:
    problem = problem_with(
        TableConstraint(("table_0", "table_3"), together=True),
        TableConstraint(("table_3", "table_1"), together=True),
    )
    assert problem.groups == (("table_0", "table_1", "table_3"), ("table_2",))


def test_options_follow_optimizer_and_constraints(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    def types(optimizer: OptimizerKind, *constraints: TableConstraint) -> list[tuple[ShardingType, int]]:
        problem = PlanningProblem(make_workload((100, 64, 1.0), optimizer=optimizer), make_topology(2, 2), constraints)
        return [(option.sharding_type, option.num_shards) for option in problem.options("table_0")]

    table_wise, columns = (
        (ShardingType.TABLE_WISE, 1),
        [(ShardingType.COLUMN_WISE, 2), (ShardingType.COLUMN_WISE, 4)],
    )
    rows = [(ShardingType.TABLE_ROW_WISE, 2), (ShardingType.TABLE_ROW_WISE, 2), (ShardingType.ROW_WISE, 4)]
    assert types(OptimizerKind.ADAM) == [table_wise, *columns, *rows]
    assert types(OptimizerKind.SGD) == [table_wise, *columns, *rows, (ShardingType.DATA_PARALLEL, 4)]
    pinned = TableConstraint(("table_0",), ranks=(2, 3))
    assert types(OptimizerKind.SGD, pinned) == [table_wise, columns[0], rows[0]]
    by_rows = TableConstraint(("table_0",), sharding_types=(ShardingType.ROW_WISE,))
    assert types(OptimizerKind.SGD, by_rows) == [rows[2]]


def test_table_row_wise_is_offered_only_on_nodes_of_equal_size(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    def types(num_ranks: int) -> set[ShardingType]:
        problem = PlanningProblem(make_workload((100, 64, 1.0)), make_topology(2, 2, num_ranks=num_ranks))
        return {option.sharding_type for option in problem.options("table_0")}

    assert types(3) == types(4) - {ShardingType.TABLE_ROW_WISE}
    assert ShardingType.TABLE_ROW_WISE in types(4)


def test_local_world_size_is_known_only_for_equal_nodes_of_consecutive_ranks(
    make_topology: Callable[..., Topology],
) -> None:
    even = make_topology(2, 2)
    assert even.local_world_size == 2
    assert make_topology(2, 2, num_ranks=3).local_world_size is None
    nodes = ("node-0", "node-1", "node-0", "node-1")
    devices = tuple(replace(device, node=node) for device, node in zip(even.devices, nodes, strict=True))
    assert replace(even, devices=devices).local_world_size is None


def test_device_arrays_grow_with_the_ranks_alone(mlperf: Workload, make_topology: Callable[..., Topology]) -> None:
    devices = PlanningProblem(mlperf, make_topology(512, 1)).devices
    assert sum(getattr(devices, field.name).nbytes for field in fields(devices)) < 512 * 100


def test_node_sums_follow_the_nodes_in_any_rank_order(mlperf: Workload, make_topology: Callable[..., Topology]) -> None:
    topology = make_topology(1, 5)
    nodes = ("b", "a", "b", "c", "a")
    devices = tuple(replace(device, node=node) for device, node in zip(topology.devices, nodes, strict=True))
    arrays = PlanningProblem(mlperf, replace(topology, devices=devices)).devices
    values = np.array([[1.0, 10.0, 100.0, 1000.0, 10000.0], [2.0, 0.0, 0.0, 5.0, 1.0]])
    assert arrays.node_sums(values).tolist() == [[101.0, 10010.0, 101.0, 1000.0, 10010.0], [2.0, 1.0, 2.0, 5.0, 1.0]]
