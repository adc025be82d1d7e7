"""What the controller asks of the workers: one thing at a time, each answered before the next, a stop at once."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from dlrm.trainer import PROBE_LINKS, RESHARD, STOP

ANSWERS = {PROBE_LINKS: "links", RESHARD: "migration"}
"""The kind of record with which the workers answer a command."""


class Commands:
    """A queue in front of the workers' inboxes, which keep the newest command only.

    A command is posted once the one before it was answered. A stop does not wait, and nothing is posted after it.
    """

    def __init__(self, post: Callable[[Mapping[str, Any]], object]) -> None:
        """Nothing was asked yet; `post` puts a command into every inbox."""
        self._post = post
        self._waiting: deque[Mapping[str, Any]] = deque()
        self._posted: Mapping[str, Any] | None = None
        self.is_stopping = False

    @property
    def is_idle(self) -> bool:
        """Whether every command was answered."""
        return self._posted is None and not self._waiting

    def stop(self) -> None:
        """Ask all ranks to stop, once; what still waits is dropped."""
        if not self.is_stopping:
            self.is_stopping = True
            self._waiting.clear()
            self._post({"kind": STOP})

    def probe_links(self) -> None:
        """Ask for a probe of the links; one that is asked for and not answered yet will do."""
        asked = [self._posted, *self._waiting]
        if not any(command is not None and command["kind"] == PROBE_LINKS for command in asked):
            self._ask({"kind": PROBE_LINKS})

    def reshard(self, move: int, plan: Mapping[str, Any], reason: str) -> None:
        """Ask for a migration to a plan (`ShardingPlan.to_dict`); `move` is its number."""
        self._ask({"kind": RESHARD, "move": move, "plan": plan, "reason": reason})

    def take_answer(self, record: Mapping[str, Any]) -> None:
        """Go on to the next command where a record answers the one that was posted."""
        if self._posted is not None and record["kind"] == ANSWERS[self._posted["kind"]]:
            self._posted = None
            self._post_next()

    def _ask(self, command: Mapping[str, Any]) -> None:
        if not self.is_stopping:
            self._waiting.append(command)
            self._post_next()

    def _post_next(self) -> None:
        if self._posted is None and self._waiting and not self.is_stopping:
            self._posted = self._waiting.popleft()
            self._post(self._posted)
