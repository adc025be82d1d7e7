"""What was measured is in the run folder, exactly, whenever the process ends."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.telemetry import Block
from launcher.run_dir import RunDir
from launcher.telemetry_file import TelemetryFile, iterate_blocks, read_shards, read_steps
from tests.launcher.made_telemetry import COLUMNS, shards_block, steps_block
from tests.launcher.test_tensorboard import small_task

FIXTURE_IS_A_FACTORY = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def keep(run: RunDir, *blocks: Block) -> None:
    file = TelemetryFile(run)
    for block in blocks:
        file.show_block(block)
    file.close()


@FIXTURE_IS_A_FACTORY
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.sampled_from([1, 2, 7, 64]),
    st.integers(0, 2**32 - 1),
)
def test_steps_are_read_as_they_were_delivered(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], ranks: int, seed: int
) -> None:
    run, rng = RunDir(tmp_path_factory.mktemp("run")), np.random.default_rng(seed)
    times = [name.endswith("_ms") for name in COLUMNS]
    blocks = []
    for first, length in zip(np.cumsum([1, *lengths]), lengths, strict=False):
        rows = np.where(times, rng.exponential(5, (length, ranks, len(COLUMNS))), 0.0)
        rows[..., ~np.array(times)] = rng.integers(0, 2**50, (length, ranks, times.count(False)))
        blocks.append(Block("steps", {"columns": list(COLUMNS)}, np.arange(first, first + length), rows, 3))
    keep(run, *blocks)
    (found,) = read_steps(run)
    given_rows = np.concatenate([block.rows for block in blocks])
    assert found.labels["columns"] == list(COLUMNS) and found.steps.tolist() == list(range(1, sum(lengths) + 1))
    assert (found.rows[..., times] == given_rows[..., times].astype(np.float32)).all()
    assert (found.rows[..., ~np.array(times)] == given_rows[..., ~np.array(times)]).all()
    assert found.num_dropped == 3 * len(blocks)
    (path,) = run.telemetry_files("steps")
    assert [len(block.steps) for block in iterate_blocks(path)] == lengths


def test_another_plan_begins_the_next_files_even_with_the_same_columns(tmp_path: Path, repository: Path) -> None:
    run = RunDir(tmp_path)
    file = TelemetryFile(run)
    file.show_block(steps_block(1, 10))
    file.show_plan(small_task(repository), step=10)
    file.show_block(steps_block(11, 5))
    file.close()
    assert [block.steps.tolist() for block in read_steps(run)] == [list(range(1, 11)), list(range(11, 16))]


def test_shards_keep_their_names_and_what_was_not_counted_stays_unknown(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    ids = {(0, "users"): 5.0, (0, "items"): 7.0, (1, "items"): 9.0}
    keep(run, shards_block([10], ids), shards_block([20, 30], ids, distinct=4.0))
    (found,) = read_shards(run)
    assert found.labels["tables"] == ["users", "items", "items"] and found.labels["ranks"] == [0, 0, 1]
    assert found.labels["sharding_types"] == ["table_wise"] * 3 and found.steps.tolist() == [10, 20, 30]
    assert found.rows[:, :, 0].tolist() == [[5.0, 7.0, 9.0]] * 3
    assert np.isnan(found.rows[0, :, 1]).all() and (found.rows[1:, :, 1] == 4.0).all()


def test_a_user_reads_a_file_in_three_lines(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    keep(run, steps_block(1, 10, ranks=3), shards_block([10], {(1, "items"): 9.0}))
    with pa.ipc.open_stream(run.telemetry_files("steps")[0]) as stream:
        steps = stream.read_all()
    assert steps.column_names == ["step", "rank", *COLUMNS] and steps.num_rows == 30
    assert steps["rank"].to_pylist()[:4] == [0, 1, 2, 0] and steps["step"].to_pylist()[:4] == [1, 1, 1, 2]
    assert steps.schema.field("lookup_forward_ms").type == pa.float32()
    assert steps.schema.field("ids").type == steps.schema.field("peak_bytes").type == pa.int64()
    with pa.ipc.open_stream(run.telemetry_files("shards")[0]) as stream:
        (row,) = stream.read_all().to_pylist()
    assert row == {
        "step": 10,
        "rank": 1,
        "table": "items",
        "sharding_type": "table_wise",
        "ids": 9,
        "distinct_ids": None,
    }


def test_other_columns_ranks_or_shards_begin_the_next_file(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    more = steps_block(21, 10)
    names = [*COLUMNS, "lookup_forward_ms/row_wise"]
    wider = Block("steps", {"columns": names}, more.steps, np.concatenate([more.rows, more.rows[..., :1]], axis=2))
    keep(run, steps_block(1, 10), steps_block(11, 10), wider, steps_block(31, 10, ranks=4))
    keep(run, steps_block(41, 10))
    names = [path.name for path in run.telemetry_files("steps")]
    assert names == [f"steps-00{number}.arrow" for number in range(4)]
    assert [block.rows.shape[:2] for block in read_steps(run)] == [(20, 2), (10, 2), (10, 4), (10, 2)]
    assert read_steps(run)[1].rows[0, 0, -1] == 20.0


def test_it_is_in_the_file_before_it_is_closed(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    file = TelemetryFile(run)
    assert read_steps(run) == []
    for first in (1, 11):
        file.show_block(steps_block(first, 10))
        assert read_steps(run)[0].steps[-1] == first + 9
    file.close()


@FIXTURE_IS_A_FACTORY
@given(st.data())
def test_a_torn_file_gives_every_whole_batch_before_the_tear(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    run, ends = RunDir(tmp_path_factory.mktemp("run")), []
    file = TelemetryFile(run)
    for first in (1, 11, 21):
        file.show_block(steps_block(first, 10))
        ends.append(run.telemetry_files("steps")[0].stat().st_size)
    (path,) = run.telemetry_files("steps")
    cut = data.draw(st.integers(0, ends[-1]))
    path.write_bytes(path.read_bytes()[:cut])
    whole = sum(end <= cut for end in ends)
    assert sum(len(block.steps) for block in read_steps(run)) == 10 * whole


def test_a_file_damaged_in_the_middle_is_no_short_run(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    file = TelemetryFile(run)
    file.show_block(steps_block(1, 10))
    (path,) = run.telemetry_files("steps")
    second = path.stat().st_size
    for first in (11, 21):
        file.show_block(steps_block(first, 10))
    file.close()
    content = bytearray(path.read_bytes())
    content[second : second + 64] = bytes([255]) * 64
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"steps-000\.arrow is damaged near byte"):
        read_steps(run)


def test_a_row_costs_less_than_half_of_what_it_holds(tmp_path: Path) -> None:
    run, rng = RunDir(tmp_path), np.random.default_rng(0)
    times = [name.endswith("_ms") for name in COLUMNS]
    for first in range(1, 301, 30):
        block = steps_block(first, 30, ranks=64)
        noisy = np.where(times, block.rows * rng.lognormal(0, 0.15, block.rows.shape), block.rows)
        keep(run, Block("steps", block.labels, block.steps, noisy))
    size = sum(path.stat().st_size for path in run.telemetry_files("steps"))
    assert size < 0.5 * 8 * len(COLUMNS) * 300 * 64
