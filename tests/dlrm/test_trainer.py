"""The whole trainer on real gloo ranks, without Ray: its records, its end, its checkpoints, both pipelines."""

import dataclasses
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrm.config import DenseOptimizerConfig, ModelConfig, SparseOptimizerConfig, TelemetryConfig, TrainConfig
from dlrm.data.config import DataConfig, SyntheticConfig
from dlrm.data.factory import open_schema
from dlrm.errors import DivergedError
from dlrm.job import TrainJob
from dlrm.size import declare_tables
from dlrm.step_columns import COUNTERS, OTHER, STEP_COLUMNS
from dlrm.timing import IDLE
from dlrm.trainer import Trainer, train
from planner.problem import PlanningProblem, TableConstraint
from planner.search.registry import make_plan
from planner.sharding import ShardingType
from planner.tables import OptimizerKind, Workload
from planner.topology import Device, DeviceType, Link, Topology
from tests.ranks import run_ranks

DATA = DataConfig(
    synthetic=SyntheticConfig(
        num_samples=64 * 2 * 25, num_eval_samples=512, num_dense=3, num_tables=4, max_rows=500, embedding_dims=[32]
    )
)
MODEL = ModelConfig(embedding_dim=16, dense_arch=[16], over_arch=[16])
TYPES_OF_PLANS = {
    **{each: (each,) * 4 for each in ("row_wise", "table_row_wise", "data_parallel", "column_wise")},
    "mixed": ("row_wise", "column_wise", "data_parallel", "table_wise"),
}
TRAIN = TrainConfig(batch_size=64, steps=20, window_steps=5)


class Outbox(list):
    def put(self, record: Any) -> None:
        self.append(record)


@dataclass
class Rings:
    """All that was ever appended, whole."""

    labels: dict[str, dict[str, Any]] = field(default_factory=dict)
    series: dict[str, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)

    def declare(self, name: str, row_shape: tuple[int, ...], labels: dict[str, Any]) -> None:
        self.labels[name] = labels

    def append(self, name: str, steps: np.ndarray, rows: np.ndarray) -> None:
        self.series.setdefault(name, []).append((steps.copy(), rows.copy()))

    def rows(self, name: str) -> np.ndarray:
        """Every row of a series, `[N, ...]`."""
        return np.concatenate([rows for _, rows in self.series[name]])

    def steps(self, name: str) -> list[int]:
        return [int(step) for steps, _ in self.series[name] for step in steps]


@dataclass
class Inbox:
    command: dict | None = None

    def latest(self) -> dict | None:
        return self.command


@dataclass(frozen=True)
class Place:
    rank: int
    world_size: int
    device: str = "cpu"
    outbox: Outbox = field(default_factory=Outbox)
    inbox: Inbox = field(default_factory=Inbox)
    rings: Rings = field(default_factory=Rings)


def make_job(
    folder: Path,
    kind: str = "rowwise_adagrad",
    types: str | None = None,
    model: ModelConfig = MODEL,
    num_nodes: int = 1,
    **train_keys: Any,
) -> TrainJob:
    """A small synthetic job for two ranks a node; `types` names a plan of TYPES_OF_PLANS, else every table is whole."""
    schema = open_schema(DATA)
    tables = declare_tables(schema, model.embedding_dim)
    devices = tuple(
        Device(r, f"n{r // 2}", r % 2, DeviceType.CPU, "cpu", 1 << 32, 0, 1e10, 1e10, 1e-5)
        for r in range(2 * num_nodes)
    )
    topology = Topology("test", devices, Link(1e9, 1e-5), Link(1e9, 1e-5))
    wanted = TYPES_OF_PLANS[types] if types else ("table_wise",) * len(tables)
    constraints = tuple(
        TableConstraint((table.name,), sharding_types=(ShardingType(each),))
        for table, each in zip(tables, wanted, strict=True)
    )
    problem = PlanningProblem(Workload(tables, TRAIN.batch_size, OptimizerKind(kind)), topology, constraints)
    return TrainJob(
        model=model,
        data=DATA,
        sparse_optimizer=SparseOptimizerConfig(kind=kind, learning_rate=0.05),
        dense_optimizer=DenseOptimizerConfig(),
        train=dataclasses.replace(TRAIN, **train_keys),
        schema=schema,
        tables=tables,
        plan=make_plan(problem, "longest_processing_time").plan,
        topology=topology,
        checkpoint_folder=str(folder),
    )


