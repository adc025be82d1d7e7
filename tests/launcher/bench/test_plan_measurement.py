"""`bench plans --measure`: batches follow the reuse histogram, every plan looks up the same, every rank is run."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.bench.plan_batches import GlobalBatches, TableBatch, count_uses, draw_batches, of_rows, of_samples
from launcher.bench.plan_kernels import FusedTables, RankLookup, ReplicatedTables, rank_pieces
from launcher.bench.plan_measurement import (
    LEAST_FACTOR,
    MOST_WEIGHT_BYTES,
    NUM_ROUNDS,
    MeasuredPlan,
    interleave,
    measure_plans,
    scale_task,
)
from launcher.bench.plan_ratios import best_greedy_rule, measured_ratio, summarize_measured
from launcher.bench.plan_tasks import PlanningTask, PoolTable, build_problem
from planner.cost.features import MEAN_USES
from planner.lookups import NUM_REUSE_BINS
from planner.occupancy import reuse_bins
from planner.plan import ShardingPlan, TablePlacement
from planner.problem import PlanningProblem
from planner.sharding import ShardingOption, ShardingType, enumerate_options
from planner.tables import OptimizerKind
from planner.topology import Device, DeviceType, Link, Topology

NUM_RANKS, SAMPLES = 2, 64


def bins(**shares: float) -> tuple[float, ...]:
    """A histogram by bin, `bins(b0=0.5, b3=0.5)`."""
    return tuple(shares.get(f"b{index}", 0.0) for index in range(NUM_REUSE_BINS))


TABLES = (
    PoolTable(0, 300, 3.0, bins(b0=0.7, b1=0.2, b3=0.1)),
    PoolTable(1, 100, 1.5, bins(b0=1.0)),
    PoolTable(2, 7, 1.0, bins(b3=0.5, b4=0.5)),
)
TASK = PlanningTask(TABLES, (32, 16, 64), SAMPLES)


@pytest.fixture(scope="module")
def topology() -> Topology:
    devices = tuple(
        Device(rank, "node-0", rank, DeviceType.CPU, "test", 1 << 40, 0, 1e10, 1e11, 1e-6) for rank in range(NUM_RANKS)
    )
    return Topology("pair", devices, Link(1e9, 1e-5), Link(1e9, 1e-5))


@pytest.fixture(scope="module")
def problem(topology: Topology) -> PlanningProblem:
    return build_problem(TASK, topology)


Choice = tuple[ShardingType, tuple[int, ...]]


def place(problem: PlanningProblem, *choices: Choice) -> ShardingPlan:
    """A plan from the type and ranks of each table."""
    placements = []
    for table, (sharding_type, ranks) in zip(problem.workload.tables, choices, strict=True):
        options = enumerate_options(table, problem.topology, OptimizerKind.ROWWISE_ADAGRAD)
        (option,) = [each for each in options if (each.sharding_type, each.num_shards) == (sharding_type, len(ranks))]
        placements.append(TablePlacement(table.name, sharding_type, option.shards(ranks)))
    return ShardingPlan(problem.topology.world_size, tuple(placements))


TW, CW, RW, TWRW, DP = (
    ShardingType.TABLE_WISE,
    ShardingType.COLUMN_WISE,
    ShardingType.ROW_WISE,
    ShardingType.TABLE_ROW_WISE,
    ShardingType.DATA_PARALLEL,
)
WHOLE = ((TW, (0,)), (TW, (0,)), (TW, (0,)))
CUTS = [
    ((CW, (0, 1)), (RW, (0, 1)), (TW, (1,))),
    ((RW, (0, 1)), (DP, (0, 1)), (CW, (1, 0))),
    ((TWRW, (0, 1)), (TW, (1,)), (DP, (0, 1))),
]


def bag_sums(batch: TableBatch) -> torch.Tensor:
    """The sum of the ids of each bag."""
    bags = torch.arange(len(batch.lengths)).repeat_interleave(batch.lengths)
    return torch.zeros(len(batch.lengths), dtype=torch.int64).index_add_(0, bags, batch.ids)


@given(
    shares=st.lists(st.floats(0, 1), min_size=NUM_REUSE_BINS, max_size=NUM_REUSE_BINS),
    num_ids=st.integers(0, 100_000),
    num_rows=st.integers(1, 10_000),
)
@settings(deadline=None, max_examples=200)
def test_uses_are_of_the_rows_that_are_there_and_sum_to_the_ids(
    shares: list[float], num_ids: int, num_rows: int
) -> None:
    uses = count_uses(tuple(shares), num_ids, num_rows)
    assert uses.sum() == num_ids and len(uses) <= num_rows
    assert (uses > 0).all() and (np.diff(uses) <= 0).all()


@given(shares=st.lists(st.floats(0.01, 1), min_size=8, max_size=8))
@settings(deadline=None, max_examples=50)
def test_uses_follow_the_histogram_where_every_bin_has_rows(shares: list[float]) -> None:
    reuse = np.array([*shares, *[0.0] * (NUM_REUSE_BINS - 8)])
    reuse /= reuse.sum()
    uses = count_uses(tuple(reuse.tolist()), 1_000_000, 1_000_000)
    found = np.bincount(reuse_bins(uses), minlength=NUM_REUSE_BINS) / len(uses)
    np.testing.assert_allclose(found, reuse, atol=0.002)
    assert len(uses) == pytest.approx(1_000_000 / (reuse @ MEAN_USES), rel=0.002)


def test_batches_hold_what_was_counted_and_keep_their_hot_rows() -> None:
    table = PoolTable(0, 5_000, 2.5, bins(b0=0.6, b1=0.2, b3=0.1, b6=0.1))
    first, second = draw_batches(table, 1_000, 2, seed=4)
    wanted = count_uses(table.reuse, 2_500, 5_000)
    rows = []
    for batch in (first, second):
        found, counts = batch.ids.unique(return_counts=True)
        assert sorted(counts.tolist(), reverse=True) == wanted.tolist()
        assert (int(batch.lengths.sum()), len(batch.lengths)) == (2_500, 1_000)
        assert all(0 <= each < 5_000 for each in batch.ids.tolist())
        assert len(batch.lengths.unique()) > 4, "bags are ragged"
        rows.append(({*found[counts >= 3].tolist()}, {*found[counts < 3].tolist()}))
    (hot, cold), (same_hot, other_cold) = rows
    assert hot == same_hot and len(cold & other_cold) < len(cold) / 2
    assert not torch.equal(first.ids.sort().values, torch.arange(5_000)[: len(first.ids)])
    assert 1_500 < float(np.mean(list(hot | cold))) < 3_500, "rows are spread over the table"
    again, _ = draw_batches(table, 1_000, 2, seed=4)
    assert torch.equal(again.ids, first.ids) and torch.equal(again.lengths, first.lengths)


def test_row_shards_and_local_batches_add_up_to_the_table() -> None:
    (batch,) = draw_batches(TABLES[0], SAMPLES, 1, seed=1)
    blocks = [(0, 120), (120, 120), (240, 60)]
    parts = [of_rows(batch, *block) for block in blocks]
    assert torch.equal(torch.stack([part.lengths for part in parts]).sum(0), batch.lengths)
    moved = [TableBatch(part.ids + start, part.lengths) for part, (start, _) in zip(parts, blocks, strict=True)]
    assert torch.equal(torch.stack([bag_sums(part) for part in moved]).sum(0), bag_sums(batch))
    assert all(int(part.ids.max()) < rows for part, (_, rows) in zip(parts, blocks, strict=True))
    halves = [of_samples(batch, start, 32) for start in (0, 32)]
    assert torch.equal(torch.cat([half.ids for half in halves]), batch.ids)
    assert torch.equal(torch.cat([half.lengths for half in halves]), batch.lengths)


def weights_of(table: int) -> torch.Tensor:
    """fp32 [rows, columns] of a table of `TASK`, the same under every plan."""
    generator = torch.Generator().manual_seed(table)
    return torch.randn(TASK.tables[table].num_embeddings, TASK.dims[table], generator=generator)


def run_plan(problem: PlanningProblem, plan: ShardingPlan, batches: GlobalBatches) -> list[torch.Tensor]:
    """The pooled columns [B, D] of every table, put together from what the ranks' kernels gave."""
    pooled = [torch.zeros(SAMPLES, dim) for dim in TASK.dims]
    for pieces in rank_pieces(problem, plan):
        lookup = RankLookup(pieces, batches, problem.workload.optimizer)
        for group in lookup.groups:
            for piece, weights in zip(group.pieces, group.tables.weights(), strict=True):
                rows = slice(piece.row_offset, piece.row_offset + piece.num_rows)
                weights.copy_(weights_of(piece.table)[rows, piece.col_offset : piece.col_offset + piece.num_cols])
            group.forward(0)
            columns = group.pooled.detach().split([piece.num_cols for piece in group.pieces], dim=1)
            for piece, part in zip(group.pieces, columns, strict=True):
                samples = slice(piece.first_sample, piece.first_sample + piece.num_samples)
                pooled[piece.table][samples, piece.col_offset : piece.col_offset + piece.num_cols] += part
    return pooled


