"""What an infeasible problem is told: figures, and changes that really help."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from planner import remedies
from planner.errors import InfeasibleError
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem, TableConstraint
from planner.remedies import explain, with_nodes
from planner.search.registry import STRATEGIES, SearchSettings, build_strategy, find_plan, make_plan
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


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "random"])
def test_the_message_names_remedies_that_work(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology], name: str
) -> None:
    workload = make_workload(*[(40_000, 64, 1.0)] * 6, optimizer=OptimizerKind.ADAM, batch_size=16)
    problem = PlanningProblem(workload, make_topology(1, 2, hbm_bytes=64 * MIB))
    with pytest.raises(InfeasibleError) as error:
        make_plan(problem, name)
    said = " ".join(str(error.value).split())
    assert all(f"- {remedy}" in said for remedy in error.value.remedies)
    (memory,) = re.findall(r"- devices of [^(]*\(([\d,]+) bytes\) each", said)
    roomy = make_topology(1, 2, hbm_bytes=int(memory.replace(",", "")))
    make_plan(replace(problem, topology=roomy), name)
    with pytest.raises(InfeasibleError):
        find_plan(problem, name)


class _Recorder:
    """A strategy that remembers how many ranks each problem had."""

    def __init__(self) -> None:
        self.world_sizes: list[int] = []
        self._strategy = build_strategy("longest_processing_time", SearchSettings())

    def plan(self, problem: PlanningProblem) -> ShardingPlan:
        self.world_sizes.append(problem.topology.world_size)
        return self._strategy.plan(problem)

    def explain(self, problem: PlanningProblem) -> InfeasibleError:
        with pytest.raises(InfeasibleError) as error:
            self.plan(problem)
        return explain(problem, self.plan, error.value)


def test_no_nodes_are_tried_for_a_pin_that_they_cannot_help(
    mlperf: Workload, make_topology: Callable[..., Topology]
) -> None:
    pinned = (TableConstraint(("*",), ranks=(0,)),)
    recorder = _Recorder()
    error = recorder.explain(PlanningProblem(mlperf, make_topology(16, 8, hbm_bytes=40 << 30), pinned))
    assert "drop the pin of * to ranks 0" in error.remedies
    assert any(remedy.startswith("devices of ") for remedy in error.remedies)
    assert set(recorder.world_sizes) == {128}


def test_nodes_are_not_added_beyond_ample_memory(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    whole = (TableConstraint(("*",), sharding_types=(ShardingType.TABLE_WISE,)),)
    workload = make_workload((100_000, 64, 1.0), (1000, 64, 1.0), batch_size=16)
    recorder = _Recorder()
    error = recorder.explain(PlanningProblem(workload, make_topology(1, 2, hbm_bytes=20 * MIB), whole))
    assert "allow row_wise for *" in error.remedies
    assert not any("nodes with" in remedy for remedy in error.remedies)
    assert set(recorder.world_sizes) == {2, 4}


def test_nodes_are_not_added_beyond_the_largest_world(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remedies, "MAX_WORLD_SIZE", 3)
    workload = make_workload(*[(40_000, 64, 1.0)] * 6, batch_size=16)
    problem = PlanningProblem(workload, make_topology(1, 2, hbm_bytes=20 * MIB))
    assert "2 nodes with 4 devices instead of 1 with 2" not in _Recorder().explain(problem).remedies
    monkeypatch.setattr(remedies, "MAX_WORLD_SIZE", 4)
    assert "2 nodes with 4 devices instead of 1 with 2" in _Recorder().explain(problem).remedies


def test_a_spent_budget_ends_the_search_and_is_told(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remedies, "BUDGET_S", 0.0)
    problem = PlanningProblem(make_workload((100_000, 64, 1.0)), make_topology(1, 1, hbm_bytes=16 * MIB))
    recorder = _Recorder()
    error = recorder.explain(problem)
    assert error.remedies == ()
    assert "The search for changes ended after 0 s" in str(error)
    assert "No single change helps" not in str(error)
    assert len(recorder.world_sizes) == 1


def test_an_attempt_without_explanation_tries_nothing(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    problem = PlanningProblem(make_workload((100_000, 64, 1.0)), make_topology(1, 1, hbm_bytes=16 * MIB))
    with pytest.raises(InfeasibleError) as error:
        find_plan(problem, "size_greedy")
    assert error.value.remedies == ()
    assert "makes it fit" not in str(error.value)
