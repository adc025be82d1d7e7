"""The drift benchmark: its scenario, what it reads of a run's folder, what it makes of that, and a small real one."""

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.bench.drift import ARMS, DriftBenchmark, render_drift, run_drift, summarise
from launcher.bench.drift_runs import RunFigures, read_figures
from launcher.bench.drift_scenario import HOT_PERCENT, Hot, choose_hot, declare_hot, make_scenario
from launcher.config import ConfigError, load_config
from launcher.preparation import Prepared, prepare
from launcher.profiling import unseen
from launcher.run_dir import RunDir
from launcher.schema import ConstraintSection, RunConfig
from launcher.views.tables import make_console
from planner.plan import ShardingPlan
from planner.sharding import ShardingType

HOT = Hot(("table_0", "table_3"), rank=1, from_step=101)
WORDS = ["planner.strategy=longest_processing_time"]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return make_scenario(load_config(None, [*WORDS, f"run.dir={tmp_path}"]), num_steps=400)


@pytest.fixture
def prepared(config: RunConfig, repository: Path) -> Prepared:
    return prepare(config, repository / "configs" / "hardware" / "cpu_x2.yaml")


def loads(prepared: Prepared, plan: ShardingPlan, hot: Hot) -> list[float]:
    """Ids of a sample on each rank once the load has moved."""
    found = [0.0] * plan.world_size
    ids = {table.name: table.pooling_factor for table in prepared.task.tables}
    for table in plan.tables:
        found[table.ranks[0]] += ids[table.name] * (1 + HOT_PERCENT / 100 * (table.name in hot.tables))
    return found


def test_the_load_moves_to_the_tables_of_one_rank_and_another_plan_is_then_right(
    config: RunConfig, prepared: Prepared, repository: Path
) -> None:
    hot, plan = choose_hot(prepared, 100), prepared.planned.plan
    assert {table.sharding_type for table in plan.tables} == {ShardingType.TABLE_WISE} and hot.from_step == 101
    assert {name for name, ranks in ((each.name, each.ranks) for each in plan.tables) if ranks == (hot.rank,)} == set(
        hot.tables
    )
    static = loads(prepared, plan, hot)
    right = prepare(declare_hot(config, prepared, hot), repository / "configs" / "hardware" / "cpu_x2.yaml")
    oracle = loads(prepared, right.planned.plan, hot)
    assert max(static) > 1.4 * sum(static) / 2 and max(oracle) < 1.1 * sum(oracle) / 2
    # What the oracle knew is no part of the job: all runs train on the same batches.
    assert config.data.access.declared == []


def test_wishes_that_would_change_the_arithmetic_are_refused() -> None:
    config = load_config(None, [])
    config.planner.constraints = [ConstraintSection(["*"])]
    with pytest.raises(ConfigError, match=r"planner\.constraints"):
        make_scenario(config, 400)


@pytest.mark.parametrize("after_step", [10, 105, 400])
def test_a_drift_needs_whole_windows_before_and_after_it(after_step: int) -> None:
    with pytest.raises(ConfigError, match="--drift-step"):
        DriftBenchmark(1, 400, after_step).check()


def made_run(folder: Path, *others: dict[str, Any]) -> RunDir:
    """Ten steps of 100 samples a window; 1000 samples/s before step 100, 500 after, with other records between."""
    records = [
        {"kind": "window", "step": step, "samples": 1000, "qps": 1000.0 if step <= 100 else 500.0}
        for step in range(10, 201, 10)
    ]
    folder.mkdir()
    records = sorted([*records, *others], key=lambda record: record["step"])
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return RunDir(folder)


def test_pauses_are_part_of_the_time_after_the_drift(tmp_path: Path) -> None:
    quiet = read_figures(made_run(tmp_path / "quiet"), HOT, num_warmup=20)
    assert quiet.before_samples_per_s == pytest.approx(1000) and quiet.samples_per_s == pytest.approx(500)
    assert quiet.detect_steps is quiet.move_steps is None and quiet.num_migrations == 0
    moved = made_run(
        tmp_path / "moved",
        {"kind": "verdict", "step": 60},
        {"kind": "verdict", "step": 117},
        {"kind": "decision", "step": 121, "answer": "no", "message": "too early"},
        {"kind": "decision", "step": 130, "answer": "move", "message": "it pays"},
        {"kind": "migration", "step": 140, "is_committed": True, "pause_ms": 5000.0, "moved_bytes": 7},
        {"kind": "outcome", "step": 190, "is_rolled_back": False},
    )
    found = read_figures(moved, HOT, num_warmup=20)
    assert found.samples_per_s == pytest.approx(10_000 / 25)
    assert (found.detect_steps, found.decide_steps, found.move_steps) == (17, 30, 40)
    assert found.decisions == ("step 121: too early", "step 130: it pays")
    assert (found.pause_ms, found.moved_bytes, found.num_migrations, found.is_rolled_back) == (5000, 7, 1, False)


def figures(samples_per_s: float, move_steps: int | None = None) -> RunFigures:
    num_moves = int(move_steps is not None)
    return RunFigures(samples_per_s, 1000, 17, move_steps, move_steps, 300.0 * num_moves, 5 << 20, num_moves, False)


def test_what_was_recovered_is_of_the_oracles_advantage() -> None:
    repeats = [
        {
            "static": figures(600 + x),
            "ours": figures(870 + x, 40),
            "oracle": figures(900 + x),
            "weights_difference": 0.0,
        }
        for x in (-9, 0, 50)
    ]
    found = summarise(repeats, HOT, DriftBenchmark(3, 400, 100))
    assert found["recovered"] == pytest.approx(0.9) and found["recovered_range"] == pytest.approx([0.9, 0.9])
    assert (found["detect_steps"], found["move_steps"], found["pause_ms"]) == (17, 40, 300)
    assert found["weights_equal"] and len(found["repeats"]) == 3
    repeats[1]["weights_difference"], repeats[1]["oracle"] = 2e-6, figures(590)
    assert not summarise(repeats, HOT, DriftBenchmark(3, 400, 100))["weights_equal"]
    assert summarise(repeats, HOT, DriftBenchmark(3, 400, 100))["repeats"][1]["recovered"] is None
    console = make_console()
    with console.capture() as text:
        for part in render_drift(found):
            console.print(part)
    assert "recovered 0.90" in text.get() and all(len(line) <= 100 for line in text.get().splitlines())


@pytest.mark.ray
@pytest.mark.slow
def test_a_small_real_drift(ray_head: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.bench.drift_scenario.NUM_ROWS", 2_000)
    words = [f"cluster.address={ray_head.address}", "cluster.num_workers=2", "profile.enabled=false", *WORDS]
    words += ["imbalance.warmup_steps=10", "imbalance.baseline_steps=30"]
    lines: list[str] = []
    found = run_drift(load_config(None, words), DriftBenchmark(1, 120, 60), unseen, lines.append)
    assert len(lines) == 3 and found["weights_equal"] and found["drift_step"] == 61
    (repeat,) = found["repeats"]
    assert all(repeat[arm]["samples_per_s"] > 0 and repeat[arm]["before_samples_per_s"] > 0 for arm in ARMS)
    # Whether so short a run finds and moves anything is the machine's affair; the others never move.
    assert repeat["static"]["num_migrations"] == repeat["oracle"]["num_migrations"] == 0
    assert set(found["hot_tables"]) and found["samples_per_s"].keys() == set(ARMS)
