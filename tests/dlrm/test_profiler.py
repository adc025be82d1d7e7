"""Traces of single steps of two real gloo ranks: where they are, what is in them, and that their slices nest."""

import dataclasses
import gzip
import json
from contextlib import closing
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrm.config import ProfilerConfig, TelemetryConfig
from dlrm.profiler import LabelledClock, PhaseLog, StepProfiler
from dlrm.step_columns import DATA_WAIT, OTHER, STEP_COLUMNS, StepColumns
from dlrm.timing import HostClock
from dlrm.trainer import Trainer, train
from tests.dlrm.test_trainer import Place, make_job
from tests.ranks import run_ranks

NUM_STEPS = 12
PHASES = {name.removesuffix("_ms") for name in STEP_COLUMNS[1:]}
# Steps that each case asks for, of NUM_STEPS.
WANTED = {
    "mixed": "4:6",
    "sparse_dist": "4:6",
    "early end": "11:20",
    "never": "30:31",
    "silent": "4:6",
    "failing": "4:6",
}
LOSS_NODE = "autograd::engine::evaluate_function: BinaryCrossEntropyWithLogitsBackward0"


class BrokenError(Exception):
    pass


def run_case(place: Place, folder: Path, case: str) -> None:
    """Trains with a profile of rank 1."""
    keys = {"pipeline": case} if case == "sparse_dist" else {"types": "mixed"}
    job = make_job(folder, steps=NUM_STEPS, window_steps=3, eval_every=5, eval_batches=1, checkpoint=False, **keys)
    job = dataclasses.replace(
        job,
        profiler=ProfilerConfig(WANTED[case], [1]),
        trace_folder=str(folder / case),
        telemetry=TelemetryConfig(case != "silent"),
    )
    if case != "failing":
        train(place, job)
        return
    with pytest.raises(BrokenError), closing(Trainer(place, job)) as trainer:
        trainer.time_steps(list(islice(trainer.train_stream, 3)))
        trainer.time_steps(list(islice(trainer.train_stream, 2)))
        trainer.rig.pipeline.progress = fail
        trainer.run_leg()


def fail(_batches: Any) -> None:
    raise BrokenError


def run_cases(rank: int, world_size: int, folder: Path) -> None:
    for case in WANTED:
        run_case(Place(rank, world_size), folder, case)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traces")
    run_ranks(run_cases, 2, folder)
    return folder


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path) as file:
        return json.load(file)["traceEvents"]


def slices(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event.get("cat") == kind and event["ph"] == "X"]


def end(event: dict[str, Any]) -> float:
    return event["ts"] + event["dur"]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("case", "names"),
    {
        "mixed": ["rank_01_steps_4-6.json.gz"],
        "sparse_dist": ["rank_01_steps_4-6.json.gz"],
        "early end": ["rank_01_steps_11-12.json.gz"],
        "failing": ["rank_01_steps_4-5.json.gz"],
        "silent": ["rank_01_steps_4-6.json.gz"],
        "never": [],
    }.items(),
)
def test_the_asked_steps_of_the_asked_rank_are_written_and_nothing_else(
    traces: Path, case: str, names: list[str]
) -> None:
    assert sorted(path.name for path in (traces / case).glob("**/*")) == names


@pytest.mark.distributed
@pytest.mark.parametrize("case", ["mixed", "sparse_dist"])
def test_every_step_holds_every_phase_one_after_the_other(traces: Path, case: str) -> None:
    events = read(traces / case / "rank_01_steps_4-6.json.gz")
    steps, phases = slices(events, "step"), slices(events, "phase")
    assert [step["name"] for step in steps] == ["step 4", "step 5", "step 6"]
    (track,) = {(event["pid"], event["tid"]) for event in [*steps, *phases]}
    assert {event["pid"] for event in slices(events, "cpu_op")} == {track[0]}
    for step in steps:
        inside = [phase for phase in phases if step["ts"] <= phase["ts"] <= end(phase) <= end(step)]
        names = {phase["name"] for phase in inside}
        kinds = {name.partition("/")[0] for name in names}
        # Step 5 ends before an evaluation: its batch is there already; step 6 begins with taking batches.
        assert kinds == PHASES or (kinds == PHASES - {"data_wait"} and step["name"] != "step 6")
        parts = {name for name in names if name.startswith("lookup_forward/")}
        assert len(parts) == (4 if case == "mixed" else 0)
        assert all(end(before) <= after["ts"] for before, after in pairwise(inside))
        assert sum(phase["dur"] for phase in inside) == pytest.approx(step["dur"], rel=1e-3)
        phases = [phase for phase in phases if phase not in inside]
    assert not phases


