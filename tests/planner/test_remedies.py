"""What an infeasible problem is told: figures, and changes that really help."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from planner.errors import InfeasibleError
from planner.problem import PlanningProblem, TableConstraint
from planner.remedies import with_nodes
from planner.search.registry import make_plan
from planner.sharding import ShardingType
from planner.tables import OptimizerKind, Workload
from planner.topology import Topology

MIB = 1 << 20


def _infeasible(problem: PlanningProblem) -> InfeasibleError:
    with pytest.raises(InfeasibleError) as error:
        make_plan(problem, "size_greedy")
    assert all(len(line) <= 100 for line in str(error.value).splitlines())
    assert error.value.reason == "infeasible"
    return error.value


def test_constraint_that_is_too_tight(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    workload = make_workload((100_000, 64, 1.0), (10, 8, 1.0), batch_size=16)
    whole_here = TableConstraint(("table_0",), ranks=(0, 1), sharding_types=(ShardingType.TABLE_WISE,))
    problem = PlanningProblem(workload, make_topology(1, 2, hbm_bytes=20 * MIB), (whole_here,))
    error = _infeasible(problem)
    assert error.table == "table_0"
    assert f"({error.shortfall_bytes:,} bytes)" in str(error)
    assert "allow column_wise for table_0" in error.remedies
    assert "allow row_wise for table_0" in error.remedies
    assert not any("drop the pin" in remedy for remedy in error.remedies)
    helped = replace(whole_here, sharding_types=(ShardingType.TABLE_WISE, ShardingType.COLUMN_WISE))
    make_plan(replace(problem, constraints=(helped,)), "size_greedy")


def test_pin_that_is_too_tight(make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]) -> None:
    workload = make_workload((50_000, 64, 1.0), (50_000, 64, 1.0), batch_size=16)
    pin = TableConstraint(("*",), ranks=(0,))
    error = _infeasible(PlanningProblem(workload, make_topology(1, 2, hbm_bytes=20 * MIB), (pin,)))
    assert "drop the pin of * to ranks 0" in error.remedies


def test_optimizer_nodes_and_memory(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    workload = make_workload(*[(40_000, 64, 1.0)] * 6, optimizer=OptimizerKind.ADAM, batch_size=16)
    problem = PlanningProblem(workload, make_topology(1, 2, hbm_bytes=64 * MIB))
    error = _infeasible(problem)
    assert "train the tables with rowwise_adagrad instead of adam (another algorithm)" in error.remedies
    assert "2 nodes with 4 devices instead of 1 with 2" in error.remedies
    assert any(remedy.startswith("devices of ") for remedy in error.remedies)
    assert not any("a batch of" in remedy for remedy in error.remedies)
    make_plan(replace(problem, topology=with_nodes(problem.topology, 2)), "size_greedy")


def test_smaller_batch(make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]) -> None:
    workload = make_workload((100, 64, 1.0), batch_size=65_536)
    problem = PlanningProblem(workload, make_topology(1, 2, hbm_bytes=64 * MIB))
    (remedy,) = [remedy for remedy in _infeasible(problem).remedies if remedy.startswith("a batch of")]
    batch_size = int(remedy.split()[3].replace(",", ""))
    make_plan(replace(problem, workload=replace(workload, batch_size=batch_size)), "size_greedy")
    with pytest.raises(InfeasibleError):
        make_plan(replace(problem, workload=replace(workload, batch_size=2 * batch_size)), "size_greedy")


def test_added_nodes_are_copies_with_ranks_of_their_own(make_topology: Callable[..., Topology]) -> None:
    grown = with_nodes(make_topology(1, 2), 3)
    assert [device.rank for device in grown.devices] == list(range(6))
    assert [len(grown.ranks_of(node)) for node in grown.nodes] == [2, 2, 2]
