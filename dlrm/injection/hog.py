"""A process that burns the core of a rank."""

import os
import subprocess
import sys
from contextlib import suppress

# It dies with the thread that started it, also where that is killed. Source: prctl(2), PR_SET_PDEATHSIG = 1; where the
# parent is gone before the call, nobody would send the signal.
BURN = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
while os.getppid() == int(sys.argv[1]):
    for _ in range(10_000_000):
        pass
"""


class CoreHog:
    """Pins this process to one core and shares that with a child that never rests, of the same niceness.

    The core is the rank's by number among those that the process may use, so that the ranks of a machine differ.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._allowed: dict[int, set[int]] = {}
        self._child: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Pin all threads and start the child, which inherits core and niceness."""
        cores = sorted(os.sched_getaffinity(0))
        for thread in _threads():
            with suppress(ProcessLookupError):  # it has ended since it was listed
                self._allowed[thread] = os.sched_getaffinity(thread)
                os.sched_setaffinity(thread, {cores[self._rank % len(cores)]})
        command = [sys.executable, "-I", "-S", "-c", BURN, str(os.getpid())]
        self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def end(self) -> None:
        """Kill the child and give every thread its cores back; one that began meanwhile gets the main thread's."""
        if self._child is None:
            return
        self._child.kill()
        self._child.wait()
        self._child = None
        for thread in _threads():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread, self._allowed.get(thread, self._allowed[os.getpid()]))
        self._allowed.clear()


def _threads() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/task")]
