"""The whole trainer, asked by a controller to move its tables while it trains, on real gloo ranks."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlrm.checkpoint_folder import read_plan
from dlrm.injection.config import InjectionConfig
from dlrm.job import TrainJob
from dlrm.trainer import train
from dlrm.window import WindowLog
from planner.plan import ShardingPlan
from tests.dlrm.test_trainer import Place, Rings, make_job
from tests.ranks import run_ranks

STEPS = 20
REASON = "rank 0 has more to do"
RECORD_KEYS = {
    "kind",
    "step",
    "move",
    "reason",
    "is_committed",
    "moved_bytes",
    "pause_ms",
    "transfer_ms",
    "announced_bytes",
    "extra_peak_bytes",
    "staging",
    "fault",
    "fault_rank",
    "message",
}
PIPELINES = ("base", "sparse_dist")


@dataclass
class PlannedInbox:
    """What a controller posts, by the number of the look from which on it is there."""

    commands: dict[int, dict[str, Any]] = field(default_factory=dict)
    num_looks: int = 0

    def latest(self) -> dict[str, Any] | None:
        self.num_looks += 1
        posted = [look for look in self.commands if look <= self.num_looks]
        return self.commands[max(posted)] if posted else None


@dataclass
class DeclaringRings(Rings):
    """Also remembers each declaration with the number of steps that came before."""

    declared: list[tuple[str, int, dict[str, Any]]] = field(default_factory=list)

    def declare(self, name: str, row_shape: tuple[int, ...], labels: dict[str, Any]) -> None:
        super().declare(name, row_shape, labels)
        self.declared.append((name, len(self.steps(name)) if name in self.series else 0, labels))


@dataclass(frozen=True)
class Ran:
    """A job on one rank.

    Attributes:
        result: What it came to.
        records: That it said; rank 0 speaks for all.
        losses: Of every step.
        labels: bytes of the labels of every step.
        rings: What was measured.
    """

    result: dict[str, Any]
    records: list[dict[str, Any]]
    losses: list[float]
    labels: list[bytes]
    rings: DeclaringRings

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["kind"] == kind]


@contextmanager
def every_step(losses: list[float], labels: list[bytes]) -> Iterator[None]:
    """Keep what the trainer adds to its window."""
    add = WindowLog.add

    def keep(self: WindowLog, loss: torch.Tensor, logits: torch.Tensor, batch_labels: torch.Tensor) -> None:
        losses.append(loss.item())
        labels.append(batch_labels.numpy().tobytes())
        add(self, loss, logits, batch_labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WindowLog, "add", keep)
        yield


def run(rank: int, world_size: int, job: TrainJob, commands: dict[int, dict[str, Any]]) -> Ran:
    place = Place(rank, world_size, inbox=PlannedInbox(commands), rings=DeclaringRings())  # type: ignore[arg-type]
    losses: list[float] = []
    labels: list[bytes] = []
    with every_step(losses, labels):
        result = train(place, job)
    return Ran(result, list(place.outbox), losses, labels, place.rings)  # type: ignore[arg-type]


def reshard(number: int, plan: ShardingPlan) -> dict[str, Any]:
    return {"id": number, "kind": "reshard", "move": number, "plan": plan.to_dict(), "reason": REASON}


def plan_of(folder: Path, types: str) -> ShardingPlan:
    return make_job(folder, types=types).plan


def run_moved(rank: int, world_size: int, folder: Path, pipeline: str, plans: dict[str, ShardingPlan]) -> dict:
    def job(name: str, **keys: Any) -> TrainJob:
        return make_job(folder / name, pipeline=pipeline, **keys)

    twice = {1: reshard(1, plans["row_wise"]), 3: reshard(2, plans["table_row_wise"])}
    fault = InjectionConfig(kind="fail_reshard", stage="transfer", ranks=[1], from_step=1, to_step=9)
    faulty = dataclasses.replace(job("failed"), injections=(fault,))
    again = {1: reshard(1, plans["row_wise"]), 3: reshard(2, plans["row_wise"])}
    found = {
        "failed": run(rank, world_size, faulty, again),
        "straight": run(rank, world_size, job("straight"), {}),
        "moved": run(rank, world_size, job("moved"), twice),
        "stopped": run(
            rank,
            world_size,
            job("stopped"),
            {1: reshard(1, plans["row_wise"]), 2: {"id": 2, "kind": "stop"}},
        ),
        "late": run(rank, world_size, job("late"), {4: reshard(1, plans["row_wise"])}),
        "evaluated": run(
            rank,
            world_size,
            job("evaluated", eval_every=6 if pipeline == "base" else 7, eval_batches=2),
            {1: reshard(1, plans["row_wise"])},
        ),
        "half": run(rank, world_size, job("half", steps=10), {1: reshard(1, plans["row_wise"])}),
    }
    rest = make_job(folder / "rest", types="row_wise", pipeline=pipeline)
    rest = dataclasses.replace(rest, resume=str(folder / "half" / "step_00000010"))
    return found | {"rest": run(rank, world_size, rest, {})}


def run_all(rank: int, world_size: int, folder: Path) -> dict[str, dict[str, Ran]]:
    """One start of the ranks serves all, since importing torch takes longer than training."""
    plans = {types: plan_of(folder / "plans", types) for types in ("row_wise", "table_row_wise")}
    return {each: run_moved(rank, world_size, folder / each, each, plans) for each in PIPELINES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("moving")


@pytest.fixture(scope="module")
def ran(folder: Path) -> list[dict[str, dict[str, Ran]]]:
    return run_ranks(run_all, 2, folder)


def moves(rank: Ran) -> list[tuple[int, bool]]:
    return [(record["step"], record["is_committed"]) for record in rank.of("migration")]


def sent_bytes(rank: Ran) -> np.ndarray:
    """Pooled bytes of each step [steps, ranks]."""
    return rank.rings.rows("steps")[..., rank.rings.labels["steps"]["columns"].index("output_dist_forward_bytes")]


@pytest.mark.distributed
@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("name", ["moved", "evaluated"])
def test_no_batch_is_lost_or_repeated_and_every_loss_is_the_same(ran: list, pipeline: str, name: str) -> None:
    for rank in ran:
        straight, moved = rank[pipeline]["straight"], rank[pipeline][name]
        assert len(straight.labels) == STEPS and len(set(straight.labels)) == STEPS
        assert moved.labels == straight.labels
        assert moved.losses == pytest.approx(straight.losses, rel=1e-6)
    assert len(moves(ran[0][pipeline][name])) == (2 if name == "moved" else 1)


@pytest.mark.distributed
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_after_a_fault_the_old_plan_trains_on_measured_as_before(ran: list, pipeline: str) -> None:
    for rank in ran:
        failed, straight = rank[pipeline]["failed"], rank[pipeline]["straight"]
        assert failed.labels == straight.labels
        assert failed.losses == pytest.approx(straight.losses, rel=1e-6)
    (first, is_first_made), (second, is_second_made) = moves(ran[0][pipeline]["failed"])
    assert not is_first_made and is_second_made and first < second
    for rank in ran:
        # Hooks that stayed on the old shards would count twice what is sent.
        measured, usual = sent_bytes(rank[pipeline]["failed"]), sent_bytes(rank[pipeline]["straight"])
        assert (measured[:second] == usual[:second]).all()
    fault = ran[0][pipeline]["failed"].of("migration")[0]
    assert fault["fault_rank"] == 1 and "planted fault" in fault["fault"] and fault["moved_bytes"] == 0


@pytest.mark.distributed
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_migration_is_told_once_with_its_figures(ran: list, pipeline: str) -> None:
    first, second = ran[0][pipeline]["moved"].of("migration")
    assert ran[1][pipeline]["moved"].of("migration") == []
    for number, record in enumerate((first, second), start=1):
        assert set(record) == RECORD_KEYS
        assert record["move"] == number and record["is_committed"] and record["reason"] == REASON
        assert record["fault"] is record["fault_rank"] is None and record["staging"] == "device"
        assert 0 < record["transfer_ms"] < record["pause_ms"] and record["announced_bytes"] > 0
        assert "training paused for" in record["message"]
    assert first["moved_bytes"] > 0
    # One node: rows in a node are rows over all ranks, so nothing travels.
    assert second["moved_bytes"] == 0


@pytest.mark.distributed
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_both_series_are_declared_anew_by_every_rank(ran: list, pipeline: str) -> None:
    for rank in ran:
        moved = rank[pipeline]["moved"]
        for name in ("steps", "shards"):
            times = [num_steps for each, num_steps, _ in moved.rings.declared if each == name]
            assert len(times) == 3 and times == sorted(set(times))
        labels = [labels for each, _, labels in moved.rings.declared if each == "shards"]
        assert labels[0] != labels[1] != labels[2]
        assert moved.rings.steps("steps") == list(range(1, STEPS + 1))


@pytest.mark.distributed
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_checkpoint_after_a_move_has_the_new_plan_and_goes_on(ran: list, folder: Path, pipeline: str) -> None:
    half, rest, straight = (ran[0][pipeline][name] for name in ("half", "rest", "straight"))
    plan = read_plan(Path(half.result["checkpoint"]))
    assert plan.to_dict() == plan_of(folder / "plans", "row_wise").to_dict()
    assert half.losses + rest.losses == pytest.approx(straight.losses, rel=1e-6)
    assert half.labels + rest.labels == straight.labels


@pytest.mark.distributed
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_stop_right_after_the_command_ends_the_run_under_the_old_plan(ran: list, folder: Path, pipeline: str) -> None:
    for rank in ran:
        stopped = rank[pipeline]["stopped"]
        assert stopped.result["result"] == "stopped" and len(stopped.losses) == stopped.result["step"] < 10
    stopped = ran[0][pipeline]["stopped"]
    assert moves(stopped) == [(stopped.result["step"], False)]
    old = make_job(folder / "plans").plan
    assert read_plan(Path(stopped.result["checkpoint"])).to_dict() == old.to_dict()


@pytest.mark.distributed
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_command_in_the_last_window_is_declined(ran: list, pipeline: str) -> None:
    late, straight = ran[0][pipeline]["late"], ran[0][pipeline]["straight"]
    (record,) = late.of("migration")
    assert set(record) == RECORD_KEYS and record["step"] == STEPS
    assert not record["is_committed"] and record["fault"] == "the job was over before it could begin"
    assert record["moved_bytes"] == 0 and late.losses == straight.losses


@pytest.mark.distributed
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_an_evaluation_due_at_the_step_of_a_move_happens(ran: list, pipeline: str) -> None:
    evaluated = ran[0][pipeline]["evaluated"]
    (record,) = evaluated.of("migration")
    steps = [each["step"] for each in evaluated.of("evaluation")]
    every = steps[0]
    assert record["step"] == every and record["is_committed"]
    assert steps == [*range(every, STEPS, every), STEPS]


@pytest.mark.distributed
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_held_out_losses_do_not_tell_the_plan(ran: list, pipeline: str) -> None:
    losses = [ran[0][pipeline][name].result["metrics"]["loss"] for name in ("straight", "moved", "rest")]
    assert np.ptp(losses) <= 1e-6 * losses[0]
