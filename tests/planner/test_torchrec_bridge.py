"""Our plans as TorchRec reads them, back again, and TorchRec's planner as a strategy."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchrec.distributed.planner.enumerators import calculate_shard_sizes_and_offsets

from planner.errors import InfeasibleError, PlanningError
from planner.memory import rank_bytes
from planner.plan import ShardingPlan, TablePlacement
from planner.problem import PlanningProblem, TableConstraint
from planner.search.registry import make_plan
from planner.sharding import ShardingType, enumerate_options, row_blocks
from planner.tables import MemoryCount, OptimizerKind, TableSpec, Workload
from planner.topology import Topology, load_topology
from planner.torchrec_bridge import from_torchrec, module_name, table_name, to_torchrec


def _mixed_plan(workload: Workload, topology: Topology) -> ShardingPlan:
    """Table i under sharding type i."""
    placements = []
    for table, sharding_type in zip(workload.tables, ShardingType, strict=True):
        option = enumerate_options(table, topology, OptimizerKind.SGD, sharding_types=(sharding_type,))[-1]
        placements.append(TablePlacement(table.name, sharding_type, option.shards(option.ranks[: option.num_shards])))
    return ShardingPlan(topology.world_size, tuple(placements))


def test_round_trip_of_every_type(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    workload, topology = make_workload(*[(101, 64, 1.0)] * 5), make_topology(2, 2)
    plan = _mixed_plan(workload, topology)
    module_plan = to_torchrec(plan, topology)
    assert from_torchrec(module_plan, 4, workload.tables) == plan
    kernels = {module_plan[module_name(table.name)].compute_kernel for table in plan.tables[1:]}
    assert (module_plan["t_table_0"].compute_kernel, kernels) == ("dense", {"fused"})
    assert module_plan["t_table_0"].sharding_spec is None


def test_placements_use_the_one_gpu_that_a_worker_sees_and_cpu_for_processors(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology], repository: Path
) -> None:
    workload = make_workload(*[(101, 64, 1.0)] * 5)
    gpus, cpus = make_topology(2, 2), load_topology(repository / "configs" / "hardware" / "cpu_x2.yaml")
    on_gpus = to_torchrec(_mixed_plan(workload, gpus), gpus)["t_table_3"].sharding_spec.shards
    assert [str(shard.placement) for shard in on_gpus] == [f"rank:{rank}/cuda:0" for rank in range(4)]
    on_cpus = to_torchrec(_mixed_plan(workload, cpus), cpus)["t_table_3"].sharding_spec.shards
    assert [str(shard.placement) for shard in on_cpus] == ["rank:0/cpu", "rank:1/cpu"]


@pytest.mark.parametrize("num_rows", [1, 3, 5, 8, 1001])
def test_row_blocks_are_torchrecs(num_rows: int) -> None:
    sizes, _ = calculate_shard_sizes_and_offsets(
        torch.empty(num_rows, 8, device="meta"), world_size=4, local_world_size=4, sharding_type="row_wise"
    )
    assert row_blocks(num_rows, 4).tolist() == [rows for rows, _ in sizes]


def test_wrong_world_and_missing_table_are_told(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    workload, topology = make_workload(*[(101, 64, 1.0)] * 5), make_topology(2, 2)
    plan = _mixed_plan(workload, topology)
    with pytest.raises(PlanningError, match="plan is for 4 ranks"):
        to_torchrec(plan, make_topology(1, 2))
    other = (*workload.tables, TableSpec("absent", 10, 8, ("a",)))
    with pytest.raises(PlanningError, match="lacks the tables absent"):
        from_torchrec(to_torchrec(plan, topology), 4, other)


@pytest.mark.parametrize("preset", ["cpu_x2", "h100_80gb_x8", "h100_80gb_2x8"])
def test_torchrec_plans_on_any_device(make_workload: Callable[..., Workload], repository: Path, preset: str) -> None:
    topology = load_topology(repository / "configs" / "hardware" / f"{preset}.yaml")
    workload = make_workload(*[(5000 * (index + 1), 32, 4.0) for index in range(12)], optimizer=OptimizerKind.ADAM)
    result = make_plan(PlanningProblem(workload, topology), "torchrec")
    assert len(result.plan.tables) == 12
    assert all(table.sharding_type is not ShardingType.DATA_PARALLEL for table in result.plan.tables)


def test_torchrec_is_offered_row_wise_on_cpu(make_workload: Callable[..., Workload], repository: Path) -> None:
    topology = load_topology(repository / "configs" / "hardware" / "cpu_x2.yaml")
    by_rows = TableConstraint(("*",), sharding_types=(ShardingType.ROW_WISE,))
    result = make_plan(PlanningProblem(make_workload(*[(5000, 32, 4.0)] * 3), topology, (by_rows,)), "torchrec")
    assert {table.sharding_type for table in result.plan.tables} == {ShardingType.ROW_WISE}


def test_torchrec_sees_true_pooling_factors(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    whole = (TableConstraint(("*",), sharding_types=(ShardingType.TABLE_WISE,)),)
    workload = make_workload((5000, 32, 300.0), *[(5000, 32, 10.0)] * 4, batch_size=4096)
    plan = make_plan(PlanningProblem(workload, make_topology(1, 2), whole), "torchrec").plan
    heavy, *light = [table.ranks[0] for table in plan.tables]
    assert set(light) == {1 - heavy}


def test_what_torchrec_cannot_express_is_refused(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    problem = PlanningProblem(
        make_workload(*[(100, 16, 1.0)] * 3),
        make_topology(1, 2),
        (TableConstraint(("table_0",), ranks=(1,)), TableConstraint(("table_1", "table_2"), together=True)),
    )
    with pytest.raises(PlanningError, match=r"pinned to ranks.*kept together") as error:
        make_plan(problem, "torchrec")
    assert error.value.reason == "torchrec"


def test_torchrec_without_room_is_infeasible(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    problem = PlanningProblem(make_workload((100_000, 64, 1.0)), make_topology(1, 2, hbm_bytes=1 << 20))
    with pytest.raises(InfeasibleError):
        make_plan(problem, "torchrec")
    make_plan(replace(problem, topology=make_topology(1, 2, hbm_bytes=1 << 30)), "torchrec")


@pytest.mark.parametrize("memory", MemoryCount)
def test_torchrec_counts_memory_as_the_check_does(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology], memory: MemoryCount
) -> None:
    """Four tables on four devices that hold one each, to the byte."""
    whole = (TableConstraint(("*",), sharding_types=(ShardingType.TABLE_WISE,)),)
    workload = replace(make_workload(*[(50_000, 16, 40.0)] * 4, batch_size=512), memory=memory)
    roomy = PlanningProblem(workload, make_topology(1, 4), whole)
    spread = make_plan(roomy, "longest_processing_time").plan
    hbm_bytes = max(rank_bytes(roomy, spread))
    found = make_plan(replace(roomy, topology=make_topology(1, 4, hbm_bytes=hbm_bytes)), "torchrec").plan
    assert sorted(rank for table in found.tables for rank in table.ranks) == [0, 1, 2, 3]
    with pytest.raises(InfeasibleError):
        make_plan(replace(roomy, topology=make_topology(1, 4, hbm_bytes=hbm_bytes - 1)), "torchrec")


def test_names_that_modules_forbid_come_back_whole() -> None:
    for name in ("type", "user.id", "a%2Eb", "50%.x"):
        assert "." not in module_name(name) and table_name(module_name(name)) == name


def test_torchrec_leaves_no_rank_without_a_row(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    problem = PlanningProblem(make_workload((1, 64, 1.0), (5, 64, 1.0)), make_topology(1, 4))
    for table in make_plan(problem, "torchrec").plan.tables:
        assert all(shard.num_rows for shard in table.shards)
    forced = PlanningProblem(
        problem.workload, problem.topology, (TableConstraint(("table_0",), sharding_types=(ShardingType.ROW_WISE,)),)
    )
    with pytest.raises(InfeasibleError, match="table_0"):
        make_plan(forced, "torchrec")
