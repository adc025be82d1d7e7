"""Bytes and milliseconds of small plans, counted by hand, and what must hold for all plans."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.check import check
from planner.cost.analytic import AnalyticEstimator
from planner.errors import PlanningError
from planner.memory import may_fit, rank_bytes, replicated_bytes, whole_table_bytes
from planner.plan import ShardingPlan, TablePlacement
from planner.problem import PlanningProblem
from planner.search.registry import make_plan
from planner.sharding import ShardingType, enumerate_options
from planner.tables import MemoryCount, OptimizerKind, Workload
from planner.topology import Topology

ROWS, COLS, POOLING, BATCH = 1000, 16, 3.0, 8


def _plan(problem: PlanningProblem, sharding_type: ShardingType) -> ShardingPlan:
    """Every table under one type, on the first ranks the option allows."""
    placements = []
    for table in problem.workload.tables:
        options = enumerate_options(table, problem.topology, OptimizerKind.SGD, sharding_types=(sharding_type,))
        option = options[0]
        placements.append(TablePlacement(table.name, sharding_type, option.shards(option.ranks[: option.num_shards])))
    return ShardingPlan(problem.topology.world_size, tuple(placements))


@pytest.mark.parametrize(
    ("optimizer", "state_bytes"),
    [
        (OptimizerKind.SGD, 0),
        (OptimizerKind.ROWWISE_ADAGRAD, 4 * ROWS),
        (OptimizerKind.ADAM, 8 * ROWS * COLS),
    ],
)
def test_bytes_of_a_whole_table(
    make_workload: Callable[..., Workload],
    make_topology: Callable[..., Topology],
    optimizer: OptimizerKind,
    state_bytes: int,
) -> None:
    workload = make_workload((ROWS, COLS, POOLING), optimizer=optimizer, batch_size=BATCH)
    problem = PlanningProblem(replace(workload, batches_in_flight=2), make_topology(1, 2))
    samples = 2 * BATCH
    inputs = 2 * (samples * 3 * 8 + samples * 4)
    outputs = 2 * samples * COLS * 4
    first, second = rank_bytes(problem, _plan(problem, ShardingType.TABLE_WISE))
    assert first - second == ROWS * COLS * 4 + state_bytes + inputs + outputs
    assert second == replicated_bytes(problem) == inputs // 2 + outputs // 2


@pytest.mark.parametrize("sharding_type", ShardingType)
def test_weights_alone_are_counted_on_demand(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology], sharding_type: ShardingType
) -> None:
    """Two devices that just hold the weights pass the check, one byte less does not; counting all never passes."""
    workload = make_workload((ROWS, 32, POOLING), optimizer=OptimizerKind.SGD, batch_size=BATCH, dense_parameters=1000)
    num_copies = 2 if sharding_type is ShardingType.DATA_PARALLEL else 1
    is_whole = sharding_type in (ShardingType.DATA_PARALLEL, ShardingType.TABLE_WISE)
    most = ROWS * 32 * 4 // (1 if is_whole else 2)
    problem = PlanningProblem(replace(workload, memory=MemoryCount.WEIGHTS), make_topology(1, 2, hbm_bytes=most))
    plan = _plan(problem, sharding_type)
    check(plan, problem)
    assert sum(rank_bytes(problem, plan)) == num_copies * ROWS * 32 * 4
    assert whole_table_bytes(problem).tolist() == [ROWS * 32 * 4]
    for tighter in (
        replace(problem, topology=make_topology(1, 2, hbm_bytes=most - 1)),
        replace(problem, workload=workload),
    ):
        with pytest.raises(PlanningError) as error:
            check(plan, tighter)
        assert error.value.reason == "memory"
    assert may_fit(problem) and not may_fit(replace(problem, topology=make_topology(1, 2, hbm_bytes=ROWS * 64 - 1)))


def test_replicated_table_holds_a_dense_gradient_and_own_batch(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    workload = make_workload((ROWS, COLS, POOLING), optimizer=OptimizerKind.SGD, batch_size=BATCH)
    problem = PlanningProblem(workload, make_topology(1, 2))
    used = rank_bytes(problem, _plan(problem, ShardingType.DATA_PARALLEL))
    own = BATCH * 3 * 8 + BATCH * 4 + 2 * BATCH * COLS * 4
    assert [each - replicated_bytes(problem) for each in used] == [2 * ROWS * COLS * 4 + own] * 2


def test_table_wise_phases_by_hand(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    problem = PlanningProblem(make_workload((ROWS, COLS, POOLING), batch_size=BATCH), make_topology(1, 2))
    cost = AnalyticEstimator().estimate(problem, _plan(problem, ShardingType.TABLE_WISE))
    ids = 2 * BATCH * 3
    forward_bytes = ids * (COLS * 4 + 8) + 2 * BATCH * COLS * 4
    assert cost.phase("lookup_forward") == pytest.approx([1e3 * (forward_bytes / 1e12 + 1e-5), 0.0])
    sent = BATCH * (3 * 8 + 4)
    assert cost.phase("input_dist") == pytest.approx([1e3 * (sent / 3e11 + 1e-5)] * 2)
    pooled = BATCH * COLS * 4
    assert cost.phase("output_dist_forward") == pytest.approx([1e3 * (pooled / 3e11 + 1e-5)] * 2)
    assert cost.phase("all_reduce").sum() == 0.0
    touched = ROWS * (1 - (1 - 1 / ROWS) ** ids)
    backward_bytes = ids * (COLS * 4 + 16) + touched * 2 * (COLS * 4 + 4)
    assert cost.phase("lookup_backward")[0] == pytest.approx(1e3 * (backward_bytes / 1e12 + 1e-5))


def test_replication_trades_exchange_for_all_reduce(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    problem = PlanningProblem(make_workload((ROWS, COLS, POOLING)), make_topology(2, 2))
    cost = AnalyticEstimator().estimate(problem, _plan(problem, ShardingType.DATA_PARALLEL))
    assert cost.phase("input_dist").sum() == cost.phase("output_dist_forward").sum() == 0.0
    ring_s = 2 * 3 * (ROWS * COLS * 4 / 4 / 5e10 + 2e-5)
    assert cost.phase("all_reduce") == pytest.approx([1e3 * ring_s] * 4)


def test_table_row_wise_crosses_nodes_less_than_row_wise(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    problem = PlanningProblem(make_workload((10_000, 64, 20.0), batch_size=4096), make_topology(2, 4))
    estimator = AnalyticEstimator()
    within = estimator.estimate(problem, _plan(problem, ShardingType.TABLE_ROW_WISE))
    across = estimator.estimate(problem, _plan(problem, ShardingType.ROW_WISE))
    assert within.phase("output_dist_forward").max() < across.phase("output_dist_forward").max() / 2
    assert within.phase("lookup_forward").max() > across.phase("lookup_forward").max()


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 5000), st.sampled_from([4, 16, 64]), st.floats(0.0, 50.0)),
        min_size=1,
        max_size=12,
    ),
    optimizer=st.sampled_from(list(OptimizerKind)),
    seed=st.sampled_from(["random", "longest_processing_time", "dim_greedy"]),
)
def test_costs_of_any_plan_are_sound(
    make_workload: Callable[..., Workload],
    make_topology: Callable[..., Topology],
    shapes: list[tuple[int, int, float]],
    optimizer: OptimizerKind,
    seed: str,
) -> None:
    problem = PlanningProblem(make_workload(*shapes, optimizer=optimizer), make_topology(2, 2))
    result = make_plan(problem, seed)
    cost = result.cost
    assert np.isfinite(cost.phases_ms).all() and (cost.phases_ms >= 0).all()
    assert cost.imbalance >= 1.0
    assert cost.step_ms >= cost.max_rank_ms * (1 - 1e-9)
    assert cost.step_ms >= result.lower_bound_ms * (1 - 1e-9)
    assert cost.total_ms == pytest.approx(cost.lookup_ms + cost.comms_ms)
