"""The clock of a device, and repeats until a median can be trusted."""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from cluster.microbench.repeats import Limits, median_half_width, summarize
from planner.profile import Timing

# A thread that computes without a pause is on its core all the time, but for interrupts.
LEAST_ON_CORE = 0.95


def measure_phases(phases: Sequence[Callable[[], object]], device: torch.device) -> tuple[float, ...]:
    """Runs the phases one after another and gives the milliseconds of each, by CUDA events on a GPU."""
    if device.type == "cuda":
        return _measure_on_stream(phases)
    marks = [time.perf_counter()]
    for phase in phases:
        phase()
        marks.append(time.perf_counter())
    return tuple((end - start) * 1e3 for start, end in pairwise(marks))


def repeat(run: Callable[[int], tuple[float, ...]], limits: Limits, device: torch.device) -> tuple[Timing, ...]:
    """Calls `run(index)`, which gives milliseconds, until every median is exact enough or a limit is met.

    On a CPU a repeat in which the thread was taken off its core measures whoever took it: such repeats are left out,
    unless hardly any other is to be had. Neighbours on other cores slow a repeat down and count.
    """
    for index in range(limits.num_warmups):
        run(index)
    rows: list[tuple[float, ...]] = []
    quiet: list[tuple[float, ...]] = []
    deadline_s = time.monotonic() + limits.seconds
    while len(rows) < limits.max_repeats:
        began_s, began_on_core_s = time.perf_counter(), time.thread_time()
        rows.append(run(limits.num_warmups + len(rows)))
        on_core_s, passed_s = time.thread_time() - began_on_core_s, time.perf_counter() - began_s
        if device.type != "cpu" or on_core_s >= LEAST_ON_CORE * passed_s:
            quiet.append(rows[-1])
        is_enough = len(quiet) >= limits.min_repeats
        if is_enough and all(median_half_width(values) <= limits.confidence for values in zip(*quiet, strict=True)):
            break
        if len(rows) >= limits.min_repeats and time.monotonic() > deadline_s:
            break
    kept = quiet if len(quiet) >= limits.min_repeats else rows
    return tuple(summarize(values) for values in zip(*kept, strict=True))


def _measure_on_stream(phases: Sequence[Callable[[], object]]) -> tuple[float, ...]:
    """The phases between events of the current stream; waits for the last."""
    torch.cuda.synchronize()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(phases) + 1)]
    marks[0].record()
    for phase, mark in zip(phases, marks[1:], strict=True):
        phase()
        mark.record()
    marks[-1].synchronize()
    return tuple(start.elapsed_time(end) for start, end in pairwise(marks))
