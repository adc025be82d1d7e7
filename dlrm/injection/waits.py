"""Waiting by the millisecond where the work is: on the host's clock for a CPU, on the stream for a GPU."""

import time
from functools import cache
from typing import Protocol

import torch

# A sleeping thread wakes up late: by some 0.06 ms on an idle Linux machine (50 us of timer slack, see prctl(2), and the
# switch), so the end of a wait is spun. Longer spinning would take from the others the core that a sleep leaves them.
SPIN_MS = 0.2
# The length of the sleep that calibrates: long against the launch of a kernel, short against everything else.
CALIBRATION_CYCLES = 20_000_000
MS_PER_S = 1e3


class Stretch(Protocol):
    """Makes a piece of work longer, again and again; both methods take what any hook is given, and give nothing."""

    def begin(self, *_: object) -> None:
        """The work begins here."""

    def end(self, *_: object) -> None:
        """It would be over here."""


class HostStretch:
    """Work of the calling thread takes `percent` longer than it did in this very call."""

    def __init__(self, percent: float) -> None:
        self._share = percent / 100
        self._began_s = time.perf_counter()

    def begin(self, *_: object) -> None:
        """See Stretch."""
        self._began_s = time.perf_counter()

    def end(self, *_: object) -> None:
        """See Stretch."""
        wait_on_host(self._share * (time.perf_counter() - self._began_s) * MS_PER_S)


class CudaStretch:
    """Work on the current stream takes `percent` longer than it took in an earlier call.

    The host is ahead of the device and cannot know how long this call will take. The first calls, until the device has
    finished one of them, are not stretched.
    """

    def __init__(self, percent: float) -> None:
        self._share = percent / 100
        self._wait_ms = 0.0
        self._began, self._ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._is_pending = self._is_timing = False

    def begin(self, *_: object) -> None:
        """See Stretch."""
        if self._is_pending and self._ended.query():
            self._wait_ms = self._share * self._began.elapsed_time(self._ended)
            self._is_pending = False
        if not self._is_pending:
            self._began.record()
            self._is_timing = True

    def end(self, *_: object) -> None:
        """See Stretch."""
        if self._is_timing:
            self._ended.record()
            self._is_timing, self._is_pending = False, True
        wait_on_stream(self._wait_ms)


def build_stretch(percent: float, device: torch.device) -> Stretch:
    """A stretch that is right for work on `device`."""
    return CudaStretch(percent) if device.type == "cuda" else HostStretch(percent)


def wait(ms: float, device: torch.device) -> None:
    """Hold up for `ms` whatever this thread, or its current stream on a GPU, does next."""
    if device.type == "cuda":
        wait_on_stream(ms)
    else:
        wait_on_host(ms)


def wait_on_host(ms: float) -> None:
    """Sleep for most of the time, so that others have the core, and spin for the rest, so that it is exact."""
    until_s = time.perf_counter() + ms / MS_PER_S
    if ms > 2 * SPIN_MS:
        time.sleep((ms - SPIN_MS) / MS_PER_S)
    while time.perf_counter() < until_s:
        pass


def wait_on_stream(ms: float) -> None:
    """Queue a kernel on the current stream that does nothing for about `ms`."""
    if ms > 0:
        torch.cuda._sleep(int(ms * cycles_per_ms()))


@cache
def cycles_per_ms() -> float:
    """Clock cycles that the device's idle kernel counts in a millisecond; measured once, which waits for the device."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(CALIBRATION_CYCLES)  # the first launch loads the kernel, and the device speeds up
    began.record()
    torch.cuda._sleep(CALIBRATION_CYCLES)
    ended.record()
    ended.synchronize()
    return CALIBRATION_CYCLES / float(began.elapsed_time(ended))
