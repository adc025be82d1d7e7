"""Blocks of steps with and without telemetry, taken in turns by the same ranks; and what their times say."""

import gc
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlrm.config import TelemetryConfig
from dlrm.job import TrainJob
from launcher.bench.steps import measure_canary

if TYPE_CHECKING:
    from dlrm.trainer import Place, Trainer

ON, OFF = ARMS = ("on", "off")
# The driver handles what it fetched about a second later, in the block after: so long each block runs before it counts.
# The rest is short, so that the two blocks of a pair find the machine alike, but many times a step's own spread.
WASH_IN_STEPS, TIMED_STEPS = 40, 60
# Made beforehand, as for measured steps, and used in turns by both arms.
NUM_BATCHES = 50
NUM_RESAMPLES = 2_000
MS_PER_S = 1e3


@dataclass(frozen=True, eq=False)
class ArmTimes:
    """What one rank measured of one arm, block by block, P blocks.

    Attributes:
        spans_s: Begin and end of the timed steps [P, 2] by this machine's monotonic clock.
        cpu_s: CPU seconds [P] of this process in them, all threads.
        canary_ms: The canary [P] before each block.
    """

    spans_s: NDArray[np.float64]
    cpu_s: NDArray[np.float64]
    canary_ms: NDArray[np.float64]

    @property
    def step_ms(self) -> NDArray[np.float64]:
        """Wall time of a step [P]."""
        return (self.spans_s[:, 1] - self.spans_s[:, 0]) * MS_PER_S / TIMED_STEPS


def time_arms(place: "Place", job: TrainJob, num_pairs: int) -> dict[str, ArmTimes]:
    """Train by turns on one rank with telemetry and without: on, off, off, on, ... Collective."""
    found: dict[str, list[tuple[float, ...]]] = {arm: [] for arm in ARMS}
    for pair in range(num_pairs):
        order = ARMS if pair % 2 == 0 else ARMS[::-1]
        for arm, block in zip(order, _time_pair(place, job, order), strict=True):
            found[arm].append(block)
        # A model and its process groups hold each other; the next pair needs the memory.
        gc.collect()
    return {arm: _arm_times(np.array(rows)) for arm, rows in found.items()}


def _time_pair(place: "Place", job: TrainJob, order: Sequence[str]) -> list[tuple[float, ...]]:
    """A block of each arm, with models of their own. Collective.

    Where a model lies in memory makes its steps up to some percent faster or slower for as long as it lives: two models
    for all pairs would differ by more than telemetry costs, with or without it.
    """
    # The commands that only read their options need no torch.
    from dlrm.trainer import Trainer

    with ExitStack() as stack:
        trainers = [
            stack.enter_context(closing(Trainer(place, replace(job, telemetry=TelemetryConfig(enabled=arm == ON)))))
            for arm in order
        ]
        made = list(islice(trainers[0].train_stream, NUM_BATCHES))
        return [_time_block(trainer, cycle(made)) for trainer in trainers]


def _arm_times(rows: NDArray[np.float64]) -> ArmTimes:
    return ArmTimes(rows[:, :2], rows[:, 2], rows[:, 3])


def _time_block(trainer: "Trainer", batches: Any) -> tuple[float, float, float, float]:
    """Begin, end and CPU seconds of the timed steps, and the canary's milliseconds. Collective."""
    import torch.distributed as dist

    canary_ms = measure_canary()
    _train(trainer, batches, WASH_IN_STEPS)
    dist.barrier()
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    _train(trainer, batches, TIMED_STEPS)
    dist.barrier()
    return began_s, time.monotonic(), time.process_time() - began_cpu_s, canary_ms


def _train(trainer: "Trainer", batches: Any, num_steps: int) -> None:
    window_steps = trainer.job.train.window_steps
    for first in range(0, num_steps, window_steps):
        trainer.time_steps(list(islice(batches, min(window_steps, num_steps - first))))


@dataclass(frozen=True, eq=False)
class CpuLog:
    """CPU seconds that a process had used, at moments of the monotonic clock.

    Attributes:
        at_s: The moments, increasing.
        used_s: What had been used by then.
    """

    at_s: Sequence[float]
    used_s: Sequence[float]

    def used_in(self, spans_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """CPU seconds used in each span [P] of `spans_s` [P, 2]; use between two moments is taken as even."""
        return np.diff(np.interp(spans_s, self.at_s, self.used_s), axis=1)[:, 0]


def summarise(ranks: Sequence[Mapping[str, ArmTimes]], driver: CpuLog, seed: int = 0) -> dict[str, Any]:
    """What `bench overhead --json` prints, from every rank's times in rank order.

    `overhead` is the median over pairs of the step's time with telemetry over that without, less 1, and `spread` the
    inter-quartile range of these ratios; `interval` holds the median with 95 % by bootstrap over pairs. Beside them the
    spread of the canary's ratio, which telemetry cannot move, and what a step costs in each arm: wall time, CPU time
    of all ranks together (`worker_cpu_overhead` and its interval, as for `overhead`), CPU time of the driver.
    """
    first = ranks[0]
    ratios = first[ON].step_ms / first[OFF].step_ms - 1
    cpu_ratios = _cpu_ms(ranks, ON) / _cpu_ms(ranks, OFF) - 1
    canaries = np.array([rank[ON].canary_ms / rank[OFF].canary_ms for rank in ranks]).mean(axis=0)
    return {
        "overhead": float(np.median(ratios)),
        "spread": _quartile_range(ratios),
        "interval": _bootstrap(ratios, seed),
        "canary_spread": _quartile_range(canaries),
        "worker_cpu_overhead": float(np.median(cpu_ratios)),
        "worker_cpu_interval": _bootstrap(cpu_ratios, seed),
        "pairs": len(ratios),
        "steps_per_block": TIMED_STEPS,
        **{arm: _describe(ranks, arm, driver) for arm in ARMS},
    }


def _describe(ranks: Sequence[Mapping[str, ArmTimes]], arm: str, driver: CpuLog) -> dict[str, float]:
    times = ranks[0][arm]
    return {
        "step_ms": float(np.median(times.step_ms)),
        "worker_cpu_ms": float(np.median(_cpu_ms(ranks, arm))),
        # Its work comes in bursts once a second, so that single blocks say little.
        "driver_cpu_ms": float(driver.used_in(times.spans_s).mean()) * MS_PER_S / TIMED_STEPS,
    }


def _cpu_ms(ranks: Sequence[Mapping[str, ArmTimes]], arm: str) -> NDArray[np.float64]:
    """CPU milliseconds a step [P], of all ranks together."""
    return np.sum([rank[arm].cpu_s for rank in ranks], axis=0) * MS_PER_S / TIMED_STEPS


def _quartile_range(values: NDArray[np.float64]) -> float:
    low, high = np.percentile(values, [25, 75])
    return float(high - low)


def _bootstrap(values: NDArray[np.float64], seed: int) -> list[float]:
    """The median's interval of 95 %. Source: Efron 1979, percentile bootstrap."""
    drawn = np.random.default_rng(seed).choice(values, (NUM_RESAMPLES, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return [float(low), float(high)]
