"""Turns Ctrl-C and SIGTERM into an orderly end: at once before workers train, through them while they do."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

BEFORE_TRAINING = "stopped on request before any worker trained"


class StopRequested(KeyboardInterrupt):
    """The user asked for the end before any worker trained."""


class StopSignals:
    """While open, SIGINT or SIGTERM raises StopRequested; while deferred, the first only sets `is_requested`.

    A second SIGINT always interrupts at once. `ray.init` installs a SIGTERM handler of its own; the
    cluster's session puts ours back.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self._is_deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Workers train: a request waits until they have written their checkpoint."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    @contextmanager
    def ray_included(self) -> Iterator[None]:
        """While `ray.init` runs, its own SIGTERM handler leaves through SystemExit: that is a request too."""
        try:
            yield
        except SystemExit as error:
            if error.code != signal.SIGTERM:
                raise
            raise StopRequested(BEFORE_TRAINING) from error

    def _request(self, number: int, _: FrameType | None) -> None:
        if self.is_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_requested = True
        if not self._is_deferred:
            raise StopRequested(BEFORE_TRAINING)
