"""What people read: tables, lines, warnings, heat maps."""

import io
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launcher.cli import fold
from launcher.stop_signals import StopRequested, StopSignals
from launcher.views.health import PATIENCE_WINDOWS, LearningHealth
from launcher.views.heatmap import ANCHORS, draw_heat_map
from launcher.views.plan import _ranks_of, gathered_bytes
from launcher.views.report import percentile_95, window_imbalance
from launcher.views.tensorboard import MOST_RANK_LINES, TensorBoardView
from launcher.views.terminal import Pace, Terminal, render_event, render_window
from planner.problem import PlanningProblem, TableConstraint
from planner.search.registry import make_plan
from planner.sharding import ShardingType
from planner.tables import OptimizerKind, TableSpec, Workload
from planner.topology import Device, DeviceType, Link, Topology


def window(step: int = 10, auc: float | None = 0.7, ranks: int = 2) -> dict[str, Any]:
    return {
        "kind": "window",
        "step": step,
        "total_steps": 100,
        "loss": 0.5,
        "ne": 0.9,
        "auc": auc,
        "calibration": 1.0,
        "qps": 1000.0,
        "columns": ["step_ms", "lookup_forward_ms"],
        "ranks": [[20.0 + rank, 2.0 + rank] for rank in range(ranks)],
    }


def evaluation(ne: float) -> dict[str, Any]:
    return {"kind": "evaluation", "step": 10, "loss": 0.5, "ne": ne, "auc": 0.6, "calibration": 1.0, "samples": 5}


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


def test_a_window_is_one_line_with_every_ranks_step_time() -> None:
    line = render_window(window(), Pace())
    assert line == "step 10/100  loss 0.5000  NE 0.900  AUC 0.700  1,000 samples/s  step 20.0/21.0 ms"
    assert "step 20.0-27.0 ms" in render_window(window(ranks=8), Pace())
    assert "AUC -" in render_window(window(auc=None), Pace())


def test_lines_are_plain_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    with Terminal(Console(file=out, width=100)).follow() as view:
        view.show(window())
        view.show(window(step=777))  # too soon after the first
        view.show(evaluation(0.8))
    text = out.getvalue()
    assert "step 10" in text and "777" not in text and "held-out at step 10" in text and "\x1b" not in text


def test_imbalance_is_max_over_mean_of_lookups() -> None:
    assert window_imbalance(window()) == pytest.approx(3.0 / 2.5)
    assert window_imbalance({**window(), "ranks": [[1.0, 0.0], [1.0, 0.0]]}) is None


def test_tensorboard_shows_ranks_and_the_slowest_rank_of_every_phase(tmp_path: Path) -> None:
    view = TensorBoardView(tmp_path)
    view.show(window())
    view.show({**window(step=20, ranks=MOST_RANK_LINES + 1), "ranks": [[20.0, float(r)] for r in range(33)]})
    view.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.value for event in events.Scalars("phase_ms/lookup_forward")] == [3.0, 32.0]
    assert [event.value for event in events.Scalars("lookup_ms/rank_01")] == [3.0]
    assert [event.value for event in events.Scalars("lookup_ms/slowest")] == [32.0]
    assert "phase_ms/step" not in events.Tags()["scalars"]


def test_percentile_of_one_window_is_that_window() -> None:
    assert percentile_95([3.0]) == 3.0
    assert percentile_95([float(i) for i in range(101)]) == pytest.approx(95.0)


def test_a_heat_map_is_dark_at_zero_and_bright_at_its_most() -> None:
    image = draw_heat_map(np.array([[0.0, 2.0], [1.0, 0.0]]))
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[0] == image.shape[1]
    cell = image.shape[0] // 2
    assert image[0, 0].tolist() == ANCHORS[0].tolist() and image[0, cell].tolist() == ANCHORS[-1].tolist()
    assert image[cell, 0].tolist() == ANCHORS[2].tolist()
    assert (draw_heat_map(np.zeros((2, 3))) == draw_heat_map(np.zeros((2, 3)))[0, 0]).all()


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
