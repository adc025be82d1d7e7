"""The bound is held against brute force, also where loads are any function of a shard, and is no lower than need be."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from planner.check import check
from planner.cost.analytic import AnalyticEstimator
from planner.cost.estimator import AdditiveEstimator, LinearBound, PlanCost
from planner.errors import PlanningError
from planner.plan import ShardingPlan, TablePlacement
from planner.problem import PlanningProblem, TableConstraint
from planner.search import bound_prices
from planner.search.bound import lower_bound_ms
from planner.search.registry import make_plan
from planner.sharding import Shard, ShardingType, row_blocks
from planner.shards import ShardArrays, plan_shards, whole_tables
from planner.tables import OptimizerKind, TableSpec, Workload
from planner.topology import Topology

MIB = 1 << 20
Loads = Callable[[PlanningProblem, ShardArrays], NDArray[np.float64]]


@dataclass(frozen=True)
class _AnyLoads:
    """An additive estimator whose phases are the loads: as many milliseconds as a function of the shard says."""

    loads: Loads

    def estimate(self, problem: PlanningProblem, plan: ShardingPlan) -> PlanCost:
        shards = plan_shards(problem, plan)
        loads = self.shard_loads(problem, shards)
        sums = np.zeros((problem.topology.world_size, loads.shape[1]))
        np.add.at(sums, shards.rank, loads)
        return PlanCost(self.phases_ms(problem, sums))

    def shard_loads(self, problem: PlanningProblem, shards: ShardArrays) -> NDArray[np.float64]:
        return self.loads(problem, shards)

    def phases_ms(self, problem: PlanningProblem, loads: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.swapaxes(loads, -1, -2)

    def linear_bounds(self, problem: PlanningProblem) -> tuple[LinearBound, ...]:
        """For each phase one bound that knows nothing of the others."""
        num_phases = self.loads(problem, whole_tables(problem, ShardingType.TABLE_WISE)).shape[1]
        own = [np.diag(row) for row in np.eye(num_phases)]
        return tuple(LinearBound(each / problem.topology.world_size, each, np.zeros(num_phases)) for each in own)


@dataclass(frozen=True)
class _TogetherToo(_AnyLoads):
    """The same with one more bound, which knows all phases."""

    def linear_bounds(self, problem: PlanningProblem) -> tuple[LinearBound, ...]:
        found = super().linear_bounds(problem)
        each_phase = np.eye(len(found))
        return (*found, LinearBound(each_phase / problem.topology.world_size, each_phase, np.zeros(len(found))))


def _rough(seed: int, num_phases: int) -> Loads:
    """Loads [S, P] between 0 and 10 without any order: neighbours in size have nothing in common."""
    weights = np.random.default_rng(seed).uniform(1, 100, size=(6, num_phases))

    def loads(problem: PlanningProblem, shards: ShardArrays) -> NDArray[np.float64]:
        node_size = problem.devices.node_size[shards.rank]
        of_shard = (shards.table, shards.type_code, shards.num_rows, shards.num_cols, node_size)
        return 10 * (np.stack([*of_shard, np.ones(len(shards))], axis=1) @ weights % 1.0) ** 2

    return loads


def _by(figure: Callable[[PlanningProblem, ShardArrays], NDArray[np.float64]], ms: dict[float, float]) -> _AnyLoads:
    """One phase that takes as long as the figure of a shard says; a figure that is not in the list is an error."""
    return _AnyLoads(
        lambda problem, shards: np.array([[ms[float(value)]] for value in figure(problem, shards)]).reshape(-1, 1)
    )


def _by_width(ms: dict[float, float]) -> _AnyLoads:
    return _by(lambda _, shards: shards.num_cols, ms)


def _only(*types: ShardingType) -> tuple[TableConstraint, ...]:
    return (TableConstraint(("*",), sharding_types=types),)


def _all_placements(problem: PlanningProblem, table: TableSpec) -> Iterator[TablePlacement]:
    """Every placement of a table that could be legal, unequal column cuts and shared ranks included."""
    topology, rows, cols = problem.topology, table.num_embeddings, table.embedding_dim
    copies = tuple(Shard(rank, 0, rows, 0, cols) for rank in topology.ranks)
    yield TablePlacement(table.name, ShardingType.DATA_PARALLEL, copies)
    groups = [(ShardingType.TABLE_ROW_WISE, topology.ranks_of(node)) for node in topology.nodes]
    for sharding_type, group in (*groups, (ShardingType.ROW_WISE, topology.ranks)):
        counts = row_blocks(rows, len(group)).tolist()
        starts = itertools.accumulate(counts[:-1], initial=0)
        blocks = zip(group, starts, counts, strict=True)
        shards = tuple(Shard(rank, start, count, 0, cols) for rank, start, count in blocks)
        yield TablePlacement(table.name, sharding_type, shards)
    for num_cuts in range(cols // 4):
        for cuts in itertools.combinations(range(4, cols, 4), num_cuts):
            for chosen in itertools.product(topology.ranks, repeat=num_cuts + 1):
                pieces = zip(chosen, (0, *cuts), (*cuts, cols), strict=True)
                shards = tuple(Shard(rank, 0, rows, start, end - start) for rank, start, end in pieces)
                yield TablePlacement(table.name, ShardingType.COLUMN_WISE, shards)
                if not cuts:
                    yield TablePlacement(table.name, ShardingType.TABLE_WISE, shards)


def _brute_force_ms(problem: PlanningProblem, estimator: AdditiveEstimator) -> float:
    """Step of the best legal plan, by trying all."""
    best = np.inf
    choices = [list(_all_placements(problem, table)) for table in problem.workload.tables]
    for tables in itertools.product(*choices):
        plan = ShardingPlan(problem.topology.world_size, tables)
        try:
            check(plan, problem)
        except PlanningError:
            continue
        best = min(best, estimator.estimate(problem, plan).step_ms)
    return best


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.integers(8, 200_000), st.sampled_from([4, 8, 12]), st.floats(0.1, 80.0)),
        min_size=1,
        max_size=2,
    ),
    optimizer=st.sampled_from(list(OptimizerKind)),
    nodes=st.sampled_from([(1, 2), (2, 1)]),
    speeds=st.sampled_from([(), (1e12, 3e11)]),
    constraint=st.sampled_from(
        [
            (),
            (TableConstraint(("table_0",), ranks=(1,)),),
            _only(ShardingType.TABLE_WISE, ShardingType.COLUMN_WISE),
        ]
    ),
)
def test_bound_never_exceeds_the_best_plan_and_longest_processing_time_is_near_it(
    make_workload: Callable[..., Workload],
    make_topology: Callable[..., Topology],
    shapes: list[tuple[int, int, float]],
    optimizer: OptimizerKind,
    nodes: tuple[int, int],
    speeds: tuple[float, ...],
    constraint: tuple[TableConstraint, ...],
) -> None:
    topology = make_topology(*nodes, speeds=speeds)
    problem = PlanningProblem(make_workload(*shapes, optimizer=optimizer, batch_size=512), topology, constraint)
    best_ms = _brute_force_ms(problem, AnalyticEstimator())
    bound_ms = lower_bound_ms(problem, AnalyticEstimator())
    assert 0.0 < bound_ms <= best_ms * (1 + 1e-9)
    found_ms = make_plan(problem, "longest_processing_time").cost.step_ms
    assert best_ms * (1 - 1e-9) <= found_ms <= 2.0 * best_ms


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.one_of(
        st.tuples(st.tuples(st.integers(1, 9), st.sampled_from([12, 16]), st.just(1.0))),
        st.lists(st.tuples(st.integers(1, 9), st.sampled_from([4, 8]), st.just(1.0)), min_size=2, max_size=2),
    ),
    nodes=st.sampled_from([(1, 2, 2), (2, 1, 2), (2, 2, 3), (1, 3, 3)]),
    optimizer=st.sampled_from([OptimizerKind.SGD, OptimizerKind.ADAM]),
    seed=st.integers(0, 1000),
    num_phases=st.integers(1, 2),
)
def test_bound_never_exceeds_the_best_plan_whatever_shards_cost(
    make_workload: Callable[..., Workload],
    make_topology: Callable[..., Topology],
    shapes: list[tuple[int, int, float]],
    nodes: tuple[int, int, int],
    optimizer: OptimizerKind,
    seed: int,
    num_phases: int,
) -> None:
    num_nodes, per_node, num_ranks = nodes
    topology = make_topology(num_nodes, per_node, num_ranks=num_ranks)
    problem = PlanningProblem(make_workload(*shapes, optimizer=optimizer), topology)
    best_ms = _brute_force_ms(problem, _AnyLoads(_rough(seed, num_phases)))
    for estimator in (_AnyLoads(_rough(seed, num_phases)), _TogetherToo(_rough(seed, num_phases))):
        assert 0.0 <= lower_bound_ms(problem, estimator) <= best_ms * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 9), st.sampled_from([4, 8, 12, 16]), st.just(1.0)), min_size=1, max_size=2
    ),
    types=st.one_of(st.none(), st.sets(st.sampled_from(list(ShardingType)), min_size=1).map(tuple)),
    optimizer=st.sampled_from([OptimizerKind.SGD, OptimizerKind.ADAM]),
    seed=st.integers(0, 1000),
    num_phases=st.integers(1, 3),
)
def test_bound_is_the_best_plan_on_one_rank_whatever_shards_cost(
    make_workload: Callable[..., Workload],
    make_topology: Callable[..., Topology],
    shapes: list[tuple[int, int, float]],
    types: tuple[ShardingType, ...] | None,
    optimizer: OptimizerKind,
    seed: int,
    num_phases: int,
) -> None:
    constraints = () if types is None else _only(*types)
    problem = PlanningProblem(make_workload(*shapes, optimizer=optimizer), make_topology(1, 1), constraints)
    estimator = _TogetherToo(_rough(seed, num_phases))
    assert lower_bound_ms(problem, estimator) == pytest.approx(_brute_force_ms(problem, estimator), rel=1e-9)


def test_bound_is_reached_on_one_rank(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    workload = make_workload((1000, 16, 3.0), (5000, 8, 1.0), optimizer=OptimizerKind.ADAM)
    result = make_plan(PlanningProblem(workload, make_topology(1, 1)), "size_greedy")
    assert result.gap == pytest.approx(0.0, abs=1e-9)


def test_dearest_shard_is_one_of_a_cut_that_exists(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    types = _only(ShardingType.COLUMN_WISE)
    problem = PlanningProblem(make_workload((100, 12, 1.0)), make_topology(1, 4), types)
    assert lower_bound_ms(problem, _by_width({4: 5.0, 8: 1.0, 12: 9.0})) == pytest.approx(5.0)


def test_columns_are_cut_unequally_where_that_is_cheapest(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    types = _only(ShardingType.COLUMN_WISE)
    problem = PlanningProblem(make_workload((100, 20, 1.0)), make_topology(1, 1), types)
    ms = {4: 5.0, 8: 1.0, 12: 9.0, 16: 8.0, 20: 10.0}
    assert lower_bound_ms(problem, _by_width(ms)) == pytest.approx(1.0 + 1.0 + 5.0)


def test_rows_are_cut_into_the_blocks_that_ranks_get(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    def bound_ms(num_rows: int, *types: ShardingType, num_tables: int = 1) -> float:
        workload = make_workload(*[(num_rows, 4, 1.0)] * num_tables)
        problem = PlanningProblem(workload, make_topology(3, 1), _only(*types))
        by_rows = _by(lambda _, shards: shards.num_rows, {1: 6.0, 2: 9.0, 4: 70.0, 5: 80.0})
        return lower_bound_ms(problem, by_rows)

    assert bound_ms(5, ShardingType.ROW_WISE) == pytest.approx(9.0)
    assert bound_ms(5, ShardingType.ROW_WISE, num_tables=6) == pytest.approx(6 * (9.0 + 9.0 + 6.0) / 3)
    assert bound_ms(5, ShardingType.ROW_WISE, ShardingType.TABLE_WISE) == pytest.approx(9.0)
    assert bound_ms(5, ShardingType.DATA_PARALLEL) == pytest.approx(80.0)
    assert bound_ms(4, ShardingType.ROW_WISE, ShardingType.TABLE_WISE) == pytest.approx(70.0)
    assert bound_ms(4, ShardingType.ROW_WISE) == np.inf


def test_bound_counts_no_table_row_wise_on_nodes_of_unequal_size(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    def bound_ms(num_ranks: int, *types: ShardingType) -> float:
        topology = make_topology(2, 2, num_ranks=num_ranks)
        workload = make_workload((100_000, 64, 50.0), batch_size=4096)
        return lower_bound_ms(PlanningProblem(workload, topology, _only(*types)), AnalyticEstimator())

    both = (ShardingType.TABLE_WISE, ShardingType.TABLE_ROW_WISE)
    assert bound_ms(3, *both) == bound_ms(3, ShardingType.TABLE_WISE)
    assert bound_ms(4, *both) < bound_ms(4, ShardingType.TABLE_WISE)


def test_a_shard_counts_as_on_the_node_and_kind_where_it_is_cheapest(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    uneven, even = make_topology(2, 2, num_ranks=3), make_topology(1, 3)
    first, second, third = even.devices
    mixed = replace(even, devices=(first, replace(second, kind="quick"), third))
    workload, whole = make_workload((100, 8, 1.0)), _only(ShardingType.TABLE_WISE)
    by_node = _by(lambda problem, shards: problem.devices.node_size[shards.rank], {1: 2.0, 2: 7.0, 3: 7.0})
    by_kind = _by(
        lambda problem, shards: np.array([problem.topology.devices[rank].kind == "quick" for rank in shards.rank]),
        {0: 7.0, 1: 2.0},
    )
    for estimator, topology, expected_ms in (
        (by_node, uneven, 2.0),
        (by_node, even, 7.0),
        (by_kind, mixed, 2.0),
        (by_kind, even, 7.0),
    ):
        problem = PlanningProblem(workload, topology, whole)
        assert lower_bound_ms(problem, estimator) == pytest.approx(expected_ms)
        assert _brute_force_ms(problem, estimator) == pytest.approx(expected_ms)


def test_forms_that_fit_on_no_device_do_not_count(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    workload = make_workload((100_000, 12, 1.0), batch_size=16, optimizer=OptimizerKind.SGD)
    estimator = _by_width({4: 30.0, 8: 3.0, 12: 1.0})

    def bound_ms(num_columns: int) -> float:
        topology = make_topology(1, 4, hbm_bytes=100_000 * 4 * num_columns + MIB // 4)
        return lower_bound_ms(PlanningProblem(workload, topology, _only(ShardingType.COLUMN_WISE)), estimator)

    assert [bound_ms(12), bound_ms(8), bound_ms(4)] == pytest.approx([1.0, 30.0, 30.0])
    assert bound_ms(3) == np.inf


def test_each_phase_takes_the_bound_that_knows_it_best(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    problem = PlanningProblem(make_workload((100, 8, 1.0)), make_topology(1, 1), _only(ShardingType.TABLE_WISE))
    three_phases = _AnyLoads(lambda _, shards: np.outer(shards.num_cols, [1.0, 10.0, 100.0]))
    assert lower_bound_ms(problem, three_phases) == pytest.approx(888.0)


def test_a_negative_constant_does_not_count_against_other_phases(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    class _LatePlane(_AnyLoads):
        def linear_bounds(self, problem: PlanningProblem) -> tuple[LinearBound, ...]:
            return (LinearBound(np.eye(2), np.eye(2), np.array([-50.0, 0.0])),)

    problem = PlanningProblem(make_workload((100, 8, 1.0)), make_topology(1, 1), _only(ShardingType.TABLE_WISE))
    assert lower_bound_ms(problem, _LatePlane(lambda _, shards: np.full((len(shards), 2), 8.0))) == pytest.approx(8.0)


def test_chunks_do_not_change_the_bound(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = [(1 + index % 7, 4 * (1 + index % 5), 1.0) for index in range(40)]
    problem = PlanningProblem(make_workload(*shapes), make_topology(2, 2))
    estimator = _TogetherToo(_rough(seed=1, num_phases=2))
    at_once_ms = lower_bound_ms(problem, estimator)
    monkeypatch.setattr(bound_prices, "CHUNK_SHARDS", 7)
    assert lower_bound_ms(problem, estimator) == pytest.approx(at_once_ms, rel=1e-12)