@pytest.mark.parametrize("cut", CUTS)
def test_the_shards_of_a_plan_give_what_the_whole_tables_give(
    problem: PlanningProblem, cut: tuple[object, ...]
) -> None:
    batches = GlobalBatches(TABLES, SAMPLES, 1, seed=2)
    whole = run_plan(problem, place(problem, *WHOLE), batches)
    (batch,) = batches.of_table(0)
    bags = batch.lengths.cumsum(0) - batch.lengths
    expected = torch.nn.functional.embedding_bag(batch.ids, weights_of(0), bags, mode="sum")
    torch.testing.assert_close(whole[0], expected)
    for found, wanted in zip(run_plan(problem, place(problem, *cut), batches), whole, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("choice", [(TW, (0,)), (CW, (0, 1)), (RW, (0, 1)), (DP, (0, 1))])
@pytest.mark.parametrize("optimizer", [OptimizerKind.SGD, OptimizerKind.ROWWISE_ADAGRAD])
def test_a_pass_trains_the_rows_of_its_batch_and_no_others(
    topology: Topology, choice: Choice, optimizer: OptimizerKind
) -> None:
    task = PlanningTask(TABLES[:1], TASK.dims[:1], SAMPLES)
    problem = build_problem(task, topology, optimizer=optimizer)
    batches = GlobalBatches(task.tables, SAMPLES, 2, seed=3)
    for pieces in rank_pieces(problem, place(problem, choice)):
        lookup = RankLookup(pieces, batches, optimizer)
        before = [weights.clone() for group in lookup.groups for weights in group.tables.weights()]
        forward_ms, backward_ms = lookup.run(0)
        assert forward_ms > 0 and backward_ms > 0
        after = [weights for group in lookup.groups for weights in group.tables.weights()]
        for piece, old, new in zip(pieces, before, after, strict=True):
            changed = (old != new).any(dim=1).nonzero().flatten()
            assert torch.equal(changed, piece.cut(batches)[0].ids.unique())


@pytest.mark.parametrize("optimizer", [OptimizerKind.SGD, OptimizerKind.ROWWISE_ADAGRAD])
def test_replicated_tables_train_as_fused_ones(problem: PlanningProblem, optimizer: OptimizerKind) -> None:
    (piece, *_), _ = rank_pieces(problem, place(problem, (DP, (0, 1)), *WHOLE[1:]))
    assert (piece.table, piece.num_samples) == (0, SAMPLES // 2)
    batches = [part for batch in draw_batches(TABLES[0], SAMPLES, 2, seed=5) for part in [of_samples(batch, 0, 32)]]
    found = []
    memory = torch.ones(piece.num_rows * piece.num_cols)
    for tables in (ReplicatedTables((piece,), optimizer), FusedTables((piece,), optimizer, memory)):
        generator = torch.Generator().manual_seed(1)
        (weights,) = tables.weights()
        weights.copy_(weights_of(0))
        for batch in batches:
            offsets = torch.cat([torch.zeros(1, dtype=torch.int64), batch.lengths.cumsum(0)])
            pooled = tables.forward(batch.ids, offsets)
            tables.backward(pooled, torch.randn(pooled.shape, generator=generator))
        found.append(weights.clone())
    assert not torch.equal(found[0], weights_of(0))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_a_scaled_task_has_the_rows_uses_and_memory_of_its_batch(topology: Topology) -> None:
    big = PoolTable(0, 6_000_000, 20.0, bins(b0=0.6, b1=0.2, b2=0.1, b5=0.1))
    hot = PoolTable(1, 100, 1.0, bins(b10=1.0))
    task = PlanningTask((big, hot), (64, 16))
    scaled = scale_task(task)
    factor = task.global_batch // scaled.global_batch
    assert factor == LEAST_FACTOR and scaled.dims == task.dims
    assert scaled.tables[0].num_embeddings == 6_000_000 // factor and scaled.tables[1].num_embeddings == 100 // factor
    np.testing.assert_allclose(scaled.tables[0].reuse, big.reuse, atol=1e-3)
    smaller, whole = build_problem(scaled, topology), build_problem(task, topology)
    assert smaller.topology.devices[0].hbm_bytes == whole.topology.devices[0].hbm_bytes // factor
    np.testing.assert_allclose(smaller.arrays.distinct_rows[0] * factor, whole.arrays.distinct_rows[0], rtol=1e-3)
    # What the planner is told of a scaled table is what its batches hold.
    for table, expected in zip(scaled.tables, smaller.arrays.distinct_rows, strict=True):
        (batch,) = draw_batches(table, scaled.global_batch, 1, seed=0)
        counts = batch.ids.unique(return_counts=True)[1].numpy()
        assert len(counts) == pytest.approx(expected, rel=0.35)
        np.testing.assert_allclose(np.bincount(reuse_bins(counts), minlength=NUM_REUSE_BINS) / len(counts), table.reuse)
    larger = scale_task(PlanningTask((big,) * 100, (128,) * 100))
    assert larger.weight_bytes <= MOST_WEIGHT_BYTES and larger.global_batch < scaled.global_batch


def test_every_different_rank_is_run_once_a_round_with_the_plans_taking_turns(problem: PlanningProblem) -> None:
    plans = {"whole": place(problem, *WHOLE)} | {f"cut {at}": place(problem, *cut) for at, cut in enumerate(CUTS)}
    ranks = {name: rank_pieces(problem, plan) for name, plan in plans.items()} | {
        "again": rank_pieces(problem, plans["whole"])
    }
    order = interleave(list(ranks.values()), np.random.default_rng(0))
    assert len(order) == len(set(order)) == len({pieces for each in ranks.values() for pieces in each}) == 8
    assert set(order[:4]) == {each[0] for each in ranks.values()}
    orders = {tuple(interleave(list(ranks.values()), np.random.default_rng(seed))) for seed in range(20)}
    assert len(orders) > 10


def test_plans_are_measured_and_say_how_far_their_times_are_apart(problem: PlanningProblem) -> None:
    plans = {"whole": place(problem, *WHOLE), "cut": place(problem, *CUTS[0]), "same": place(problem, *WHOLE)}
    lines: list[str] = []
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = measure_plans(TASK, problem, plans, 0, lines.append)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(num_threads)
    assert measure_plans(TASK, problem, {}, 0, lines.append) == {}
    assert set(found) == set(plans) and len(lines) == NUM_ROUNDS
    for each in found.values():
        assert each.rounds_ms.shape == (NUM_ROUNDS, NUM_RANKS) and each.max_rank_ms > 0 and each.spread >= 0
    assert (found["cut"].rounds_ms > 0).all()
    assert (found["whole"].rounds_ms[:, 0] > 0).all() and (found["whole"].rounds_ms[:, 1] == 0).all()
    np.testing.assert_array_equal(found["same"].rounds_ms, found["whole"].rounds_ms)


def test_tables_without_ids_are_looked_up_and_shards_without_rows_left_out(topology: Topology) -> None:
    """Both occur in scaled tasks: pools have unused tables, and TorchRec cuts 3 rows over 4 ranks."""
    tables = (PoolTable(0, 3, 1.0, bins(b0=1.0)), PoolTable(1, 50, 0.0, bins()))
    devices = tuple(replace(topology.devices[0], rank=rank, local_rank=rank) for rank in range(4))
    problem = build_problem(PlanningTask(tables, (4, 8), SAMPLES), replace(topology, devices=devices))
    spread, unused = problem.workload.tables
    cut = ShardingOption(spread, RW, 4, (0, 1, 2, 3)).shards((0, 1, 2, 3))
    whole = ShardingOption(unused, TW, 1, (2,)).shards((2,))
    assert [shard.num_rows for shard in cut] == [1, 1, 1, 0]
    plan = ShardingPlan(4, (TablePlacement(spread.name, RW, cut), TablePlacement(unused.name, TW, whole)))
    ranks = rank_pieces(problem, plan)
    assert [[piece.table for piece in pieces] for pieces in ranks] == [[0], [0], [0, 1], []]
    batches = GlobalBatches(tables, SAMPLES, 1, seed=0)
    for pieces in ranks[:3]:
        lookup = RankLookup(pieces, batches, problem.workload.optimizer)
        assert min(lookup.run(0)) > 0
        assert [group.pooled.shape for group in lookup.groups] == [(SAMPLES, 4), (SAMPLES, 8)][: len(pieces)]


def test_a_plan_is_as_slow_as_its_slowest_rank_in_the_median_round() -> None:
    plan = MeasuredPlan(np.array([[1.0, 4.0], [3.0, 5.0], [2.0, 9.0]]))
    assert plan.rank_ms.tolist() == [2.0, 5.0] and plan.max_rank_ms == 5.0 and plan.spread == pytest.approx(1.0)


@dataclass(frozen=True)
class Times:
    """What the summary needs of a measured plan."""

    max_rank_ms: float
    spread: float = 0.1


def test_ratios_are_over_the_tasks_that_both_solve() -> None:
    measured = [
        {"portfolio": Times(1.0), "torchrec": Times(2.0), "dim_greedy": Times(1.6), "size_greedy": Times(9.0)},
        {"portfolio": Times(2.0), "torchrec": Times(1.0), "dim_greedy": Times(3.2)},
        {"portfolio": Times(3.0), "torchrec": Times(12.0)},
        {"torchrec": Times(7.0)},
    ]
    found = measured_ratio(measured, "portfolio", "torchrec")
    assert found is not None and found.num_tasks == 3
    assert found.ratio == pytest.approx((0.5 * 2.0 * 0.25) ** (1 / 3))
    assert 0.25 <= found.low < found.ratio < found.high <= 2.0
    assert measured_ratio(measured, "portfolio", "random") is None
    assert best_greedy_rule(measured, "portfolio") == "dim_greedy"
    summary = summarize_measured(measured)
    assert summary["portfolio"]["measured_ratio_vs_torchrec"] == pytest.approx(found.ratio)
    assert summary["portfolio"]["measured_ratio_vs_best_greedy"] == pytest.approx(0.625)
    assert summary["torchrec"]["measured_ratio_vs_torchrec"] == 1.0
    assert summarize_measured(measured[3:])["torchrec"]["measured_ratio_vs_best_greedy"] is None
