"""What people read on a terminal: lines, warnings, verdicts; and who else is told."""

import io
import os
import signal
from pathlib import Path

import pytest
from rich.console import Console

from cluster.imbalance.verdict import Cause, Verdict
from launcher.cli import fold
from launcher.run_dir import RunDir
from launcher.stop_signals import StopRequested, StopSignals
from launcher.telemetry_file import TelemetryFile, read_steps
from launcher.views.health import PATIENCE_WINDOWS, LearningHealth
from launcher.views.observer import Observers, RecordFile
from launcher.views.plan import _ranks_of, gathered_bytes
from launcher.views.tables import MAX_WIDTH
from launcher.views.terminal import Findings, Pace, Terminal, render_event, render_window
from planner.problem import PlanningProblem, TableConstraint
from planner.search.registry import make_plan
from planner.sharding import ShardingType
from planner.tables import OptimizerKind, TableSpec, Workload
from planner.topology import Device, DeviceType, Link, Topology
from tests.launcher.made_telemetry import evaluation, resharding_records, steps_block, window

SLOW = Verdict(240, Cause.SLOW_DEVICE, 3, (), 1.9, 227)


def test_ne_of_one_on_held_out_data_warns_once_whatever_its_digits() -> None:
    health = LearningHealth()
    warning = health.judge(evaluation(1.02))
    assert warning and "NE on held-out samples is 1.020" in warning["message"]
    assert health.judge(evaluation(1.03)) is None
    assert LearningHealth().judge(evaluation(0.98)) is None


def test_ne_of_one_in_training_warns_when_it_stays() -> None:
    health = LearningHealth()
    found = [health.judge({**window(), "ne": 1.2}) for _ in range(PATIENCE_WINDOWS)]
    assert found[:-1] == [None] * (PATIENCE_WINDOWS - 1) and "NE on the last" in found[-1]["message"]


def test_a_coins_auc_warns_when_it_stays_and_at_once_on_held_out_data() -> None:
    health = LearningHealth()
    found = [health.judge(window(auc=0.505)) for _ in range(PATIENCE_WINDOWS)]
    assert found[:-1] == [None] * (PATIENCE_WINDOWS - 1) and found[-1] is not None
    health = LearningHealth()
    mixed = [health.judge(window(auc=0.6 if i % 5 == 4 else 0.5)) for i in range(3 * PATIENCE_WINDOWS)]
    assert mixed == [None] * len(mixed)
    assert "coin" in LearningHealth().judge({**evaluation(0.9), "auc": 0.5})["message"]


def verdict(cause: Cause, rank: int | None, is_over: bool = False) -> dict[str, object]:
    return Verdict(240, cause, rank, ("items",), 1.9, 227, is_over).to_record()


def test_a_window_is_one_line_with_the_fastest_and_the_slowest_ranks_step() -> None:
    line = render_window(window(), Pace())
    assert line == "step 10/100  loss 0.5000  NE 0.900  AUC 0.700  1,000 samples/s  step 20.0-21.0 ms"
    assert "AUC -" in render_window(window(auc=None), Pace())


def test_a_flag_takes_the_place_of_the_time_to_go_where_there_is_no_room() -> None:
    pace, flag = Pace(), "  !slow_device 3"
    long = {**window(), "step": 123456, "total_steps": 1000000}
    render_window(window(), pace, flag)
    line = render_window(long, pace, flag)
    assert line.endswith("ms  !slow_device 3") and "eta" in render_window(long, pace)
    assert len(render_window(window(step=20), pace, flag)) <= MAX_WIDTH


def test_the_flag_says_what_holds_now() -> None:
    findings = Findings()
    assert findings.flag == ""
    findings.note(verdict(Cause.GLOBAL_DRIFT, None))
    assert findings.flag == ""
    findings.note(verdict(Cause.SLOW_DEVICE, 3))
    assert findings.flag == "  !slow_device 3"
    findings.note(verdict(Cause.SLOW_LINK, None))
    findings.note(verdict(Cause.SLOW_LINK, 5))
    assert findings.flag == "  !slow_device 3 +1"
    findings.note(verdict(Cause.SLOW_DEVICE, 3, is_over=True))
    assert findings.flag == "  !slow_link 5"
    findings.note(verdict(Cause.SLOW_LINK, 5, is_over=True))
    assert findings.flag == ""


