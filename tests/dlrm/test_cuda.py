"""The same trainer on one GPU with NCCL, held against a CPU rank."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from dlrm.job import TrainJob
from dlrm.step_columns import IDS, LOOKUP_FORWARD, OTHER, STEP, STEP_COLUMNS, StepColumns
from dlrm.timing import CudaClock
from dlrm.trainer import train
from planner.problem import PlanningProblem
from planner.search.registry import make_plan
from planner.tables import OptimizerKind, Workload
from planner.topology import Device, DeviceType, Link, Topology
from tests.dlrm.test_trainer import TRAIN, Place, Rings, make_job, window_losses
from tests.ranks import run_ranks

pytestmark = pytest.mark.gpu


def one_device_job(folder: Path, device: DeviceType, kind: str, **keys: object) -> TrainJob:
    """The job of the trainer's tests on a single device."""
    job = make_job(folder, "sgd", **keys)
    devices = (Device(0, "n0", 0, device, "test", 1 << 32, 0, 1e12, 1e13, 1e-5),)
    topology = Topology("test", devices, Link(1e11, 1e-5), Link(1e11, 1e-5))
    problem = PlanningProblem(Workload(job.tables, TRAIN.batch_size, OptimizerKind(kind)), topology)
    optimizer = dataclasses.replace(job.sparse_optimizer, kind=kind)
    return dataclasses.replace(
        job, sparse_optimizer=optimizer, plan=make_plan(problem, "size_greedy").plan, topology=topology
    )


def run_on(rank: int, world_size: int, device: str, jobs: list[TrainJob]) -> list[list[dict]]:
    found = []
    for job in jobs:
        place = Place(rank, world_size, device=device)
        train(place, job)
        found.append(list(place.outbox))
    return found


def watch_on(rank: int, world_size: int, device: str, job: TrainJob) -> tuple[list[dict], Rings]:
    place = Place(rank, world_size, device=device)
    train(place, job)
    return list(place.outbox), place.rings


@pytest.mark.parametrize("pipeline", ["base", "sparse_dist"])
@pytest.mark.parametrize("kind", ["rowwise_adagrad", "sgd"])
def test_a_gpu_learns_what_a_cpu_learns(tmp_path: Path, kind: str, pipeline: str) -> None:
    on_cpu = one_device_job(tmp_path / "cpu", DeviceType.CPU, kind)
    on_gpu = one_device_job(tmp_path / "gpu", DeviceType.CUDA, kind, pipeline=pipeline)
    (cpu,) = run_ranks(run_on, 1, "cpu", [on_cpu])[0]
    (gpu,) = run_ranks(run_on, 1, "cuda:0", [on_gpu], backend="cpu:gloo,cuda:nccl")[0]
    assert window_losses(gpu) == pytest.approx(window_losses(cpu), rel=1e-4)


@pytest.mark.parametrize("kind", ["rowwise_adagrad", "adam", "sgd"])
def test_a_resumed_run_on_a_gpu_equals_the_one_that_never_stopped(tmp_path: Path, kind: str) -> None:
    whole = one_device_job(tmp_path / "whole", DeviceType.CUDA, kind)
    half = one_device_job(tmp_path / "half", DeviceType.CUDA, kind, steps=10)
    rest = one_device_job(tmp_path / "rest", DeviceType.CUDA, kind)
    rest = dataclasses.replace(rest, resume=str(tmp_path / "half" / "step_00000010"))
    straight, first, second = run_ranks(run_on, 1, "cuda:0", [whole, half, rest], backend="cpu:gloo,cuda:nccl")[0]
    assert window_losses(first) + window_losses(second) == pytest.approx(window_losses(straight), rel=1e-4)


def test_the_clock_measures_the_devices_work_not_its_launch() -> None:
    clock, matrix = CudaClock(4, StepColumns()), torch.randn(4096, 4096, device="cuda")
    for repeats in (1, 50):
        clock.begin_step()
        clock.count(IDS, repeats)
        clock.enter(LOOKUP_FORWARD)
        for _ in range(repeats):
            matrix @ matrix
        clock.enter(OTHER)
        clock.end_step()
    assert clock.read().shape[0] == 0
    ms = clock.read()
    assert ms[:, len(STEP_COLUMNS) + IDS].tolist() == [1, 50]
    assert ms.shape[0] == 2 and ms[1, LOOKUP_FORWARD] > 5 * ms[0, LOOKUP_FORWARD]
    assert (ms[:, STEP] >= ms[:, LOOKUP_FORWARD]).all()
    assert clock.flush().shape[0] == 0


@pytest.mark.parametrize("pipeline", ["base", "sparse_dist"])
def test_the_phases_of_a_step_on_a_gpu_make_up_the_step(tmp_path: Path, pipeline: str) -> None:
    job = one_device_job(tmp_path, DeviceType.CUDA, "sgd", pipeline=pipeline)
    _, rings = run_ranks(watch_on, 1, "cuda:0", job, backend="cpu:gloo,cuda:nccl")[0]
    assert rings.steps("steps") == list(range(1, 21))
    times = np.median(rings.rows("steps")[10:, 0, : len(STEP_COLUMNS)], axis=0)
    assert times[STEP + 1 :].sum() == pytest.approx(times[STEP], rel=0.05) and times.min() > 0
