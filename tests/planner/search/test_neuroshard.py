"""NeuroShard's search: the same plans as the published loops, and its limits."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.check import check
from planner.cost.analytic import AnalyticEstimator
from planner.errors import InfeasibleError, PlanningError
from planner.memory import capacity_bytes
from planner.plan import ShardingPlan, TablePlacement
from planner.problem import PlanningProblem, TableConstraint
from planner.search.neuroshard import NeuroShardSearch
from planner.sharding import Shard, ShardingType
from planner.shards import TYPE_CODE, ShardArrays
from planner.tables import MemoryCount, Workload
from planner.topology import Topology

TABLE_WISE, COLUMN_WISE = ShardingType.TABLE_WISE, ShardingType.COLUMN_WISE


@dataclass
class Piece:
    """A part of a table, as the published code keeps them."""

    table: int
    dim: int


class Published:
    """The loops of `neurosharder.py`, one piece and device at a time, scored by the estimated step."""

    def __init__(self, problem: PlanningProblem) -> None:
        self.problem, self.estimator = problem, AnalyticEstimator()
        self.num_devices = problem.topology.world_size
        self.max_mem = int(capacity_bytes(problem).min())
        self.known_ms: dict[tuple[tuple[int, int], ...], float] = {}

    def search(self, n: int, max_length: int, k: int = 3) -> tuple[float, ShardingPlan | None]:
        whole = [Piece(index, table.embedding_dim) for index, table in enumerate(self.problem.workload.tables)]
        best = self.place(whole)
        beam = [(whole, best[0])]
        for _ in range(max_length):
            children = []
            for pieces, _ in beam:
                for index in self.candidates(pieces, n):
                    dim = pieces[index].dim // 2
                    if dim % 4 != 0:
                        continue
                    child = [replace(piece) for piece in pieces]
                    child[index].dim = dim
                    child.append(replace(child[index]))
                    cost, plan = self.place(child)
                    children.append((child, cost))
                    if cost < best[0]:
                        best = (cost, plan)
            if not children:
                break
            beam = sorted(children, key=lambda child: child[1])[:k]
        return best

    def candidates(self, pieces: list[Piece], n: int) -> list[int]:
        if n > len(pieces):
            return list(range(len(pieces)))
        by_size = sorted(range(len(pieces)), key=lambda index: self.size(pieces[index]))[-n:]
        by_cost = sorted(range(len(pieces)), key=lambda index: self.compute([pieces[index]]))[-n:]
        return sorted({*by_size, *by_cost})

    def place(self, pieces: list[Piece]) -> tuple[float, ShardingPlan | None]:
        best: tuple[float, ShardingPlan | None] = (math.inf, None)
        for step in range(11):
            devices = self.greedy(pieces, 1.0 + 0.05 * step)
            if devices is not None:
                plan = self.plan(devices)
                cost = self.estimator.estimate(self.problem, plan).step_ms
                if cost < best[0]:
                    best = (cost, plan)
        return best

    def greedy(self, pieces: list[Piece], scale: float) -> list[list[Piece]] | None:
        mean_dim = sum(piece.dim for piece in pieces) / self.num_devices
        devices: list[list[Piece]] = [[] for _ in range(self.num_devices)]
        costs, sizes, dims = ([0.0] * self.num_devices for _ in range(3))
        order = sorted(range(len(pieces)), key=lambda index: self.compute([pieces[index]]))
        while order:
            piece = pieces[order.pop()]
            chosen = -1
            for device in range(self.num_devices):
                fits = sizes[device] + self.size(piece) <= self.max_mem and dims[device] + piece.dim <= scale * mean_dim
                key = (costs[device], sizes[device])
                if fits and (chosen < 0 or key < (costs[chosen], sizes[chosen])):
                    chosen = device
            if chosen < 0:
                return None
            devices[chosen].append(piece)
            sizes[chosen] += self.size(piece)
            dims[chosen] += piece.dim
            costs[chosen] = self.compute(devices[chosen])
        return devices

    def size(self, piece: Piece) -> int:
        return self.problem.workload.tables[piece.table].num_embeddings * piece.dim * 4

    def compute(self, pieces: list[Piece]) -> float:
        key = tuple((piece.table, piece.dim) for piece in pieces)
        if key not in self.known_ms:
            loads = self.estimator.shard_loads(self.problem, self.arrays(pieces)).sum(axis=0)
            self.known_ms[key] = float(self.estimator.lookup_ms(self.problem, loads, np.array(0)).sum())
        return self.known_ms[key]

    def arrays(self, pieces: list[Piece]) -> ShardArrays:
        tables = [self.problem.workload.tables[piece.table] for piece in pieces]
        is_whole = [piece.dim == table.embedding_dim for piece, table in zip(pieces, tables, strict=True)]
        return ShardArrays(
            table=np.array([piece.table for piece in pieces]),
            rank=np.zeros(len(pieces), dtype=np.int64),
            type_code=np.array([TYPE_CODE[TABLE_WISE if whole else COLUMN_WISE] for whole in is_whole]),
            num_rows=np.array([float(table.num_embeddings) for table in tables]),
            num_cols=np.array([float(piece.dim) for piece in pieces]),
        )

    def plan(self, devices: list[list[Piece]]) -> ShardingPlan:
        placements = []
        for index, table in enumerate(self.problem.workload.tables):
            parts = [(p.dim, rank) for rank, pieces in enumerate(devices) for p in pieces if p.table == index]
            starts = np.cumsum([0, *(dim for dim, _ in parts)])
            shards = [
                Shard(rank, 0, table.num_embeddings, int(start), dim)
                for (dim, rank), start in zip(parts, starts, strict=False)
            ]
            kind = TABLE_WISE if len(parts) == 1 else COLUMN_WISE
            placements.append(TablePlacement(table.name, kind, tuple(shards)))
        return ShardingPlan(self.num_devices, tuple(placements))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(
        st.tuples(st.integers(100, 50_000), st.sampled_from([4, 8, 24, 64, 128]), st.floats(0.5, 60.0)),
        min_size=3,
        max_size=7,
    ),
    per_node=st.integers(2, 4),
    room=st.floats(1.02, 3.0),
)
def test_it_finds_what_the_published_loops_find(
    make_workload: Callable[..., Workload],
    make_topology: Callable[..., Topology],
    shapes: list[tuple[int, int, float]],
    per_node: int,
    room: float,
) -> None:
    workload = replace(make_workload(*shapes), memory=MemoryCount.WEIGHTS)
    hbm_bytes = int(room * sum(rows * cols * 4 for rows, cols, _ in shapes) / per_node)
    problem = PlanningProblem(workload, make_topology(1, per_node, hbm_bytes=hbm_bytes))
    cost_ms, _ = Published(problem).search(n=3, max_length=3)
    found_ms, plan = _shortened(problem)
    assert found_ms == pytest.approx(cost_ms)
    if plan is not None:
        check(plan, problem)
        assert AnalyticEstimator().estimate(problem, plan).step_ms == pytest.approx(cost_ms)


def _shortened(problem: PlanningProblem) -> tuple[float, ShardingPlan | None]:
    """The search with three candidates and three halvings, which the slow loops can follow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planner.search.neuroshard.NUM_CANDIDATES", 3)
        patch.setattr("planner.search.neuroshard.MAX_SPLITS", 3)
        try:
            plan = NeuroShardSearch(AnalyticEstimator()).plan(problem)
        except InfeasibleError:
            return math.inf, None
    return AnalyticEstimator().estimate(problem, plan).step_ms, plan


