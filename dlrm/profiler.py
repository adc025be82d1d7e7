"""A profile of a few steps on request: torch's trace of one rank, with our phases as labelled slices, for Perfetto.

torch's own ranges (`record_function`) cannot label the phases. A phase begins on one thread and ends on another where
autograd runs on a thread of its own, and a range closed on another thread never ends in the trace (torch 2.13 marks it
`finished: false` and draws it to the end of the profile). Phases also begin inside the operator that a hook belongs to
and end inside another, and Perfetto drops slices of a thread that overlap so (its FAQ, "overlapping events in JSON
traces"). Hence the phases have a track of their own, beside the threads, by the host's clock: on a GPU they show when
work was launched, and the arrows of the trace lead to its kernels.
"""

import gzip
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

from dlrm.config import ProfilerConfig, parse_steps
from dlrm.step_columns import OTHER
from dlrm.timing import PhaseClock

# The track of the phases: no thread of Linux has this number, and the tracks of a process stand in the order of theirs.
# Source: proc_pid(5) and proc_sys_kernel(5), pid_max is at most 2^22.
PHASE_TRACK = 2**22 + 1
# Slices that follow each other are kept this far apart: times travel as fractions of a microsecond, and rounded to a ns
# again, the end of one could come after the beginning of the next.
GAP_NS = 2
# zlib's middle: level 9, the default of gzip, takes several times as long for a file that is little smaller.
GZIP_LEVEL = 6