def run_job(rank: int, world_size: int, job: TrainJob, stop_at_once: bool = False) -> tuple[dict, list]:
    place = Place(rank, world_size, inbox=Inbox({"id": 1, "kind": "stop"} if stop_at_once else None))
    return train(place, job), list(place.outbox)


def run_watched(rank: int, world_size: int, job: TrainJob) -> tuple[list, Rings]:
    place = Place(rank, world_size)
    train(place, job)
    return list(place.outbox), place.rings


def run_jobs(rank: int, world_size: int, jobs: list[TrainJob]) -> list[tuple[dict, list]]:
    return [run_job(rank, world_size, job) for job in jobs]


def run_diverging(rank: int, world_size: int, job: TrainJob) -> tuple[int, int]:
    with pytest.raises(DivergedError) as caught:
        run_job(rank, world_size, job)
    return caught.value.step, caught.value.rank


def run_every_end(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    """One start of the ranks serves several tests, since importing torch takes longer than training."""
    exhausted = make_job(folder / "exhausted", steps=None, epochs=1)
    stopped = make_job(folder / "stopped", steps=None, epochs=10**6)
    diverging = make_job(folder / "diverging")
    diverging = dataclasses.replace(diverging, dense_optimizer=DenseOptimizerConfig("sgd", 1e30))
    return {
        "exhausted": run_job(rank, world_size, exhausted),
        "stopped": run_job(rank, world_size, stopped, stop_at_once=True),
        "diverging": run_diverging(rank, world_size, diverging),
        "watched": run_watched(rank, world_size, make_job(folder / "watched", steps=22)),
        "unwatched": run_watched(
            rank,
            world_size,
            dataclasses.replace(make_job(folder / "unwatched"), telemetry=TelemetryConfig(enabled=False)),
        ),
    }


def window_losses(records: list[dict]) -> list[float]:
    return [record["loss"] for record in records if record["kind"] == "window"]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(run_every_end, 2, tmp_path_factory.mktemp("ends"))


@pytest.mark.distributed
def test_data_that_ends_ends_the_run_after_every_whole_batch(ends: list[dict]) -> None:
    for rank in ends:
        result, _ = rank["exhausted"]
        assert (result["result"], result["step"]) == ("done", 25)
    _, records = ends[0]["exhausted"]
    assert [record["step"] for record in records] == [5, 10, 15, 20, 25, 25]
    assert records[-1]["kind"] == "evaluation" and records[-1]["samples"] == 512
    assert ends[1]["exhausted"][1] == []  # rank 0 speaks for all


@pytest.mark.distributed
def test_every_step_of_every_rank_is_in_the_rings_of_all(ends: list[dict]) -> None:
    records, rings = ends[0]["watched"]
    rows, columns = rings.rows("steps"), rings.labels["steps"]["columns"]
    assert columns == [*STEP_COLUMNS, *COUNTERS] and rows.shape == (22, 2, len(columns))
    assert rings.steps("steps") == list(range(1, 23))
    assert (rows[:-2] > 0).all()  # the pipeline takes no data in its last two steps
    phases = rows[..., 1 : len(STEP_COLUMNS)]
    assert phases.sum(axis=-1) == pytest.approx(rows[..., 0])
    assert np.array_equal(rows, ends[1]["watched"][1].rows("steps"))
    windows = [record for record in records if record["kind"] == "window"]
    means = [rows[at : at + 5, :, 0].mean(axis=0) for at in range(0, 20, 5)]
    assert [window["step_ms"]["slowest"] for window in windows[:4]] == pytest.approx([m.max() for m in means])
    assert [window["step_ms"]["fastest"] for window in windows[:4]] == pytest.approx([m.min() for m in means])


@pytest.mark.distributed
def test_a_run_without_telemetry_tells_the_windows_alone(ends: list[dict]) -> None:
    records, rings = ends[0]["unwatched"]
    assert rings.labels == rings.series == {}
    windows = [record for record in records if record["kind"] == "window"]
    assert len(windows) == 4 and all(window["step_ms"]["slowest"] > 0 for window in windows)
    watched = [record for record in ends[0]["watched"][0] if record["kind"] == "window"]
    assert [window["loss"] for window in windows] == pytest.approx([window["loss"] for window in watched[:4]])


@pytest.mark.distributed
def test_a_stop_command_ends_all_ranks_at_the_same_step_with_a_checkpoint(ends: list[dict]) -> None:
    results = [rank["stopped"][0] for rank in ends]
    assert {result["result"] for result in results} == {"stopped"}
    # The command is agreed upon at the first window; the batch that the pipeline had taken is still trained.
    assert {result["step"] for result in results} == {6}
    assert (Path(results[0]["checkpoint"]) / "progress.json").exists()


@pytest.mark.distributed
def test_a_diverged_loss_names_its_first_step_on_every_rank(ends: list[dict]) -> None:
    steps = [rank["diverging"] for rank in ends]
    assert steps[0] == steps[1] and 1 < steps[0][0] <= 5 and steps[0][1] in (0, 1)


def run_pairs(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    """Jobs that must not differ from one that trains straight through, all in one start of the ranks."""
    found: dict[str, Any] = {}
    for kind in ("rowwise_adagrad", "sgd"):
        found[kind] = run_job(rank, world_size, make_job(folder / "straight" / kind, kind))
        for types in TYPES_OF_PLANS if kind == "rowwise_adagrad" else ():
            found[types] = resume_halfway(rank, world_size, folder / types, kind, types)
        found[f"{kind} resumed"] = resume_halfway(rank, world_size, folder / kind, kind)
        found[f"{kind} pipelined"] = run_job(
            rank, world_size, make_job(folder / "piped" / kind, kind, pipeline="sparse_dist")
        )
    for pipeline in ("base", "sparse_dist"):
        evaluated = make_job(folder / "evaluated" / pipeline, pipeline=pipeline, eval_every=7, eval_batches=2)
        found[f"evaluated {pipeline}"] = run_job(rank, world_size, evaluated)
    cross = make_job(folder / "dcn", model=ModelConfig("dlrm_dcn", 16, [16], [16], 2, 4))
    found["dcn"] = run_job(rank, world_size, cross)
    return found


def resume_halfway(rank: int, world_size: int, folder: Path, kind: str, types: str | None = None) -> list[dict]:
    """The records of ten steps, then those of the ten after a restart from their checkpoint."""
    first = make_job(folder / "half", kind, types=types, steps=10)
    rest = make_job(folder / "rest", kind, types=types)
    rest = dataclasses.replace(rest, resume=str(folder / "half" / "step_00000010"))
    return run_job(rank, world_size, first)[1] + run_job(rank, world_size, rest)[1]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_ranks(run_pairs, 2, tmp_path_factory.mktemp("pairs"))[0]


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["rowwise_adagrad", "sgd"])
def test_a_resumed_run_equals_the_one_that_never_stopped(pairs: dict[str, Any], kind: str) -> None:
    straight, resumed = pairs[kind][1], pairs[f"{kind} resumed"]
    assert window_losses(resumed) == pytest.approx(window_losses(straight), rel=1e-6)
    assert resumed[-1]["loss"] == pytest.approx(straight[-1]["loss"], rel=1e-6)
    assert window_losses(straight)[-1] < window_losses(straight)[0]


@pytest.mark.distributed
@pytest.mark.parametrize("types", TYPES_OF_PLANS)
def test_a_checkpoint_holds_whatever_the_plan_cut(pairs: dict[str, Any], types: str) -> None:
    straight = pairs["rowwise_adagrad"][1]
    # Column shards have an accumulator each, so they differ from whole tables, but not from themselves much.
    tolerance = 1e-2 if types in ("column_wise", "mixed") else 1e-5
    assert window_losses(pairs[types]) == pytest.approx(window_losses(straight), rel=tolerance)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["rowwise_adagrad", "sgd"])
