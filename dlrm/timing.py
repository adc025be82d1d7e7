"""Clocks of one rank's steps: at any moment of a step one phase has the time; preallocated, never in the step's way."""

import time
from typing import Protocol

import numpy as np
import torch

from dlrm.step_columns import COUNTERS, OTHER, STEP, STEP_COLUMNS, StepColumns

# The phase between two steps, which no column counts.
IDLE = -1


class PhaseClock(Protocol):
    """Measures up to `window` steps between two reads, columns as in `StepColumns`."""

    def begin_step(self) -> None:
        """A step begins, in the phase OTHER; what was timed since the last finished step is forgotten."""

    def enter(self, column: int) -> int:
        """From now on time belongs to this column; returns the one before. Does nothing between two steps."""

    def count(self, counter: int, amount: float) -> None:
        """Add to one of `COUNTERS` of this step."""

    def end_step(self) -> None:
        """The step is over and counts."""

    def cancel_step(self) -> None:
        """There was no batch left: what was timed since the last finished step is forgotten, and nothing more timed."""

    def read(self) -> np.ndarray:
        """The oldest window `[steps, columns]` whose times are known, without waiting; begins the next window.

        A CPU knows its times at once; a GPU those of the window before, and gives no steps the first time.
        """

    def flush(self) -> np.ndarray:
        """What no `read` has given yet, `[steps, columns]`, even if that takes waiting."""


class Table:
    """Numbers of up to `window` steps as lists, `row` being the present one's.

    Between two phases the processor's caches hold tensors, not code: adding to a list runs through far less of it than
    adding to an array, and takes a quarter of the time.
    """

    def __init__(self, window: int, num_columns: int) -> None:
        self._zeros = [0.0] * num_columns
        self._rows = [[0.0] * num_columns for _ in range(window)]
        self.row = self._rows[0]

    def begin(self, step: int) -> None:
        """Go to a step's row, all zeros."""
        self.row = self._rows[step]
        self.row[:] = self._zeros

    def take(self, num_steps: int) -> np.ndarray:
        """The first rows, float64 `[num_steps, columns]`."""
        return np.array(self._rows[:num_steps], dtype=np.float64).reshape(num_steps, len(self._zeros))


class HostClock:
    """Phases by the monotonic clock: right on a CPU, where a call returns when its work is done.

    The phases of a step add up to its `step_ms`.
    """

    def __init__(self, window: int, columns: StepColumns) -> None:
        self._columns = columns
        self._ns = Table(window, columns.num_times)
        self._counts = Table(window, len(COUNTERS))
        self._step = self._since = 0
        self._column = IDLE

    def begin_step(self) -> None:
        """See PhaseClock."""
        self._ns.begin(self._step)
        self._counts.begin(self._step)
        self._column = OTHER
        self._since = time.perf_counter_ns()

    def enter(self, column: int) -> int:
        """See PhaseClock."""
        before = self._column
        if before != IDLE:
            now = time.perf_counter_ns()
            self._ns.row[before] += now - self._since
            self._since, self._column = now, column
        return before

    def count(self, counter: int, amount: float) -> None:
        """See PhaseClock."""
        if self._column != IDLE:
            self._counts.row[counter] += amount

    def end_step(self) -> None:
        """See PhaseClock."""
        self.enter(IDLE)
        self._step += 1

    def cancel_step(self) -> None:
        """See PhaseClock."""
        self._column = IDLE

    def read(self) -> np.ndarray:
        """See PhaseClock."""
        ms = self._ns.take(self._step) * 1e-6
        ms[:, STEP] = ms.sum(axis=1)
        rows = _join(ms, self._columns, self._counts.take(self._step))
        self._step = 0
        return rows

    def flush(self) -> np.ndarray:
        """See PhaseClock."""
        return self.read()


