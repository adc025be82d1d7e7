"""What travels between two plans covers every new shard once, and nothing travels that is there already."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.plan import ShardingPlan, TablePlacement
from planner.sharding import Shard, ShardingOption, ShardingType, enumerate_options
from planner.tables import OptimizerKind, TableSpec, Workload
from planner.topology import Device, DeviceType, Link, Topology
from planner.transfers import moved_bytes, table_transfers, transfers

TABLE = TableSpec("t", 37, 64, ("t",))
DEVICES = tuple(Device(r, f"n{r // 2}", r % 2, DeviceType.CPU, "cpu", 1 << 30, 0, 1e9, 1e9, 1e-5) for r in range(4))
WHERE = Topology("four", DEVICES, Link(1e9, 1e-5), Link(1e9, 1e-5))
OPTIONS = enumerate_options(TABLE, WHERE, OptimizerKind.SGD)


@st.composite
def placements(draw: st.DrawFn) -> TablePlacement:
    option: ShardingOption = draw(st.sampled_from(OPTIONS))
    ranks = option.ranks
    if option.is_free:
        ranks = tuple(draw(st.integers(0, 3)) for _ in range(option.num_shards))
    return TablePlacement("t", option.sharding_type, option.shards(ranks))


def cells(shards: list[tuple[int, int, int, int]]) -> np.ndarray:
    """How often each cell of the table is covered by (row, rows, col, cols)."""
    covered = np.zeros((TABLE.num_embeddings, TABLE.embedding_dim), dtype=int)
    for row, rows, col, cols in shards:
        covered[row : row + rows, col : col + cols] += 1
    return covered


@given(placements(), placements())
@settings(max_examples=200, deadline=None)
def test_every_new_shard_is_covered_once_from_ranks_that_hold_it(old: TablePlacement, new: TablePlacement) -> None:
    found = table_transfers(old, new)
    for rank in range(4):
        got = cells([(t.row_offset, t.num_rows, t.col_offset, t.num_cols) for t in found if t.target == rank])
        wanted = cells([(s.row_offset, s.num_rows, s.col_offset, s.num_cols) for s in new.shards if s.rank == rank])
        held = cells([(s.row_offset, s.num_rows, s.col_offset, s.num_cols) for s in old.shards if s.rank == rank])
        stays = cells(
            [(t.row_offset, t.num_rows, t.col_offset, t.num_cols) for t in found if t.target == rank == t.source]
        )
        sent = cells([(t.row_offset, t.num_rows, t.col_offset, t.num_cols) for t in found if t.source == rank])
        assert (got == wanted).all()
        assert (stays == np.minimum(held, wanted)).all()
        assert not (sent[held == 0]).any()


@given(placements())
@settings(max_examples=50, deadline=None)
def test_nothing_travels_to_the_same_plan(plan: TablePlacement) -> None:
    assert all(each.stays for each in table_transfers(plan, plan))


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [(OptimizerKind.SGD, 32 * 4), (OptimizerKind.ROWWISE_ADAGRAD, 32 * 4 + 4), (OptimizerKind.ADAM, 32 * 12)],
)
def test_bytes_count_weights_and_state(optimizer: OptimizerKind, expected: int) -> None:
    halves = (Shard(0, 0, 37, 0, 32), Shard(1, 0, 37, 32, 32))
    old = ShardingPlan(2, (TablePlacement("t", ShardingType.COLUMN_WISE, halves),))
    new = ShardingPlan(2, (TablePlacement("t", ShardingType.TABLE_WISE, (Shard(0, 0, 37, 0, 64),)),))
    workload = Workload((TABLE,), 8, optimizer)
    assert moved_bytes(old, new, workload) == 37 * expected
    assert moved_bytes(new, old, workload) == 37 * expected
    assert [each.source for each in transfers(old, new)] == [0, 1]


def test_replicas_are_made_from_one_copy_and_dropped_for_free() -> None:
    whole = TablePlacement("t", ShardingType.TABLE_WISE, (Shard(2, 0, 37, 0, 64),))
    copies = TablePlacement("t", ShardingType.DATA_PARALLEL, tuple(Shard(r, 0, 37, 0, 64) for r in range(4)))
    assert [(t.source, t.target) for t in table_transfers(whole, copies)] == [(2, 0), (2, 1), (2, 2), (2, 3)]
    assert [(t.source, t.target) for t in table_transfers(copies, whole)] == [(2, 2)]