def test_the_pipeline_changes_nothing_but_the_order_of_work(pairs: dict[str, Any], kind: str) -> None:
    assert window_losses(pairs[f"{kind} pipelined"][1]) == pytest.approx(window_losses(pairs[kind][1]), rel=1e-6)


@pytest.mark.distributed
@pytest.mark.parametrize("pipeline", ["base", "sparse_dist"])
def test_evaluations_on_the_way_change_nothing(pairs: dict[str, Any], pipeline: str) -> None:
    straight, evaluated = pairs["rowwise_adagrad"][1], pairs[f"evaluated {pipeline}"][1]
    evaluations = [record for record in evaluated if record["kind"] == "evaluation"]
    assert [record["step"] for record in evaluations] == [7, 14, 20]
    assert {record["samples"] for record in evaluations} == {2 * 2 * 64}
    assert evaluations[-1]["loss"] == pytest.approx(straight[-1]["loss"], rel=0.05)
    by_step = {record["step"]: record["loss"] for record in evaluated if record["kind"] == "window"}
    assert by_step[5] == pytest.approx(window_losses(straight)[0], rel=1e-6)
    # Windows end at an evaluation too: 10 steps of the straight run are 6..7 and 8..12 less 11..12 here.
    assert sorted(by_step) == [5, 7, 12, 14, 19, 20]


