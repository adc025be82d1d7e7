"""`bench detect`: traces as steps make them, files of traces, judgement of verdicts, and the whole report."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cluster.imbalance.detectors import DETECTORS
from cluster.imbalance.settings import WatchSettings
from cluster.imbalance.signals import split_steps
from cluster.imbalance.verdict import Cause
from launcher.bench import detect_calibration
from launcher.bench.detect import DetectBenchmark, run_detect
from launcher.bench.detect_calibration import calibrate
from launcher.bench.detect_kinds import KINDS, make_run
from launcher.bench.detect_play import Outcome, play, score
from launcher.bench.detect_report import render_detect
from launcher.bench.detect_synthetic import ALL_TO_ALLS, COLUMNS, draw_fleet, make_trace
from launcher.bench.detect_traces import Trace, load_traces, save_traces
from planner.cost.estimator import PHASES

FAULTS = ("slow_lookups", "slow_device", "hot_table", "slow_link", "hogged_core")


def column(trace: Trace, name: str) -> np.ndarray:
    return trace.steps.rows[..., COLUMNS.index(name)]


def test_ranks_wait_so_that_a_step_takes_all_the_same_time() -> None:
    trace = make_trace(draw_fleet(np.random.default_rng(0), 5, 40), "clean", 0, None)
    phases = {phase: column(trace, f"{phase}_ms") for phase in PHASES}
    assert sum(phases.values()) == pytest.approx(column(trace, "step_ms"))
    # From the end of one all-reduce to the end of the next: on all ranks at once.
    ends = np.cumsum(column(trace, "step_ms"), axis=0) - phases["optimizer"]
    assert np.ptp(np.diff(ends, axis=0), axis=1) == pytest.approx(0, abs=1e-6)


def test_the_transfer_is_what_the_last_rank_waits() -> None:
    fleet = draw_fleet(np.random.default_rng(1), 4, 30)
    trace = make_trace(fleet, "clean", 0, None)
    signals = split_steps(trace.steps.steps, trace.steps.rows, COLUMNS)
    expected = np.stack(list(fleet.transfer_ms.values()), axis=1)
    assert signals.transfer_ms == pytest.approx(expected)
    assert signals.lookup_ms == pytest.approx(fleet.work_ms["lookup_forward"] + fleet.work_ms["lookup_backward"])


def test_late_sends_hold_up_all_ranks() -> None:
    fleet = draw_fleet(np.random.default_rng(2), 3, 20)
    before = make_trace(fleet, "clean", 0, None)
    fleet.send_delay_ms[10:, 1] = 50.0
    after = make_trace(fleet, "slow_link", 0, None)
    for phase in ALL_TO_ALLS:
        more = column(after, f"{phase}_ms") - column(before, f"{phase}_ms")
        assert (more[:10] == 0).all() and (more[10:] > 20).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_its_kind_and_seed(kind: str) -> None:
    first, again, other = make_run(kind, 3, 7), make_run(kind, 3, 7), make_run(kind, 3, 8)
    assert (first.steps.rows == again.steps.rows).all() and first.fault == again.fault
    assert first.steps.rows.shape != other.steps.rows.shape or (first.steps.rows != other.steps.rows).any()
    assert (first.fault is not None) == (kind in FAULTS)
    assert (first.send_ms is not None) == (kind == "slow_link")


def test_a_hot_table_shows_in_its_ids_and_in_its_ranks_lookups() -> None:
    trace = make_run("hot_table", 4, 3)
    fault = trace.fault
    assert fault is not None and trace.shards is not None
    begin = fault.first_step - 1
    for name, least in (("ids", 1.2), ("lookup_forward_ms", 1.1), ("input_dist_bytes", 1.02)):
        values = column(trace, name)[:, fault.rank]
        assert np.median(values[begin:]) > least * np.median(values[:begin])
    ids = trace.shards.rows[..., 0]
    growth = ids[-1] / ids[0]
    assert trace.shards.labels["tables"][int(growth.argmax())] == fault.tables[0]


def test_a_file_keeps_traces(tmp_path: Path) -> None:
    traces = [make_run(kind, 2, 0) for kind in ("hot_table", "slow_link", "clean")]
    traces[2] = replace(traces[2], shards=None)
    path = tmp_path / "traces.npz"
    save_traces(path, traces)
    for found, expected in zip(load_traces(path), traces, strict=True):
        assert (found.kind, found.seed, found.fault) == (expected.kind, expected.seed, expected.fault)
        assert found.steps.labels["columns"] == expected.steps.labels["columns"]
        assert (found.steps.steps == expected.steps.steps).all()
        assert found.steps.rows == pytest.approx(expected.steps.rows, rel=1e-6)
        assert (found.shards is None) == (expected.shards is None)
        assert (found.send_ms is None) == (expected.send_ms is None)
        if found.shards is not None and expected.shards is not None:
            assert found.shards.labels == expected.shards.labels
            np.testing.assert_allclose(found.shards.rows, expected.shards.rows, rtol=1e-6)
    assert [each.name for each in tmp_path.iterdir()] == ["traces.npz"]


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    np.savez(path, weights=np.ones(3))
    with pytest.raises(ValueError, match=r"other\.npz: expected traces"):
        load_traces(path)
    path.write_bytes(b"not a file of arrays")
    with pytest.raises(ValueError, match=r"other\.npz: expected traces"):
        load_traces(path)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_found_after_it_began(kind: str) -> None:
    outcome = play(make_run(kind, 8, 0), DETECTORS["robust_z"], WatchSettings())
    assert outcome.is_found and outcome.num_false == 0
    assert outcome.is_right_cause and outcome.is_right_rank and outcome.is_right_tables
    assert 0 < outcome.delay_steps < 60


def test_a_verdict_about_another_rank_or_before_the_fault_is_wrong() -> None:
    trace = make_run("slow_device", 4, 0)
    assert trace.fault is not None
    wrong_rank = replace(trace, fault=replace(trace.fault, rank=(trace.fault.rank + 1) % 4))
    late_fault = replace(trace, fault=replace(trace.fault, first_step=len(trace.steps.steps) + 1))
    wrong_cause = replace(trace, fault=replace(trace.fault, cause=Cause.HOT_TABLE))
    detector, settings = DETECTORS["robust_z"], WatchSettings()
    assert [play(each, detector, settings).num_false for each in (wrong_rank, late_fault)] == [1, 1]
    assert not play(wrong_rank, detector, settings).is_found
    found = play(wrong_cause, detector, settings)
    assert found.is_found and not found.is_right_cause


def test_scores_of_known_outcomes() -> None:
    found = Outcome(True, 0, is_right_cause=True, delay_steps=10)
    misnamed = Outcome(True, 1, delay_steps=20)
    missed, harmless = Outcome(False, 0), Outcome(False, 0)
    scores = score([found, misnamed, missed, harmless], num_faults=3)
    # 2 found, 1 false, 1 missed.
    assert scores == {"f1": pytest.approx(4 / 6), "cause_accuracy": 0.5, "delay_steps_median": 15}
    assert score([harmless], 0) == {"f1": None, "cause_accuracy": None, "delay_steps_median": None}


def test_calibration_finds_where_false_alarms_get_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect_calibration, "NUM_RUNS", 4)
    monkeypatch.setattr(detect_calibration, "RUN_STEPS", 500)
    monkeypatch.setattr(detect_calibration, "FALSE_ALARMS_PER_10K", 2)
    detector = DETECTORS["robust_z"]
    threshold = calibrate("robust_z", (4, 8), lambda _: None)

    def false_alarms(threshold: float) -> int:
        tuned = replace(detector, threshold=threshold)
        return sum(play(trace, tuned, WatchSettings()).num_false for trace in detect_calibration.clean_runs((4, 8)))

    # 2 in 10,000 are less than one in these 4,000 steps.
    assert false_alarms(threshold) < 1 <= false_alarms(threshold / detect_calibration.LEAST_STEP)


def test_the_report_has_its_figures_and_fits_the_page(tmp_path: Path) -> None:
    recorded = tmp_path / "recorded.npz"
    save_traces(recorded, [make_run(kind, 2, 5) for kind in ("slow_device", "clean")])
    told: list[str] = []
    asked = DetectBenchmark(runs=1, ranks=(2, 4), clean_steps=1000, recorded=recorded)
    found = run_detect(asked, told.append)
    assert json.loads(json.dumps(found)) == found and len(told) == len(DETECTORS)
    names = {"f1", "false_alarms_per_10k", "cause_accuracy", "delay_steps_median", "us_per_point"}
    assert all(set(found[name]) == names for name in DETECTORS)
    assert found[found["default"]]["f1"] > 0.8
    lines = [line for line in found["breakdown"] if line["detector"] == "robust_z"]
    assert {line["source"] for line in lines} == {"made", "made, long", "recorded"}
    assert sum(line["runs"] for line in lines) == 2 * len(KINDS) + 2 + 2
    text = io.StringIO()
    console = Console(file=text, width=100)
    for part in render_detect(found):
        console.print(part)
    assert max(map(len, text.getvalue().splitlines())) <= 100
    assert "robust_z (default)" in text.getvalue() and "checkpoint_spikes" in text.getvalue()