def test_a_migration_ends_what_was_found_of_the_plan_before() -> None:
    findings = Findings()
    findings.note(Verdict(5, Cause.SLOW_DEVICE, 3, (), 1.9, 3).to_record())
    findings.note({"kind": "migration", "is_committed": False})
    assert findings.flag
    findings.note({"kind": "migration", "is_committed": True})
    assert findings.flag == ""


def test_decisions_migrations_and_outcomes_are_a_line_each() -> None:
    console = Console(file=io.StringIO(), width=MAX_WIDTH)
    with Terminal(console).follow() as lines:
        for record in resharding_records():
            lines.show(record)
    assert console.file.getvalue().splitlines()[1:] == [  # type: ignore[attr-defined]
        "decision at step 45: hot_table on rank 1: move: it pays",
        "migration at step 46: moved 2.0 MiB",
        "outcome at step 99: move 1: 2.50 ms a step gained",
    ]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_verdict_and_its_end_are_lines_yellow_on_a_terminal(is_terminal: bool) -> None:
    out = io.StringIO()
    colours = "standard" if is_terminal else None
    console = Console(file=out, width=MAX_WIDTH, force_terminal=is_terminal, color_system=colours, highlight=False)
    with Terminal(console).follow() as view:
        view.show(SLOW.to_record())
        view.show({"kind": "links", "step": 241, "send_ms": [[None]]})
        view.show(window())
        view.show(verdict(Cause.HOT_TABLE, 1))
        view.show(verdict(Cause.HOT_TABLE, 1, is_over=True))
    text = out.getvalue()
    assert "verdict at step 240: rank 3 is slow: 1.90 ms a step lost since step 227" in text
    assert "over since step 240" in text and "!slow_device 3" in text and "links" not in text
    assert ("\x1b[33m" in text) == is_terminal


def test_lines_are_plain_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    with Terminal(Console(file=out, width=100)).follow() as view:
        view.show(window())
        view.show(window(step=777))  # too soon after the first
        view.show(evaluation(0.8))
    text = out.getvalue()
    assert "step 10" in text and "777" not in text and "held-out at step 10" in text and "\x1b" not in text


def test_everyone_sees_what_concerns_them(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    records, telemetry = RecordFile(run), TelemetryFile(run)
    everyone = Observers([records, telemetry])
    everyone.show({**evaluation(1.02)})
    everyone.show_block(steps_block(1, 10))
    everyone.flush()
    assert [record["kind"] for record in run.records()] == ["evaluation", "warning"]
    assert len(read_steps(run)[0].steps) == 10
    records.close()
    telemetry.close()


def test_ranks_are_written_as_ranges() -> None:
    shards = [{"rank": rank} for rank in (5, 0, 1, 2, 3, 7)]
    assert _ranks_of({"shards": shards}) == "0-3,5,7"


def test_long_messages_fold_at_words_and_keep_paths_whole() -> None:
    path = "/" + "x" * 120
    folded = fold(f"{'word ' * 30}{path}\nshort")
    assert path in folded and folded.endswith("\nshort")
    assert all(len(line) <= 100 or path in line for line in folded.splitlines())


def test_a_signal_before_training_ends_at_once() -> None:
    with StopSignals(), pytest.raises(StopRequested):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_diverged_still_has_its_lines() -> None:
    diverged = {**window(), "loss": None, "ne": None, "auc": None}
    assert "loss -" in render_window(diverged, Pace())
    assert "loss -" in render_event({**evaluation(1.0), "loss": None, "ne": None})


def test_a_replica_gathers_for_its_own_rank_only() -> None:
    devices = tuple(Device(r, "n", r, DeviceType.CPU, "cpu", 1 << 30, 0, 1e9, 1e9, 1e-5) for r in range(2))
    topology = Topology("t", devices, Link(1e9, 1e-5), Link(1e9, 1e-5))
    tables = (TableSpec("a", 100, 16, ("a",), 3.0), TableSpec("b", 100, 16, ("b",), 3.0))
    types = (ShardingType.DATA_PARALLEL, ShardingType.TABLE_WISE)
    wishes = tuple(TableConstraint((t.name,), sharding_types=(k,)) for t, k in zip(tables, types, strict=True))
    problem = PlanningProblem(Workload(tables, 8, OptimizerKind.SGD), topology, wishes)
    gathered = gathered_bytes(make_plan(problem, "size_greedy"), tables)
    assert gathered[:, 0].tolist() == [96.0, 96.0] and sorted(gathered[:, 1]) == [0.0, 192.0]


def test_a_signal_becomes_a_request_and_a_second_ctrl_c_interrupts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop, stop.deferred():
        assert not stop.is_requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