class CudaClock:
    """Phases by CUDA events on the stream that computes; the phases of a step add up to its `step_ms`.

    A phase lasts from its event to the next one, so it holds the device's idling too, for want of work or for a
    collective of another stream: `data_wait_ms` is what waiting for data holds the device up. There are two banks of
    events: one is filled while the device works off the other, so that a read finds events of a window ago and does
    not wait. Events are made on first use and reused from then on.
    """

    def __init__(self, window: int, columns: StepColumns) -> None:
        self._columns = columns
        self._stream = torch.cuda.current_stream()
        self._filling, self._pending = _Bank(window), _Bank(window)
        self._column = IDLE

    def begin_step(self) -> None:
        """See PhaseClock."""
        self._filling.begin_step()
        self._column = OTHER
        self._filling.record(OTHER, self._stream)

    def enter(self, column: int) -> int:
        """See PhaseClock."""
        before = self._column
        if before != IDLE:
            self._column = column
            self._filling.record(column, self._stream)
        return before

    def count(self, counter: int, amount: float) -> None:
        """See PhaseClock."""
        if self._column != IDLE:
            self._filling.counts.row[counter] += amount

    def end_step(self) -> None:
        """See PhaseClock."""
        self.enter(IDLE)
        self._filling.num_steps += 1

    def cancel_step(self) -> None:
        """See PhaseClock."""
        self._column = IDLE

    def read(self) -> np.ndarray:
        """See PhaseClock."""
        rows = self._pending.take(self._columns)
        self._filling, self._pending = self._pending, self._filling
        return rows

    def flush(self) -> np.ndarray:
        """See PhaseClock."""
        return np.concatenate([self._pending.take(self._columns), self._filling.take(self._columns)])


class _Bank:
    """Events and counters of up to `window` steps."""

    def __init__(self, window: int) -> None:
        self.num_steps = 0
        self.counts = Table(window, len(COUNTERS))
        self._events: list[list[torch.cuda.Event]] = [[] for _ in range(window)]
        self._entered: list[list[int]] = [[] for _ in range(window)]

    def begin_step(self) -> None:
        """Forget what was recorded of an unfinished step."""
        self._entered[self.num_steps].clear()
        self.counts.begin(self.num_steps)

    def record(self, column: int, stream: "torch.cuda.Stream") -> None:
        """Put the next event of this step on the stream, whichever stream or thread the caller is on."""
        events, entered = self._events[self.num_steps], self._entered[self.num_steps]
        if len(entered) == len(events):
            events.append(torch.cuda.Event(enable_timing=True))
        events[len(entered)].record(stream)
        entered.append(column)

    def take(self, columns: StepColumns) -> np.ndarray:
        """The steps `[steps, columns]`, and empty the bank; waits for the last event, if the device is behind."""
        ms = np.zeros((self.num_steps, columns.num_times))
        if self.num_steps:
            last = self.num_steps - 1
            self._events[last][len(self._entered[last]) - 1].synchronize()
        for step, row in enumerate(ms):
            events, entered = self._events[step], self._entered[step]
            for index, column in enumerate(entered[:-1]):
                row[column] += events[index].elapsed_time(events[index + 1])
            row[STEP] = row.sum()
        rows = _join(ms, columns, self.counts.take(self.num_steps))
        self.num_steps = 0
        return rows


class NoClock:
    """Measures nothing, for runs without telemetry."""

    def begin_step(self) -> None:
        """See PhaseClock."""

    def enter(self, column: int) -> int:
        """See PhaseClock."""
        return IDLE

    def count(self, counter: int, amount: float) -> None:
        """See PhaseClock."""

    def end_step(self) -> None:
        """See PhaseClock."""

    def cancel_step(self) -> None:
        """See PhaseClock."""

    def read(self) -> np.ndarray:
        """No steps."""
        return np.zeros((0, 0))

    def flush(self) -> np.ndarray:
        """No steps."""
        return np.zeros((0, 0))


def make_clock(device: torch.device, window: int, columns: StepColumns) -> PhaseClock:
    """The clock that is right on `device`, for windows of up to `window` steps."""
    return CudaClock(window, columns) if device.type == "cuda" else HostClock(window, columns)


def _join(ms: np.ndarray, columns: StepColumns, counts: np.ndarray) -> np.ndarray:
    """Times `[steps, num_times]`, parts added to what they belong to, beside the counters of the same steps."""
    for part, (_, whole) in enumerate(columns.parts, start=len(STEP_COLUMNS)):
        ms[:, whole] += ms[:, part]
    return np.concatenate([ms, counts], axis=1)
