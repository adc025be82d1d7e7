"""The events of a run, read back as TensorBoard reads them, and served by a real server."""

import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from cluster.imbalance.verdict import Cause, Verdict
from launcher.config import load_config
from launcher.estimators import build_estimator
from launcher.preparation import describe_task
from launcher.priced_plan import PricedPlan
from launcher.views.balance_page import MOST_RANK_LINES, QUANTILES
from launcher.views.tensorboard import TensorBoardView
from planner.cost.estimator import COMMS_PHASES
from planner.search.registry import SearchSettings, make_plan
from planner.topology import Device, DeviceType, Link, Topology
from tests.launcher.made_telemetry import evaluation, resharding_records, shards_block, steps_block, window

SERVER_START_TIMEOUT_S = 90
VERDICT = Verdict(30, Cause.HOT_TABLE, 1, ("items",), 1.5, 22)


def small_task(repository: Path, num_ranks: int = 2) -> PricedPlan:
    """The quick start's tables on made-up CPU ranks, planned."""
    task = describe_task(load_config(repository / "configs" / "quickstart.yaml", []))
    devices = tuple(Device(r, "n", r, DeviceType.CPU, "cpu", 1 << 34, 0, 1e10, 1e10, 1e-5) for r in range(num_ranks))
    topology = Topology("t", devices, Link(1e9, 1e-5), Link(1e9, 1e-5))
    estimator = build_estimator(topology, None, None)
    planned = make_plan(task.problem(topology), "longest_processing_time", SearchSettings(estimator))
    return PricedPlan.of(planned, estimator)


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def values(events: EventAccumulator, tag: str) -> list[float]:
    return [event.value for event in events.Scalars(tag)]


def text(events: EventAccumulator, tag: str) -> str:
    (event,) = events.Tensors(f"{tag}/text_summary")
    return str(event.tensor_proto.string_val[0].decode())


def layout(events: EventAccumulator) -> Layout:
    (event,) = events.Tensors("custom_scalars__config__")
    found = Layout()
    found.ParseFromString(event.tensor_proto.string_val[0])
    return found


def a_run(view: TensorBoardView, ranks: int = 2) -> None:
    """All that a run can bring, 60 steps of it."""
    view.show(window())
    view.show(evaluation())
    for first in (1, 31):
        view.show_block(steps_block(first, 30, ranks=ranks, slow_rank=1))
    view.show_block(shards_block([10], {(0, "items"): 5.0}))
    view.show(VERDICT.to_record())
    view.show({"kind": "warning", "step": 20, "message": "look here"})
    view.show({"kind": "links", "step": 40, "send_ms": [[None, 0.25], [4.5, None]]})
    for record in resharding_records():
        view.show(record)


def test_a_block_is_one_point_of_means_however_many_steps_it_has(tmp_path: Path) -> None:
    view = TensorBoardView(tmp_path)
    view.show_block(steps_block(1, 30, slow_rank=1, data_wait_ms=np.repeat([[0.0], [3.0]], [20, 10], axis=0)))
    view.show_block(steps_block(31, 3, slow_rank=1))
    view.close()
    events = read(tmp_path)
    assert [event.step for event in events.Scalars("step_ms/rank_00")] == [30, 33]
    assert values(events, "data_wait_ms/rank_01") == [1.0, 1.0]
    assert values(events, "lookup_ms/rank_00") == [1.0, 1.0] and values(events, "lookup_ms/rank_01") == [2.0, 2.0]
    assert values(events, "work_ms/rank_00") == [6.0, 6.0] and values(events, "work_ms/rank_01") == [7.0, 7.0]
    assert values(events, "waiting_ms/rank_00") == [1.0, 1.0] and values(events, "waiting_ms/rank_01") == [0.0, 0.0]
    assert values(events, "peak_bytes/rank_01") == [1e9, 1e9]
    assert values(events, "phase_ms/lookup_forward") == [2.0, 2.0] and "phase_ms/step" not in events.Tags()["scalars"]


def test_imbalance_and_waiting_are_told_apart(tmp_path: Path) -> None:
    view = TensorBoardView(tmp_path)
    view.show_block(steps_block(1, 30, slow_rank=1))
    view.close()
    events = read(tmp_path)
    found = {tag: values(events, f"balance/{tag}") for tag in ("lookup_imbalance", "work_imbalance", "waiting_share")}
    assert found["lookup_imbalance"] == pytest.approx([2.0 / 1.5]) and found["waiting_share"] == pytest.approx([0.025])
    assert found["work_imbalance"] == pytest.approx([7.0 / 6.5])
    assert values(events, "balance/waiting_ms/output_dist_forward") == [0.5]
    assert values(events, "balance/transfer_ms/output_dist_forward") == [1.0]
    assert values(events, "balance/waiting_ms/input_dist") == [0.0]
    band = [values(events, f"balance/work_{end}_ms") for end in ("least", "mean", "most")]
    assert band == [[6.0], [6.5], [7.0]]


