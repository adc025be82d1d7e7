"""Real traces for `bench detect`: what is drawn, how runs are cut apart, and a few real ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.imbalance.verdict import Cause
from cluster.telemetry import Block
from dlrm.injection.config import check_injections
from launcher.bench import detect_recording
from launcher.bench.detect_recording import StepLog, TraceFile, record_traces
from launcher.bench.detect_traces import Trace, load_traces
from launcher.bench.recorded_runs import CLEAN_STEPS, FAULT_STEPS, KINDS, MORE_OF_RANK_PERCENT, Run, draw_run
from launcher.config import load_config
from launcher.preparation import Prepared, prepare


@pytest.fixture(scope="module")
def prepared(repository: Path) -> Prepared:
    config = load_config(repository / "configs" / "quickstart.yaml", ["planner.strategy=longest_processing_time"])
    return prepare(config, repository / "configs" / "hardware" / "cpu_x2.yaml")


def test_runs_are_drawn_by_seed_and_can_be_planted(prepared: Prepared) -> None:
    tables = [table.name for table in prepared.task.tables]
    for kind in KINDS:
        runs = [draw_run(kind, seed, prepared) for seed in range(12)]
        assert runs == [draw_run(kind, seed, prepared) for seed in range(12)]
        check_injections([run.injection for run in runs if run.injection], tables, world_size=2)
        faults = [run.fault for run in runs if run.fault]
        assert len(faults) in (0, 12)
        assert {fault.first_step for fault in faults} <= {CLEAN_STEPS + 1}
        assert not faults or {fault.rank for fault in faults} == {0, 1}


def test_a_hot_table_is_its_ranks_alone_and_burdens_it_as_much_as_any(prepared: Prepared) -> None:
    ids = {table.name: table.pooling_factor for table in prepared.task.tables}
    placed = {table.name: table.ranks for table in prepared.planned.plan.tables}
    for seed in range(12):
        run = draw_run("hot_table", seed, prepared)
        assert run.fault is not None and run.injection is not None and run.fault.cause is Cause.HOT_TABLE
        (table,) = run.fault.tables
        assert placed[table] == (run.fault.rank,) and run.injection.tables == [table]
        of_rank = sum(ids[name] for name, ranks in placed.items() if run.fault.rank in ranks)
        assert run.injection.percent * ids[table] == pytest.approx(MORE_OF_RANK_PERCENT * of_rank)


def made_block(name: str, first: int, last: int) -> Block:
    steps = np.arange(first, last + 1)
    return Block(name, {"columns": ["step_ms"]}, steps, np.broadcast_to(steps[:, None, None], (len(steps), 2, 1)) * 1.0)


def test_runs_are_cut_where_they_end_however_their_rows_arrive() -> None:
    log = StepLog()
    for first, last in ((1, 9), (10, 31), (32, 33)):
        log.add(made_block("steps", first, last))
        log.add(made_block("shards", last, last))
    ends = {"kind": "run", "number": 0, "send_ms": None}
    first = log.cut(Run("clean", 0), {**ends, "first_step": 5, "step": 20})
    second = log.cut(Run("clean", 1), {**ends, "first_step": 21, "step": 32})
    assert first.steps.steps.tolist() == list(range(1, 17)) and first.steps.rows[:, 0, 0].tolist() == list(range(5, 21))
    assert second.steps.steps.tolist() == list(range(1, 13)) and second.steps.rows[0, 1, 0] == 21
    assert first.shards is not None and first.shards.steps.tolist() == [5]
    with pytest.raises(ValueError, match="2 rows of steps were lost"):
        log.add(Block("steps", {}, np.array([40]), np.zeros((1, 2, 1)), num_dropped=2))


def test_what_was_recorded_is_in_the_file_when_recording_breaks_off(tmp_path: Path) -> None:
    kept = TraceFile(tmp_path / "traces.npz", [])
    for seed in range(10):
        kept.add(Trace("clean", seed, made_block("steps", 1, 5)))
    assert [trace.seed for trace in load_traces(tmp_path / "traces.npz")] == list(range(8))
    kept.close()
    assert [trace.seed for trace in load_traces(tmp_path / "traces.npz")] == list(range(10))


@pytest.mark.ray
@pytest.mark.slow
def test_real_runs_are_recorded_once(
    ray_head: Any, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        f"cluster.address={ray_head.address}",
        f"run.dir={tmp_path}",
        "cluster.num_workers=2",
        "planner.budget_s=1",
    ]
    words += ["profile.enabled=false", "train.batch_size=32", "planner.strategy=longest_processing_time"]
    path, lines = tmp_path / "traces.npz", []

    def record(*kinds: str) -> tuple[Trace, ...]:
        monkeypatch.setattr(detect_recording, "KINDS", kinds)
        return record_traces(load_config(repository / "configs" / "quickstart.yaml", words), path, 1, lines.append)

    (link,) = record("slow_link")
    link_again, hot = record("slow_link", "hot_table")
    assert lines[-1].startswith("1/1  hot_table, seed 0") and [trace.kind for trace in load_traces(path)] == [
        "slow_link",
        "hot_table",
    ]
    np.testing.assert_array_equal(link_again.steps.rows, link.steps.rows.astype(np.float32))
    for trace in (link, hot):
        assert trace.steps.steps.tolist() == list(range(1, CLEAN_STEPS + FAULT_STEPS + 1))
        assert trace.fault is not None and trace.shards is not None and trace.num_ranks == 2
    assert link.send_ms is not None and np.nanmax(link.send_ms[link.fault.rank]) >= 2.0 and hot.send_ms is None
    ids = hot.steps.rows[:, :, hot.steps.labels["columns"].index("ids")]
    growth = ids[CLEAN_STEPS:].mean(axis=0) / ids[:CLEAN_STEPS].mean(axis=0)
    assert growth[hot.fault.rank] == pytest.approx(1 + MORE_OF_RANK_PERCENT / 100, rel=0.1)
    assert growth[1 - hot.fault.rank] == pytest.approx(1, abs=0.1)
