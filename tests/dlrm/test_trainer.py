"""The whole trainer on real gloo ranks, without Ray: its records, its end, its checkpoints, both pipelines."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrm.config import DenseOptimizerConfig, ModelConfig, SparseOptimizerConfig, TrainConfig
from dlrm.data.config import DataConfig, SyntheticConfig
from dlrm.data.factory import open_schema
from dlrm.errors import NonFiniteLossError
from dlrm.exchange import OWN_COLUMNS
from dlrm.job import TrainJob
from dlrm.size import declare_tables
from dlrm.trainer import train
from planner.problem import PlanningProblem
from planner.search.registry import make_plan
from planner.tables import OptimizerKind, Workload
from planner.topology import Device, DeviceType, Link, Topology
from tests.ranks import run_ranks

DATA = DataConfig(
    synthetic=SyntheticConfig(
        num_samples=64 * 2 * 25, num_eval_samples=512, num_dense=3, num_tables=4, max_rows=500, embedding_dims=[8, 16]
    )
)
MODEL = ModelConfig(embedding_dim=16, dense_arch=[16], over_arch=[16])
TRAIN = TrainConfig(batch_size=64, steps=20, window_steps=5)


class Outbox(list):
    def put(self, record: Any) -> None:
        self.append(record)


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


def make_job(folder: Path, kind: str = "rowwise_adagrad", data: DataConfig = DATA, **train_keys: Any) -> TrainJob:
    schema = open_schema(data)
    tables = declare_tables(schema, MODEL.embedding_dim)
    devices = tuple(Device(r, "n0", r, DeviceType.CPU, "cpu", 1 << 32, 0, 1e10, 1e10, 1e-5) for r in range(2))
    topology = Topology("test", devices, Link(1e9, 1e-5), Link(1e9, 1e-5))
    problem = PlanningProblem(Workload(tables, TRAIN.batch_size, OptimizerKind(kind)), topology)
    return TrainJob(
        model=MODEL,
        data=data,
        sparse_optimizer=SparseOptimizerConfig(kind=kind, learning_rate=0.05),
        dense_optimizer=DenseOptimizerConfig(),
        train=dataclasses.replace(TRAIN, **train_keys),
        schema=schema,
        tables=tables,
        plan=make_plan(problem, "size_greedy").plan,
        topology=topology,
        checkpoint_folder=str(folder),
    )


def run_job(rank: int, world_size: int, job: TrainJob, stop_at_once: bool = False) -> tuple[dict, list]:
    place = Place(rank, world_size, inbox=Inbox({"id": 1, "kind": "stop"} if stop_at_once else None))
    return train(place, job), list(place.outbox)


def run_jobs(rank: int, world_size: int, jobs: list[TrainJob]) -> list[tuple[dict, list]]:
    return [run_job(rank, world_size, job) for job in jobs]


def run_diverging(rank: int, world_size: int, job: TrainJob) -> tuple[int, int]:
    with pytest.raises(NonFiniteLossError) as caught:
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
def test_a_window_tells_every_ranks_times(ends: list[dict]) -> None:
    window = ends[0]["exhausted"][1][0]
    assert window["columns"] == list(OWN_COLUMNS[2:]) == ["peak_bytes", "step_ms", "data_wait_ms", "lookup_ms"]
    values = np.array(window["ranks"])
    assert values.shape == (2, 4)
    step, wait, lookup = (values[:, window["columns"].index(n)] for n in ("step_ms", "data_wait_ms", "lookup_ms"))
    assert (lookup > 0).all() and (lookup + wait <= step).all()


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


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["rowwise_adagrad", "sgd"])
def test_a_resumed_run_equals_the_one_that_never_stopped(tmp_path: Path, kind: str) -> None:
    whole, half = make_job(tmp_path / "whole", kind), make_job(tmp_path / "half", kind, steps=10)
    rest = dataclasses.replace(make_job(tmp_path / "rest", kind), resume=str(tmp_path / "half" / "step_00000010"))
    through_pipeline = make_job(tmp_path / "pipeline", kind, pipeline="sparse_dist")
    ran = run_ranks(run_jobs, 2, [whole, half, rest, through_pipeline])[0]
    straight, first, second, pipelined = (records for _, records in ran)
    assert window_losses(first) + window_losses(second) == pytest.approx(window_losses(straight), rel=1e-6)
    assert second[-1]["loss"] == pytest.approx(straight[-1]["loss"], rel=1e-6)
    assert window_losses(pipelined) == pytest.approx(window_losses(straight), rel=1e-6)
    assert window_losses(straight)[-1] < window_losses(straight)[0]
