"""Turns Ctrl-C and SIGTERM into a request that the controller carries to the workers."""

import signal
from types import FrameType
from typing import Any


class StopRequested(Exception):
    """The user asked for the end before any worker trained."""


class StopSignals:
    """While open, the first SIGINT or SIGTERM sets `is_requested`; a second SIGINT interrupts at once.

    Open it after Ray: `ray.init` installs a SIGTERM handler of its own.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, _: FrameType | None) -> None:
        if self.is_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_requested = True