def test_a_table_that_outweighs_the_rest_is_halved(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    workload = make_workload((100_000, 128, 100.0), *[(1_000, 16, 1.0)] * 6, batch_size=16_384)
    problem = PlanningProblem(workload, make_topology(1, 2))
    plan = NeuroShardSearch(AnalyticEstimator()).plan(problem)
    check(plan, problem)
    heavy = plan.tables[0]
    assert heavy.sharding_type is COLUMN_WISE and set(heavy.ranks) == {0, 1}
    assert {table.sharding_type for table in plan.tables} <= {TABLE_WISE, COLUMN_WISE}


def test_few_wide_tables_under_the_cap_on_columns_have_no_plan(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    """Twelve columns cannot be halved, and whole they are above 1.5 times the mean of seven devices."""
    problem = PlanningProblem(make_workload(*[(1_000, 12, 1.0)] * 4), make_topology(1, 7))
    with pytest.raises(InfeasibleError, match="mean columns"):
        NeuroShardSearch(AnalyticEstimator()).plan(problem)


def test_more_tables_than_memory_tells_the_bytes_missing(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    workload = replace(make_workload(*[(1024, 64, 1.0)] * 3), memory=MemoryCount.WEIGHTS)
    with pytest.raises(InfeasibleError) as error:
        NeuroShardSearch(AnalyticEstimator()).plan(PlanningProblem(workload, make_topology(1, 2, hbm_bytes=1 << 18)))
    assert error.value.shortfall_bytes == 3 * 1024 * 64 * 4 - 2 * (1 << 18)


def test_constraints_on_ranks_and_types_are_kept(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    constraints = (
        TableConstraint(("table_0",), ranks=(2,)),
        TableConstraint(("table_1",), sharding_types=(TABLE_WISE,)),
        TableConstraint(("table_2",), sharding_types=(COLUMN_WISE,)),
    )
    shapes = [(50_000, 64, 20.0)] * 3 + [(1_000, 16, 1.0)] * 9
    problem = PlanningProblem(make_workload(*shapes), make_topology(1, 3), constraints)
    plan = NeuroShardSearch(AnalyticEstimator()).plan(problem)
    check(plan, problem)
    assert set(plan.tables[0].ranks) == {2}


def test_what_it_cannot_express_is_refused(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    constraints = (
        TableConstraint(("table_0", "table_1"), together=True),
        TableConstraint(("table_2",), sharding_types=(ShardingType.ROW_WISE,)),
    )
    problem = PlanningProblem(make_workload(*[(100, 16, 1.0)] * 3), make_topology(1, 2), constraints)
    with pytest.raises(PlanningError, match=r"kept together; tables table_2 may be neither") as error:
        NeuroShardSearch(AnalyticEstimator()).plan(problem)
    assert error.value.reason == "strategy"


def test_faster_devices_get_more(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    topology = make_topology(1, 2, speeds=(4e12, 1e12))
    problem = PlanningProblem(make_workload(*[(5_000, 16, 20.0)] * 20), topology)
    plan = NeuroShardSearch(AnalyticEstimator()).plan(problem)
    on_fast = sum(shard.num_cols for table in plan.tables for shard in table.shards if shard.rank == 0)
    assert on_fast > 0.55 * 20 * 16
