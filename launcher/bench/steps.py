"""Measures steps of many model configurations through the real trainer, one group of workers for all of them."""

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cluster.session import open_session
from cluster.worker_group import WorkerGroup
from dlrm.job import TrainJob
from dlrm.step_columns import STEP, STEP_COLUMNS
from launcher.bench.step_configs import WARMUP_STEPS
from launcher.bench.step_measurement import MeasurementFile, StepMeasurement, config_key
from launcher.controller import POLL_S
from launcher.preparation import Prepared, prepare
from launcher.run_dir import RunDir
from launcher.schema import RunConfig
from planner.profile import Timing

if TYPE_CHECKING:
    from dlrm.place import Place

# The canary: a square product of this size, and this many bags gathered from a table of this size.
CANARY_SIZE = 320
CANARY_ROWS, CANARY_COLS, CANARY_IDS = 1 << 17, 64, 1 << 14
CANARY_REPEATS = 25


@dataclass(frozen=True)
class RankTimes:
    """What one rank measured.

    Attributes:
        steps_ms: float64 [steps, len(STEP_COLUMNS)], warm-up not counted.
        canary_before_ms: Median of the canary before the steps.
        canary_after_ms: And after them.
    """

    steps_ms: np.ndarray
    canary_before_ms: float
    canary_after_ms: float


def measure_steps(
    configs: Sequence[RunConfig], path: Path, progress: Callable[[str], None]
) -> tuple[StepMeasurement, ...]:
    """The measurements of all configurations, in their order; those that `path` lacks are made and appended to it.

    All are run by the same workers, of the first configuration's cluster. A second call goes on where the first was
    broken off.

    Args:
        configs: As `step_configs.draw_configs` gives them; the same `cluster` section in all of them.
        path: A file of JSON lines.
        progress: Is told of every configuration.

    Raises:
        ValueError: The file holds other lines.
        ClusterError, WorkerFailure, ConfigError, DataError, PlanningError: As in training.
    """
    file = MeasurementFile(path)
    found = {measurement.key: measurement for measurement in file.read()}
    missing = [config for config in configs if config_key(config) not in found]
    if len(missing) < len(configs):
        progress(f"{len(configs) - len(missing)} of {len(configs)} configurations are in {path}")
    with ExitStack() as stack:
        group: WorkerGroup | None = None
        for number, config in enumerate(missing, start=1):
            if group is None:
                stack.enter_context(open_session(config.cluster.address))
            prepared = prepare(deepcopy(config), topology_path=None)
            if group is None:
                assert prepared.inventory is not None
                group = stack.enter_context(WorkerGroup.start(prepared.inventory))
            measurement = found[config_key(config)] = measure_step(group, prepared, config)
            file.append(measurement)
            progress(f"{number}/{len(missing)}  {describe(measurement)}")
    return tuple(found[config_key(config)] for config in configs)


def describe(measurement: StepMeasurement) -> str:
    """One line for people."""
    config, step = measurement.config, measurement.step
    wait_ms = measurement.column_ms("data_wait_ms").max()
    return (
        f"{len(measurement.plan.tables)} tables, batch {config.train.batch_size}, {config.model.arch}: step "
        f"{step.median_ms:.1f} ms (IQR {step.iqr_ms:.1f}), waiting for data {wait_ms:.2f} ms"
    )


def measure_step(group: WorkerGroup, prepared: Prepared, config: RunConfig) -> StepMeasurement:
    """The steps of one configuration, of which `prepared` is the plan, on the ranks of `group`."""
    group.run(time_job, prepared.job(RunDir(Path(config.run.dir))), WARMUP_STEPS)
    while not group.wait(POLL_S):
        pass
    ranks: tuple[RankTimes, ...] = group.join()
    slowest_ms = np.max([rank.steps_ms[:, STEP] for rank in ranks], axis=0)
    low, middle, high = np.percentile(slowest_ms, [25, 50, 75])
    return StepMeasurement(
        config=config,
        plan=prepared.planned.plan,
        step=Timing(float(middle), float(high - low), len(slowest_ms)),
        columns=STEP_COLUMNS,
        columns_ms=tuple(tuple(np.median(rank.steps_ms, axis=0).tolist()) for rank in ranks),
        canary_before_ms=tuple(rank.canary_before_ms for rank in ranks),
        canary_after_ms=tuple(rank.canary_after_ms for rank in ranks),
    )


def time_job(place: "Place", job: TrainJob, num_warmup: int) -> RankTimes:
    """Train `job` to its last step on one rank, with the canary before and after. Collective.

    All batches are made before the first step. Where there are no more cores than ranks, their making would take turns
    with the training, by an amount that says nothing of the plan.
    """
    # Drawing and planning configurations need no torch.
    from dlrm.trainer import Trainer

    assert job.train.steps is not None
    with closing(Trainer(place, job)) as trainer:
        batches = list(islice(trainer.train_stream, job.train.steps))
        before_ms = measure_canary()
        steps_ms = trainer.time_steps(batches)[num_warmup:]
        after_ms = measure_canary()
    # A model and its process groups hold each other; the next job needs the memory.
    del trainer, batches
    gc.collect()
    return RankTimes(steps_ms, before_ms, after_ms)


def measure_canary() -> float:
    """Median milliseconds of a fixed matrix product and a fixed gather, while all ranks do the same. Collective."""
    import torch
    import torch.distributed as dist

    generator = torch.Generator().manual_seed(0)
    matrix = torch.rand(CANARY_SIZE, CANARY_SIZE, generator=generator)
    table = torch.ones(CANARY_ROWS, CANARY_COLS)
    ids = torch.randint(CANARY_ROWS, (CANARY_IDS, 1), generator=generator)
    dist.barrier()
    times_ms = []
    for _ in range(CANARY_REPEATS):
        began_s = time.perf_counter()
        matrix @ matrix
        torch.nn.functional.embedding_bag(ids, table, mode="sum")
        times_ms.append(1e3 * (time.perf_counter() - began_s))
    return float(np.median(times_ms))