def test_parts_of_the_lookups_have_tags_of_their_own(tmp_path: Path) -> None:
    view, block = TensorBoardView(tmp_path), steps_block(1, 10)
    names = [*block.labels["columns"], "lookup_forward_ms/row_wise"]
    view.show_block(
        type(block)("steps", {"columns": names}, block.steps, np.concatenate([block.rows, block.rows[..., :1]], axis=2))
    )
    view.close()
    assert values(read(tmp_path), "phase_ms/lookup_forward/row_wise") == [20.0]


@pytest.mark.parametrize("ranks", [2, MOST_RANK_LINES, 256])
def test_tags_are_bounded_at_any_number_of_ranks(tmp_path: Path, ranks: int) -> None:
    view = TensorBoardView(tmp_path)
    a_run(view, ranks)
    view.close()
    events = read(tmp_path)
    lines = [tag for tag in events.Tags()["scalars"] if tag.startswith("work_ms/")]
    if ranks <= MOST_RANK_LINES:
        assert lines == [f"work_ms/rank_{rank:02d}" for rank in range(ranks)]
    else:
        assert lines == [f"work_ms/{name}" for name in QUANTILES]
        assert values(events, "work_ms/max") == [7.0, 7.0] and values(events, "work_ms/median") == [6.0, 6.0]
    assert sum(map(len, map(list, (events.Tags()["scalars"], events.Tags()["histograms"])))) < 300


@pytest.mark.parametrize("ranks", [2, 256])
def test_every_chart_of_the_page_finds_its_tags(tmp_path: Path, repository: Path, ranks: int) -> None:
    view = TensorBoardView(tmp_path)
    view.show_plan(small_task(repository, ranks), step=0)
    a_run(view, ranks)
    view.close()
    events = read(tmp_path)
    tags = events.Tags()["scalars"]
    charts = {chart.title: chart for category in layout(events).category for chart in category.chart}
    for chart in charts.values():
        for pattern in chart.multiline.tag:
            assert any(re.match(pattern, tag) for tag in tags), pattern
        for series in chart.margin.series:
            assert {series.value, series.lower, series.upper} <= set(tags)
            ends = [values(events, tag)[-1] for tag in (series.lower, series.value, series.upper)]
            assert ends == sorted(ends)
    assert any(chart.margin.series for chart in charts.values())
    waiting = [chart for title, chart in charts.items() if "transfer" in title]
    assert len(waiting) == len(COMMS_PHASES)


def test_what_the_plan_promised_stands_beside_every_measured_point(tmp_path: Path, repository: Path) -> None:
    view, planned = TensorBoardView(tmp_path), small_task(repository)
    view.show_plan(planned, step=0)
    view.show_block(steps_block(1, 10))
    view.show_block(steps_block(11, 10))
    view.close()
    events = read(tmp_path)
    assert values(events, "estimate/step_ms") == pytest.approx([planned.cost.step_ms] * 2)
    assert values(events, "estimate/lookup_ms/rank_01") == pytest.approx([planned.cost.phase("lookup_forward")[1]] * 2)
    assert values(events, "plan/estimated_step_ms") == pytest.approx([planned.cost.step_ms])
    assert {"plan/gathered_bytes_rank_x_table", "plan/lookup_ms_rank_x_table"} <= set(events.Tags()["images"])


def test_events_are_text(tmp_path: Path, repository: Path) -> None:
    view = TensorBoardView(tmp_path)
    view.show_plan(small_task(repository), step=0)
    a_run(view)
    view.close()
    events = read(tmp_path)
    verdict = text(events, "events/verdict")
    assert VERDICT.message in verdict and "| hot_table | 1 | items | 1.50 ms a step | 22 | no |" in verdict
    assert text(events, "events/warning") == "look here"
    links = text(events, "events/links").splitlines()
    assert "2 links probed" in links[0] and links[-2:] == ["| 1 | 0 | 4.500 |", "| 0 | 1 | 0.250 |"]
    assert "| type | ranks | shards |" in text(events, "plan/tables")
    decision = text(events, "events/decision")
    assert "hot_table on rank 1: move: it pays" in decision
    assert "| move | verdict | hot_table | 1 | 3.00 ms a step |" in decision
    assert "| 1 | yes | 2.0 MiB | 120 ms | 20 ms | 4.0 MiB | device |" in text(events, "events/migration")
    assert text(events, "events/outcome") == "move 1: 2.50 ms a step gained"


def test_a_migration_is_visible_at_its_step(tmp_path: Path) -> None:
    view = TensorBoardView(tmp_path)
    decision, migration, outcome = resharding_records()
    for record in ({**decision, "answer": "no"}, {**migration, "is_committed": False}, decision, migration, outcome):
        view.show(record)
    view.close()
    events = read(tmp_path)
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found == {
        "resharding/predicted_gain_ms": [(45, 3.0)],
        "resharding/moved_bytes": [(46, 2.0**21)],
        "resharding/pause_ms": [(46, 120.0)],
        "resharding/realised_gain_ms": [(99, 2.5)],
    }


