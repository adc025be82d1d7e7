"""Planning tasks are drawn as asked, and their problems say what the pool says."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.bench.plan_costs import price_cpu_node
from launcher.bench.plan_tasks import (
    DIMS,
    PoolTable,
    build_access,
    build_problem,
    default_cap_bytes,
    draw_tasks,
    read_pool,
)
from planner.access import batch_rows
from planner.cost.features import MEAN_USES
from planner.errors import PlanningError
from planner.lookups import NUM_REUSE_BINS
from planner.memory import whole_table_bytes
from planner.tables import MemoryCount
from tests.launcher.bench.plan_pools import write_pool

GIB = 1 << 30


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> tuple[PoolTable, ...]:
    return read_pool(write_pool(tmp_path_factory.mktemp("pool") / "tables.csv"))


def test_a_seed_gives_the_same_tasks_whatever_their_number(pool: tuple[PoolTable, ...]) -> None:
    few, many = (draw_tasks(pool, (3, 9), count, seed=1, cap_bytes=GIB) for count in (2, 30))
    assert many[:2] == few
    assert draw_tasks(pool, (3, 9), 2, seed=2, cap_bytes=GIB) != few
    assert {task.num_tables for task in many} == set(range(3, 10))
    assert {dim for task in many for dim in task.dims} == set(DIMS)
    assert max(Counter(table.index for task in many for table in task.tables).values()) > 1


def test_tasks_keep_to_the_cap_and_the_widths(pool: tuple[PoolTable, ...]) -> None:
    free = draw_tasks(pool, (5, 5), 20, seed=0, cap_bytes=100 * GIB, dims=(8, 12))
    capped = draw_tasks(pool, (5, 5), 20, seed=0, cap_bytes=20 << 20, dims=(8, 12))
    assert max(task.weight_bytes for task in free) > 20 << 20 >= max(task.weight_bytes for task in capped)
    assert {dim for task in capped for dim in task.dims} == {8, 12}
    assert not any(task.num_redrawn for task in capped)


def test_many_tables_are_fitted_one_by_one_and_the_task_says_so(
    pool: tuple[PoolTable, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.bench.plan_tasks.MAX_DRAWS", 1 << 12)
    (task,) = draw_tasks(pool, (60, 60), 1, seed=0, cap_bytes=200 << 20)
    assert task.num_tables == 60 and task.weight_bytes <= 200 << 20 and task.num_redrawn > 0
    monkeypatch.setattr("launcher.bench.plan_tasks.MAX_REDRAWS", 500)
    with pytest.raises(PlanningError, match=r"no 60 tables .* 0\.000977 GiB") as error:
        draw_tasks(pool, (60, 60), 1, seed=0, cap_bytes=1 << 20)
    assert error.value.reason == "workload"


def test_the_cap_of_neuroshard_is_15_gib_for_4_to_16_devices_of_4(shared_data: Path) -> None:
    assert [default_cap_bytes(4 * GIB, ranks) // GIB for ranks in (2, 4, 8, 16)] == [7, 15, 15, 15]
    tasks = draw_tasks(read_pool(shared_data / "tables" / "dlrm_tables_2021.csv"), (10, 59), 40, 0, 15 * GIB)
    counts = [task.num_tables for task in tasks]
    # The number of tables is drawn once: large tasks are as frequent as small ones although most draws are too large.
    assert min(counts) < 20 and max(counts) > 50 and 28 < np.mean(counts) < 41
    assert max(task.weight_bytes for task in tasks) <= 15 * GIB and not any(task.num_redrawn for task in tasks)


def test_a_problem_counts_weights_alone_unless_asked_and_has_the_global_batch(pool: tuple[PoolTable, ...]) -> None:
    (task,) = draw_tasks(pool, (6, 6), 1, seed=3, cap_bytes=GIB)
    topology = price_cpu_node(4, GIB).topology
    problem = build_problem(task, topology)
    assert problem.arrays.samples == 65_536 and problem.workload.batch_size == 16_384
    assert whole_table_bytes(problem).sum() == task.weight_bytes
    full = build_problem(task, topology, MemoryCount.FULL)
    assert (whole_table_bytes(full) > whole_table_bytes(problem)).all()
    table = problem.workload.tables[0]
    assert (table.num_embeddings, table.embedding_dim) == (task.tables[0].num_embeddings, task.dims[0])


def test_a_scaled_task_has_as_much_less_memory(pool: tuple[PoolTable, ...]) -> None:
    (task,) = draw_tasks(pool, (6, 6), 1, seed=3, cap_bytes=GIB)
    problem = build_problem(replace(task, global_batch=65_536 // 16), price_cpu_node(4, GIB).topology)
    assert problem.arrays.samples == 4096
    assert {device.hbm_bytes for device in problem.topology.devices} == {GIB // 16}


def test_a_table_without_lookups_touches_no_row(pool: tuple[PoolTable, ...]) -> None:
    assert build_access(pool[-1], 65_536).distinct_rows == 0
    rows = batch_rows((build_access(pool[-1], 65_536),), np.array([1e6]), np.array([0.0]), 1024)
    assert rows.distinct_rows[0] == 0


@given(
    shares=st.lists(st.floats(0.0, 1.0), min_size=NUM_REUSE_BINS, max_size=NUM_REUSE_BINS).filter(lambda s: sum(s) > 0),
    pooling_factor=st.floats(0.1, 100.0),
)
def test_access_follows_the_bins_and_small_batches_touch_fewer_rows(shares: list[float], pooling_factor: float) -> None:
    reuse = np.array(shares) / sum(shares)
    table = PoolTable(0, 10**9, pooling_factor, tuple(reuse.tolist()))
    access = build_access(table, 65_536)
    ids = 65_536 * pooling_factor
    assert access.distinct_rows * float(reuse @ MEAN_USES) == pytest.approx(ids)
    assert np.all(np.diff(access.coverage) >= -1e-12) and access.coverage[-1] == pytest.approx(1.0)
    whole, eighth = (
        batch_rows((access,), np.array([1e9]), np.array([pooling_factor]), samples).distinct_rows[0]
        for samples in (65_536, 8_192)
    )
    assert whole == pytest.approx(access.distinct_rows)
    # A row of one use in the batch is drawn again with the others: 1 - exp(-1/8) of them come up in an eighth.
    assert 0.93 * whole / 8 <= eighth <= max(1.0, min(whole, ids / 8)) * 1.001