@pytest.mark.distributed
@pytest.mark.parametrize("case", ["mixed", "sparse_dist"])
def test_operators_lie_in_their_phases_and_steps_in_torchs_own(traces: Path, case: str) -> None:
    events = read(traces / case / "rank_01_steps_4-6.json.gz")
    marks = [event for event in slices(events, "user_annotation") if event["name"].startswith("ProfilerStep#")]
    assert [mark["name"] for mark in marks] == ["ProfilerStep#4", "ProfilerStep#5", "ProfilerStep#6"]
    for step, mark in zip(slices(events, "step"), marks, strict=True):
        assert mark["ts"] <= step["ts"] <= end(step) <= end(mark)
    # What one phase alone does, in each step once, by the time that torch took: so well do the two clocks agree.
    for name, phase in (("aten::binary_cross_entropy_with_logits", "forward"), (LOSS_NODE, "backward")):
        around = [each for each in slices(events, "phase") if each["name"] == f"dense_{phase}"]
        found = [event for event in slices(events, "cpu_op") if event["name"] == name]
        assert sum(any(each["ts"] <= loss["ts"] <= end(loss) <= end(each) for each in around) for loss in found) == 3


@pytest.mark.distributed
def test_without_telemetry_there_are_torchs_steps_alone(traces: Path) -> None:
    events = read(traces / "silent" / "rank_01_steps_4-6.json.gz")
    assert not slices(events, "phase") and not slices(events, "step")
    assert sum(event["name"].startswith("ProfilerStep#") for event in slices(events, "user_annotation")) == 3


def test_the_user_hears_where_it_is_or_why_it_is_not(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    profiler = StepProfiler(2, 3, tmp_path / "traces", 7, cpu)
    said = [profiler.at_step(step) for step in (1, 2, 3, 4, 5)]
    path = tmp_path / "traces" / "rank_07_steps_2-3.json.gz"
    assert profiler.path == path and said == [None, None, None, said[3], None]
    assert str(path) in str(said[3]) and profiler.close() is None
    assert StepProfiler(2, 3, tmp_path, 7, cpu).close() == "no step from 2 to 3 came, so there is no profile of them"
    (tmp_path / "file").touch()
    blocked = StepProfiler(1, 1, tmp_path / "file", 7, cpu)
    blocked.at_step(1)
    assert "is lost: " in str(blocked.close()) and blocked.path is None


def test_a_labelled_clock_measures_as_the_clock_behind_it() -> None:
    columns = StepColumns(("table_wise", "row_wise"))
    clock = LabelledClock(HostClock(2, columns), columns.names)
    log = PhaseLog(columns.names)
    for clock.log in (None, log):
        log.step = 9
        clock.enter(DATA_WAIT)
        clock.begin_step()
        assert clock.enter(DATA_WAIT) == OTHER and clock.enter(columns.lookup_columns(1)[1]) == DATA_WAIT
        clock.count(0, 5.0)
        clock.end_step()
        clock.enter(DATA_WAIT)
    rows = clock.read()
    assert rows.shape == (2, len(columns.names)) and (rows[:, columns.names.index("ids")] == 5.0).all()
    assert clock.flush().shape[0] == 0
    names = [event["name"] for event in log.to_events(0)]
    assert names == ["thread_name", "step 9", "other", "data_wait", "lookup_backward/row_wise"]