@pytest.mark.distributed
def test_dlrm_dcn_learns(pairs: dict[str, Any]) -> None:
    losses = window_losses(pairs["dcn"][1])
    assert losses[-1] < losses[0] and losses != window_losses(pairs["rowwise_adagrad"][1])


def run_probed(rank: int, world_size: int, folder: Path) -> dict[str, list[dict]]:
    found = {}
    for pipeline in ("base", "sparse_dist"):
        place = Place(rank, world_size, inbox=Inbox({"id": 1, "kind": "probe_links"}))
        train(place, make_job(folder / pipeline, pipeline=pipeline))
        found[pipeline] = list(place.outbox)
    return found


@pytest.mark.distributed
def test_a_probe_between_two_windows_changes_nothing(pairs: dict[str, Any], tmp_path: Path) -> None:
    for pipeline, records in run_ranks(run_probed, 2, tmp_path)[0].items():
        (links,) = [record for record in records if record["kind"] == "links"]
        assert links["step"] == 5 and links["send_ms"][0][0] is links["send_ms"][1][1] is None, pipeline
        # On a busy machine the smallest message may take as long as the large one, and nothing is left of it.
        assert links["send_ms"][0][1] is not None is not links["send_ms"][1][0]
        assert window_losses(records) == pytest.approx(window_losses(pairs["rowwise_adagrad"][1]), rel=1e-6)


def run_to_the_end_of_a_leg(rank: int, world_size: int, folder: Path) -> int:
    with closing(Trainer(Place(rank, world_size), make_job(folder, steps=3))) as trainer:
        trainer.run_leg()
        return trainer.rig.clock.enter(OTHER)


@pytest.mark.distributed
def test_the_clock_rests_between_two_legs(tmp_path: Path) -> None:
    assert run_ranks(run_to_the_end_of_a_leg, 2, tmp_path) == [IDLE, IDLE]
