"""The phase clock on real gloo ranks: every phase has its column, and a delay shows where it was planted."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.hooks import RemovableHandle

from dlrm.data.batches import Batch
from dlrm.shards import sharded_collections
from dlrm.step_columns import OTHER, STEP, STEP_COLUMNS, StepColumns
from dlrm.timing import IDLE, HostClock
from dlrm.trainer import Trainer
from planner.cost.estimator import PHASES
from tests.dlrm.test_trainer import Place, make_job
from tests.ranks import run_ranks

NUM_STEPS = 6
DELAY_S = 0.05
# The pipeline fills in the first step and takes no data in the last two.
STEADY = slice(1, -2)
# A replicated table is looked up where its samples are: nothing is exchanged for it.
WITHOUT_EXCHANGE = {"input_dist_ms", "output_dist_forward_ms", "output_dist_backward_ms"}


def sleep(*_: object) -> None:
    time.sleep(DELAY_S)


def slow_backward(_module: Any, _inputs: Any, output: Any) -> None:
    output.grad_fn.register_prehook(sleep)


class SlowBatches(list):
    """Batches that are late."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            sleep()
            yield batch


def kernels(trainer: Trainer) -> list[Any]:
    return [kernel for lookup in sharded_collections(trainer.rig.model)[0]._lookups for kernel in lookup._emb_modules]


def module(trainer: Trainer, name: str) -> Any:
    return getattr(trainer.rig.model.module.model, name)


def dense_optimizer(trainer: Trainer) -> torch.optim.Optimizer:
    return next(optimizer for key, optimizer in trainer.rig.optimizer.optimizers if key == "dense")._optimizer


# Where a delay is planted, by the column it must show in: one place of every step, on rank 1 alone.
PLANTS: dict[str, Callable[[Trainer], RemovableHandle]] = {
    "input_dist_ms": lambda t: sharded_collections(t.rig.model)[0]._input_dists[0].register_forward_pre_hook(sleep),
    "lookup_forward_ms": lambda t: kernels(t)[0].register_forward_pre_hook(sleep),
    "output_dist_forward_ms": lambda t: (
        sharded_collections(t.rig.model)[0]._output_dists[0].register_forward_hook(sleep)
    ),
    "dense_forward_ms": lambda t: module(t, "over_arch").register_forward_pre_hook(sleep),
    "dense_backward_ms": lambda t: module(t, "over_arch").register_forward_hook(slow_backward),
    "lookup_backward_ms": lambda t: kernels(t)[0].register_forward_hook(slow_backward),
    "optimizer_ms": lambda t: dense_optimizer(t).register_step_pre_hook(sleep),
    # The bottom MLP has the last gradients of a step.
    "late gradient": lambda t: next(module(t, "dense_arch").parameters()).register_hook(sleep),
}


@contextmanager
def open_trainer(place: Place, folder: Path, types: str | None = None, **keys: Any) -> Iterator[Trainer]:
    """A trainer under a plan of `make_job`."""
    job = make_job(folder, types=types, steps=None, window_steps=NUM_STEPS, **keys)
    with closing(Trainer(place, job)) as trainer:
        yield trainer


def time_whole_steps(trainer: Trainer, batches: list[Batch]) -> tuple[float, float]:
    """Milliseconds of all steps by a clock outside, and by the sum of their phases."""
    outside_ms, take_step = [], trainer._take_step

    def timed(feed: Iterator[Batch]) -> bool:
        began_s = time.perf_counter()
        was_taken = take_step(feed)
        outside_ms.append(1e3 * (time.perf_counter() - began_s))
        return was_taken

    trainer._take_step = timed
    rows = trainer.time_steps(batches)
    trainer._take_step = take_step
    return sum(outside_ms[:NUM_STEPS]), rows[:, 1:].sum()


