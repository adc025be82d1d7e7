"""Clocks of one rank's steps: at any moment of a step one phase has the time; preallocated, never in the step's way."""

import time
from typing import Protocol

import numpy as np
import torch

from planner.cost.estimator import PHASES

# The columns of a rank's timings, everywhere they travel: the step, waiting for data, and the phases of
# `planner.cost.estimator.PHASES` in their order. These do not overlap; `dlrm.phases` says where each begins.
STEP_COLUMNS = ("step_ms", "data_wait_ms", *(f"{phase}_ms" for phase in PHASES))
(
    STEP,
    DATA_WAIT,
    INPUT_DIST,
    LOOKUP_FORWARD,
    OUTPUT_DIST_FORWARD,
    DENSE_FORWARD,
    DENSE_BACKWARD,
    OUTPUT_DIST_BACKWARD,
    LOOKUP_BACKWARD,
    ALL_REDUCE,
    OPTIMIZER,
    OTHER,
) = range(len(STEP_COLUMNS))
# The phase between two steps, which no column counts.
IDLE = -1


class PhaseClock(Protocol):
    """Measures the phases of up to `window` steps between two reads."""

    def begin_step(self) -> None:
        """A step begins, in the phase OTHER; what was timed since the last finished step is forgotten."""

    def enter(self, column: int) -> int:
        """From now on time belongs to this phase; returns the phase before. Does nothing between two steps."""

    def end_step(self) -> None:
        """The step is over and counts."""

    def read(self) -> np.ndarray:
        """Milliseconds `[steps, len(STEP_COLUMNS)]` of the steps finished since the last read; starts anew."""


class HostClock:
    """Phases by the monotonic clock: right on a CPU, where a call returns when its work is done.

    The phases of a step add up to its `step_ms`.
    """

    def __init__(self, window: int) -> None:
        self._ns = np.zeros((window, len(STEP_COLUMNS)), dtype=np.int64)
        self._step = self._since = 0
        self._column = IDLE

    def begin_step(self) -> None:
        """See PhaseClock."""
        self._ns[self._step] = 0
        self._column = OTHER
        self._since = time.perf_counter_ns()

    def enter(self, column: int) -> int:
        """See PhaseClock."""
        before = self._column
        if before != IDLE:
            now = time.perf_counter_ns()
            self._ns[self._step, before] += now - self._since
            self._since, self._column = now, column
        return before

    def end_step(self) -> None:
        """See PhaseClock."""
        self.enter(IDLE)
        self._step += 1

    def read(self) -> np.ndarray:
        """See PhaseClock."""
        ms = self._ns[: self._step] * 1e-6
        ms[:, STEP] = ms.sum(axis=1)
        self._step = 0
        return ms


class CudaClock:
    """Phases by CUDA events on the stream that computes; only waiting for data is timed by the host.

    A phase lasts from its event to the next one, so it holds the device's idling too, for want of work or for a
    collective of another stream. `data_wait_ms` is the host's and runs beside the others, which add up to `step_ms`
    without it. Events are made on first use and reused in every later window. `read` waits for the device once.
    """

    def __init__(self, window: int) -> None:
        self._stream = torch.cuda.current_stream()
        self._events: list[list[torch.cuda.Event]] = [[] for _ in range(window)]
        self._columns: list[list[int]] = [[] for _ in range(window)]
        self._data_wait_ns = np.zeros(window, dtype=np.int64)
        self._step = self._since = 0
        self._column = IDLE

    def begin_step(self) -> None:
        """See PhaseClock."""
        self._columns[self._step].clear()
        self._data_wait_ns[self._step] = 0
        self._column = OTHER
        self._record(OTHER)

    def enter(self, column: int) -> int:
        """See PhaseClock."""
        before = self._column
        if before == IDLE:
            return before
        if before == DATA_WAIT:
            self._data_wait_ns[self._step] += time.perf_counter_ns() - self._since
        self._column = column
        if column == DATA_WAIT:
            self._since = time.perf_counter_ns()
        else:
            self._record(column)
        return before

    def end_step(self) -> None:
        """See PhaseClock."""
        self.enter(IDLE)
        self._step += 1

    def read(self) -> np.ndarray:
        """See PhaseClock."""
        torch.cuda.synchronize()
        ms = np.zeros((self._step, len(STEP_COLUMNS)))
        for step, row in enumerate(ms):
            events, columns = self._events[step], self._columns[step]
            for index, column in enumerate(columns[:-1]):
                row[column] += events[index].elapsed_time(events[index + 1])
            row[STEP] = row.sum()
        ms[:, DATA_WAIT] = self._data_wait_ns[: self._step] * 1e-6
        self._step = 0
        return ms

    def _record(self, column: int) -> None:
        """Put the next event of this step on the stream, whichever stream or thread the caller is on."""
        events, columns = self._events[self._step], self._columns[self._step]
        if len(columns) == len(events):
            events.append(torch.cuda.Event(enable_timing=True))
        events[len(columns)].record(self._stream)
        columns.append(column)


def make_clock(device: torch.device, window: int) -> PhaseClock:
    """The clock that is right on `device`, for windows of up to `window` steps."""
    return CudaClock(window) if device.type == "cuda" else HostClock(window)
