"""Clocks of one rank's steps: preallocated, and never in the step's way."""

import time
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from dlrm.shards import sharded_collections

# The columns of a rank's timings, everywhere they travel.
STEP_COLUMNS = ("step_ms", "data_wait_ms", "lookup_ms")
STEP, DATA_WAIT, LOOKUP = range(len(STEP_COLUMNS))


class PhaseClock(Protocol):
    """Measures phases of up to `window` steps between two reads."""

    def start(self, column: int) -> None:
        """A phase begins; phases may nest but not overlap themselves."""

    def stop(self, column: int) -> None:
        """The phase ends; its time adds to the current step's."""

    def next_step(self) -> None:
        """Later phases belong to the following step."""

    def read(self) -> np.ndarray:
        """Milliseconds `[steps, len(STEP_COLUMNS)]` since the last read; starts anew."""


class HostClock:
    """Phases by the monotonic clock: right on a CPU, where a call returns when its work is done."""

    def __init__(self, window: int) -> None:
        self._ms = np.zeros((window, len(STEP_COLUMNS)))
        self._began = np.zeros(len(STEP_COLUMNS), dtype=np.int64)
        self._step = 0

    def start(self, column: int) -> None:
        """See PhaseClock."""
        self._began[column] = time.perf_counter_ns()

    def stop(self, column: int) -> None:
        """See PhaseClock."""
        self._ms[self._step, column] += (time.perf_counter_ns() - self._began[column]) * 1e-6

    def next_step(self) -> None:
        """See PhaseClock."""
        self._step += 1

    def read(self) -> np.ndarray:
        """See PhaseClock."""
        ms = self._ms[: self._step].copy()
        self._ms[:] = 0.0
        self._step = 0
        return ms


class CudaClock:
    """Phases by CUDA events on the current stream; only waiting for data is timed by the host.

    Events are made on first use and reused in every later window. `read` waits for the device once.
    """

    def __init__(self, window: int) -> None:
        self._host = HostClock(window)
        self._events: list[list[list[tuple[Any, Any]]]] = [[[] for _ in STEP_COLUMNS] for _ in range(window)]
        self._used = np.zeros((window, len(STEP_COLUMNS)), dtype=np.int64)
        self._step = 0

    def start(self, column: int) -> None:
        """See PhaseClock."""
        if column == DATA_WAIT:
            return self._host.start(column)
        pairs, used = self._events[self._step][column], self._used[self._step, column]
        if used == len(pairs):
            pairs.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
        pairs[used][0].record()

    def stop(self, column: int) -> None:
        """See PhaseClock."""
        if column == DATA_WAIT:
            return self._host.stop(column)
        self._events[self._step][column][self._used[self._step, column]][1].record()
        self._used[self._step, column] += 1

    def next_step(self) -> None:
        """See PhaseClock."""
        self._host.next_step()
        self._step += 1

    def read(self) -> np.ndarray:
        """See PhaseClock."""
        torch.cuda.synchronize()
        ms = self._host.read()
        for step in range(self._step):
            for column in range(len(STEP_COLUMNS)):
                for begin, end in self._events[step][column][: self._used[step, column]]:
                    ms[step, column] += begin.elapsed_time(end)
        self._used[:] = 0
        self._step = 0
        return ms


def make_clock(device: torch.device, window: int) -> PhaseClock:
    """The clock that is right on `device`, for windows of up to `window` steps."""
    return CudaClock(window) if device.type == "cuda" else HostClock(window)


def time_lookups(model: nn.Module, clock: PhaseClock) -> None:
    """Let `clock` measure every fused lookup kernel of `model`, whichever pipeline calls it.

    TorchRec runs a sharded module as input_dist, then one lookup a sharding group, then output_dist; the
    hooks sit on the lookups, so the collectives around them are not counted. Evaluation is not timed.
    """

    def start(lookup: nn.Module, *_: object) -> None:
        if lookup.training:
            clock.start(LOOKUP)

    def stop(lookup: nn.Module, *_: object) -> None:
        if lookup.training:
            clock.stop(LOOKUP)

    for collection in sharded_collections(model):
        for lookup in collection._lookups:
            lookup.register_forward_pre_hook(start)
            lookup.register_forward_hook(stop)