class PhaseLog:
    """When each phase of each step began, in ns of the system's clock, which torch's trace goes by too.

    Attributes:
        step: The step that is to come or under way.
        last_step: The last one that was finished, 0 before the first.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """An empty log; `names` are the columns that the clock is told of."""
        self.step = self.last_step = 0
        self._names = [name.replace("_ms", "") for name in names]
        self._steps: list[tuple[int, list[tuple[int, int]], int]] = []
        self._open: list[tuple[int, int]] = []

    def begin_step(self) -> None:
        """The step begins; an unfinished one before it is forgotten, as by the clock."""
        self._open = [(time.time_ns(), OTHER)]

    def enter(self, column: int) -> None:
        """A phase begins, unless this is between two steps."""
        if self._open:
            self._open.append((time.time_ns(), column))

    def cancel_step(self) -> None:
        """There was no batch left for the step."""
        self._open = []

    def end_step(self) -> None:
        """The step is over; nothing happens between two steps."""
        if self._open:
            self._steps.append((self.step, self._open, time.time_ns()))
            self._open, self.last_step = [], self.step

    def to_events(self, base_ns: int) -> list[dict[str, Any]]:
        """Slices of the finished steps with times from `base_ns` on: one a step, and within it one a phase.

        Source: "Trace Event Format" (Chrome), complete and metadata events; times are in microseconds.
        """
        track = {"pid": os.getpid(), "tid": PHASE_TRACK}
        events: list[dict[str, Any]] = [{"ph": "M", "name": "thread_name", "args": {"name": "phases"}, **track}]

        def add(name: str, kind: str, begin_ns: int, end_ns: int) -> None:
            times = {"ts": (begin_ns - base_ns) / 1e3, "dur": max(0, end_ns - begin_ns) / 1e3}
            events.append({"ph": "X", "cat": kind, "name": name, **times, **track})

        for step, marks, end_ns in self._steps:
            add(f"step {step}", "step", marks[0][0], end_ns)
            ends = [*(begin_ns for begin_ns, _ in marks[1:]), end_ns]
            for (begin_ns, column), phase_end_ns in zip(marks, ends, strict=True):
                add(self._names[column], "phase", begin_ns, phase_end_ns - GAP_NS)
        return events


class LabelledClock:
    """A clock that also tells the log of a profile, while there is one; else it costs a look and a call a phase."""

    def __init__(self, clock: PhaseClock, names: Sequence[str]) -> None:
        """Stand before `clock`, whose columns have these names."""
        self._clock, self.names = clock, names
        self.log: PhaseLog | None = None

    def begin_step(self) -> None:
        """See PhaseClock."""
        if self.log is not None:
            self.log.begin_step()
        self._clock.begin_step()

    def enter(self, column: int) -> int:
        """See PhaseClock."""
        if self.log is not None:
            self.log.enter(column)
        return self._clock.enter(column)

    def count(self, counter: int, amount: float) -> None:
        """See PhaseClock."""
        self._clock.count(counter, amount)

    def cancel_step(self) -> None:
        """See PhaseClock."""
        if self.log is not None:
            self.log.cancel_step()
        self._clock.cancel_step()

    def end_step(self) -> None:
        """See PhaseClock."""
        self._clock.end_step()
        if self.log is not None:
            self.log.end_step()

    def read(self) -> np.ndarray:
        """See PhaseClock."""
        return self._clock.read()

    def flush(self) -> np.ndarray:
        """See PhaseClock."""
        return self._clock.flush()


class StepProfiler:
    """Profiles the steps `first_step` to `last_step` of one rank, once; between them a step costs as without it.

    All calls come from the thread that trains, whose work and whose autograd's work is in the trace. Writing it holds
    this rank up after the last step, and so the others in the next collective; no step's time counts it.

    Attributes:
        path: The trace, once it is written.
    """

    def __init__(self, first_step: int, last_step: int, folder: Path, rank: int, device: torch.device) -> None:
        """Load what profiling needs, which takes a second or more, so that no step has to wait for it."""
        self._steps = range(first_step, last_step + 1)
        self._folder, self._rank = folder, rank
        self._activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            self._activities.append(ProfilerActivity.CUDA)
        self._clock: LabelledClock | None = None
        self._recording: _Recording | None = None
        self.path: Path | None = None
        with profile(activities=self._activities):
            pass

    def label(self, clock: PhaseClock, names: Sequence[str]) -> PhaseClock:
        """The clock to be told of phases in place of `clock`; `names` are those of its columns."""
        self._clock = LabelledClock(clock, names)
        if self._recording is not None:
            self._clock.log = self._recording.log
        return self._clock

    def at_step(self, step: int) -> str | None:
        """Hear that this step comes next; gives what to tell the user, if a trace was written before it."""
        if step in self._steps:
            recording = self._recording or self._begin()
            recording.mark(step)
            return None
        return self.close() if self._recording is not None else None

    def close(self) -> str | None:
        """Write what was recorded, if the run ends between the first and the last step; gives what to tell the user."""
        wanted, self._steps = self._steps, range(0)
        recording, self._recording = self._recording, None
        if recording is None:
            return f"no step from {wanted[0]} to {wanted[-1]} came, so there is no profile of them" if wanted else None
        if self._clock is not None:
            self._clock.log = None
        first, last = recording.steps
        path = self._folder / f"rank_{self._rank:02d}_steps_{first}-{last}.json.gz"
        try:
            recording.write(path)
        except OSError as error:  # a full disk, say: no reason to end the training
            return f"the profile of steps {first} to {last} on rank {self._rank} is lost: {error}"
        self.path = path
        return f"steps {first} to {last} on rank {self._rank} are profiled: open {path} at ui.perfetto.dev"

    def _begin(self) -> "_Recording":
        names = self._clock.names if self._clock is not None else ()
        self._recording = recording = _Recording(self._activities, PhaseLog(names))
        if self._clock is not None:
            self._clock.log = recording.log
        return recording


def make_profiler(config: ProfilerConfig, folder: Path, rank: int, device: torch.device) -> StepProfiler | None:
    """The profiler that a configuration asks for on this rank, if it does."""
    if config.steps is None or rank not in config.ranks:
        return None
    return StepProfiler(*parse_steps(config.steps), folder, rank, device)


class _Recording:
    """A profile under way.

    Attributes:
        log: The phases.
    """

    def __init__(self, activities: Sequence[ProfilerActivity], log: PhaseLog) -> None:
        self.log = log
        self._first_step = 0
        self._range: record_function | None = None
        self._profile = profile(activities=activities)
        self._profile.start()

    @property
    def steps(self) -> tuple[int, int]:
        """The first and the last step in it; without phases nobody tells whether the last one was finished."""
        return self._first_step, self.log.last_step or self.log.step

    def mark(self, step: int) -> None:
        """A step begins: a range with the name by which torch's own tools know a step."""
        if step == self.log.step:  # there was no batch for it at the end of a leg, and there is one now
            return
        self._end_range()
        self._first_step = self._first_step or step
        self.log.step = step
        self._range = record_function(f"ProfilerStep#{step}")
        self._range.__enter__()

    def write(self, path: Path) -> None:
        """Stop, and write the trace beside its place before it is put there."""
        self._end_range()
        self._profile.stop()
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            raw, packed = Path(scratch, "raw.json"), Path(scratch, path.name)
            self._profile.export_chrome_trace(str(raw))
            trace = json.loads(raw.read_bytes())
            trace["traceEvents"] += self.log.to_events(trace["baseTimeNanoseconds"])
            packed.write_bytes(gzip.compress(json.dumps(trace).encode(), GZIP_LEVEL))
            packed.replace(path)

    def _end_range(self) -> None:
        """End the range of the step before, on the thread that began it."""
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None