def test_the_spread_of_steps_is_a_histogram_over_steps_and_ranks(tmp_path: Path) -> None:
    view = TensorBoardView(tmp_path)
    view.show_block(steps_block(1, 30, ranks=4, slow_rank=1))
    view.close()
    events = read(tmp_path)
    assert sorted(events.Tags()["histograms"]) == ["spread/ids", "spread/step_ms", "spread/work_ms"]
    (work,) = events.Histograms("spread/work_ms")
    found = work.histogram_value
    assert (found.num, found.min, found.max, found.sum) == (120, 6.0, 7.0, 30 * (3 * 6.0 + 7.0))


def test_the_map_of_work_is_drawn_at_once_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    view = TensorBoardView(tmp_path)
    for first in range(1, 1041, 10):
        view.show_block(steps_block(first, 10))
    view.close()
    assert [image.step for image in read(tmp_path).Images("balance/work_rank_x_time")] == [10, 510, 1010, 1040]


def test_results_stand_beside_the_configuration(tmp_path: Path, repository: Path) -> None:
    config = load_config(repository / "configs" / "quickstart.yaml", ["train.batch_size=333"])
    report = {
        "auc": 0.71,
        "ne": 0.9,
        "qps": 10.0,
        "step_ms": {"median": 20.0, "p95": 22.0},
        "imbalance": {"first": 1.1, "last": 1.2, "max": 1.3},
        "ranks": [{}, {}],
    }
    view = TensorBoardView(tmp_path)
    view.show_results(config, report)
    view.close()
    events = read(tmp_path)
    assert values(events, "result/auc") == pytest.approx([0.71])
    assert values(events, "result/lookup_imbalance") == pytest.approx([1.2])
    found = started(events)
    assert found["train.batch_size"].number_value == 333 and found["num_ranks"].number_value == 2
    assert found["optimizer.sparse.kind"].string_value == config.optimizer.sparse.kind


def test_a_run_without_results_still_has_its_keys(tmp_path: Path, repository: Path) -> None:
    config = load_config(repository / "configs" / "quickstart.yaml", [])
    nothing = {"auc": None, "ne": None, "qps": None, "step_ms": None, "imbalance": None, "ranks": []}
    view = TensorBoardView(tmp_path)
    view.show_results(config, nothing)
    view.close()
    events = read(tmp_path)
    assert events.Tags()["scalars"] == [] and "train.batch_size" in started(events)


def started(events: EventAccumulator) -> Any:
    """The hyperparameters of the run."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = events.PluginTagToContent("hparams")
    found = HParamsPluginData()
    found.ParseFromString(content["_hparams_/session_start_info"])
    return found.session_start_info.hparams


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[str]:
    """A TensorBoard server on a folder of one run; its URL."""
    folder = tmp_path_factory.mktemp("runs")
    view, planned = TensorBoardView(folder / "first" / "tensorboard"), small_task(repository)
    view.show_plan(planned, step=0)
    a_run(view)
    config = load_config(repository / "configs" / "quickstart.yaml", [])
    nothing = {"auc": 0.7, "ne": None, "qps": None, "step_ms": None, "imbalance": None, "ranks": [{}, {}]}
    view.show_results(config, nothing)
    view.close()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", "127.0.0.1"]
    command += ["--port", "0", "--load_fast=false", "--reload_interval=1"]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield wait_for_run(process, folder / "server.log")
    finally:
        process.terminate()
        process.wait(30)


def fetch(url: str, **query: Any) -> Any:
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
        return answer.read()


def wait_for_run(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """The server's URL, once it has read the run."""
    deadline_s = time.monotonic() + SERVER_START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        told = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        if told and json.loads(fetch(f"{told[0]}/data/plugin/images/tags")):
            return told[0]
        time.sleep(0.2)
    raise RuntimeError(f"TensorBoard did not serve the run within {SERVER_START_TIMEOUT_S} s:\n{log.read_text()}")


def test_a_server_serves_the_layout_and_its_charts_lines(server: str) -> None:
    plugin = f"{server}/data/plugin/custom_scalars"
    found = json.loads(fetch(f"{plugin}/layout"))
    titles = [category["title"] for category in found["category"]]
    assert titles == ["balance", "waiting", "estimate against measurement", "re-sharding", "learning"]
    lines = json.loads(fetch(f"{plugin}/scalars", run="first/tensorboard", tag="work_ms/"))
    assert set(lines["tag_to_events"]) == {"work_ms/rank_00", "work_ms/rank_01"}
    assert [point[1:] for point in lines["tag_to_events"]["work_ms/rank_01"]] == [[30, 7.0], [60, 7.0]]


def test_a_server_serves_the_images_and_the_results(server: str) -> None:
    plugin, run = f"{server}/data/plugin/images", "first/tensorboard"
    tags = json.loads(fetch(f"{plugin}/tags"))[run]
    assert set(tags) == {
        "balance/work_rank_x_time",
        "plan/gathered_bytes_rank_x_table",
        "plan/lookup_ms_rank_x_table",
    }
    (image,) = json.loads(fetch(f"{plugin}/images", run=run, tag="plan/lookup_ms_rank_x_table", sample=0))
    assert fetch(f"{plugin}/individualImage?{image['query']}&x=").startswith(b"\x89PNG")
    assert set(json.loads(fetch(f"{server}/data/plugin/text/tags"))[run]) >= {"events/verdict/text_summary"}