def measure_all(rank: int, world_size: int, folder: Path) -> dict[str, np.ndarray]:
    """Timings `[steps, columns]` of this rank, by case; one start of the ranks serves all tests."""
    place, found = Place(rank, world_size), {}
    for types in ("data_parallel", "mixed"):
        with open_trainer(place, folder, types) as trainer:
            found[types] = trainer.time_steps(list(islice(trainer.train_stream, NUM_STEPS)))
    with open_trainer(place, folder, pipeline="sparse_dist") as trainer:
        found["sparse_dist"] = trainer.time_steps(list(islice(trainer.train_stream, NUM_STEPS)))
    with open_trainer(place, folder) as trainer:
        batches = list(islice(trainer.train_stream, NUM_STEPS))
        found["whole"] = trainer.time_steps(batches)
        found["clocks"] = np.array(time_whole_steps(trainer, batches))
        for name, plant in PLANTS.items():
            handle = plant(trainer) if rank == 1 else None
            found[name] = trainer.time_steps(batches)
            if handle:
                handle.remove()
        found["data_wait_ms"] = trainer.time_steps(SlowBatches(batches) if rank == 1 else batches)
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    return run_ranks(measure_all, 2, tmp_path_factory.mktemp("phases"))


def least_ms(rows: np.ndarray) -> dict[str, float]:
    """Of every column the least of the steady steps, which no chance disturbance raises."""
    return dict(zip(STEP_COLUMNS, rows[STEADY].min(axis=0), strict=True))


@pytest.mark.distributed
@pytest.mark.parametrize("plan", ["whole", "mixed", "sparse_dist", "data_parallel"])
def test_every_phase_is_there_and_they_make_up_the_step(measured: list[dict[str, np.ndarray]], plan: str) -> None:
    for rank in measured:
        rows = rank[plan]
        assert rows.shape == (NUM_STEPS, len(STEP_COLUMNS))
        assert rows[:, 1:].sum(axis=1) == pytest.approx(rows[:, STEP])
        assert np.median(rows[STEADY, OTHER] / rows[STEADY, STEP]) < 0.1
        must_be = set(STEP_COLUMNS) - (WITHOUT_EXCHANGE if plan == "data_parallel" else set())
        assert all(least_ms(rows)[column] > 0 for column in must_be)


@pytest.mark.distributed
def test_phases_add_up_to_the_time_that_passes(measured: list[dict[str, np.ndarray]]) -> None:
    for rank in measured:
        outside_ms, phases_ms = rank["clocks"]
        assert phases_ms == pytest.approx(outside_ms, rel=0.05)


@pytest.mark.distributed
@pytest.mark.parametrize("column", [*(name for name in PLANTS if name in STEP_COLUMNS), "data_wait_ms"])
def test_a_delay_shows_where_it_was_planted(measured: list[dict[str, np.ndarray]], column: str) -> None:
    delayed = least_ms(measured[1][column])
    assert {name for name, ms in delayed.items() if ms >= 1e3 * DELAY_S} == {"step_ms", column}


@pytest.mark.distributed
def test_the_other_rank_loses_the_time_in_the_next_collective(measured: list[dict[str, np.ndarray]]) -> None:
    waiting = {name: least_ms(measured[0][name]) for name in ("lookup_forward_ms", "late gradient")}
    assert waiting["lookup_forward_ms"]["output_dist_forward_ms"] >= 0.5e3 * DELAY_S
    assert waiting["lookup_forward_ms"]["lookup_forward_ms"] < 0.5e3 * DELAY_S
    assert waiting["late gradient"]["all_reduce_ms"] >= 0.5e3 * DELAY_S
    assert least_ms(measured[1]["late gradient"])["dense_backward_ms"] >= 1e3 * DELAY_S


def test_columns_name_the_planners_phases() -> None:
    assert [f"{phase}_ms" for phase in PHASES] == list(STEP_COLUMNS[2:])


def test_the_clock_counts_finished_steps_only() -> None:
    clock = HostClock(2, StepColumns())
    assert clock.enter(3) == IDLE
    clock.begin_step()
    clock.enter(2)
    clock.begin_step()
    assert clock.enter(4) == OTHER and clock.enter(OTHER) == 4
    clock.end_step()
    rows = clock.read()
    assert rows.shape == (1, len(StepColumns().names)) and rows[0, 2] == rows[0, 3] == 0 and rows[0, 4] > 0
    assert clock.read().shape[0] == 0
