"""The two mailboxes of a worker: records go out, commands come in, and training never waits for either.

Both are plain Python and know nothing of Ray: the training thread holds one end, the actor's control threads the other.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.telemetry import Block


@dataclass(frozen=True)
class Drained:
    """What one drain of a worker's buffers gave.

    Attributes:
        records: The records in the order they were put.
        num_dropped: How many older records were lost since the last drain because nobody drained in time.
        blocks: New rows of the series in the worker's rings; a block counts its own losses.
    """

    records: tuple[Any, ...] = ()
    num_dropped: int = 0
    blocks: tuple[Block, ...] = ()


class Outbox:
    """A bounded buffer that never makes its producer wait: when it is full, the oldest record goes and is counted.

    >>> outbox = Outbox(capacity=2)
    >>> for step in range(3):
    ...     outbox.put({"step": step})
    >>> outbox.drain()
    Drained(records=({'step': 1}, {'step': 2}), num_dropped=1, blocks=())
    """

    def __init__(self, capacity: int) -> None:
        """Makes an empty outbox for at most `capacity` records; raises ValueError when that is under 1."""
        if capacity < 1:
            raise ValueError(f"capacity of an outbox: expected at least 1 record, found {capacity}")
        self._records: deque[Any] = deque(maxlen=capacity)
        self._num_dropped = 0
        self._lock = threading.Lock()

    def put(self, record: Any) -> None:
        """Appends one record, a small dict that pickles (arrays go into the rings); do not change it afterwards."""
        with self._lock:
            self._num_dropped += len(self._records) == self._records.maxlen
            self._records.append(record)

    def drain(self) -> Drained:
        """Empties the outbox and gives what was in it."""
        with self._lock:
            drained = Drained(tuple(self._records), self._num_dropped)
            self._records.clear()
            self._num_dropped = 0
        return drained


class Inbox:
    """Holds the newest command of the controller; a command is a small dict with an increasing integer under `id`.

    >>> inbox = Inbox()
    >>> inbox.latest() is None
    True
    >>> inbox.post({"id": 2, "kind": "stop"})
    >>> inbox.post({"id": 1, "kind": "checkpoint"})
    >>> inbox.latest()
    {'id': 2, 'kind': 'stop'}
    """

    def __init__(self) -> None:
        """Makes an inbox without a command."""
        self._command: dict[str, Any] | None = None
        self._lock = threading.Lock()

    def post(self, command: Mapping[str, Any]) -> None:
        """Keeps the command unless one with the same or a higher id is already here (calls may overtake each other)."""
        with self._lock:
            if self._command is None or command["id"] > self._command["id"]:
                self._command = dict(command)

    def latest(self) -> dict[str, Any] | None:
        """Gives a copy of the newest command, or None before the first; reading does not remove it."""
        with self._lock:
            return None if self._command is None else dict(self._command)
