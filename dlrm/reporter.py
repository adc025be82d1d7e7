"""What a rank tells of its training: rows of every step into its rings, and records, for which rank 0 speaks."""

from typing import Any

import numpy as np

from dlrm.data.stream import ReadReport
from dlrm.place import Place
from dlrm.records import note_record, warning_record, window_record
from dlrm.window import Window


class Reporter:
    """One rank's voice; it never waits for anybody who listens."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._told_bad_rows = 0

    def say(self, record: dict[str, Any]) -> None:
        """A record, from rank 0 alone."""
        if self._place.rank == 0:
            self._place.outbox.put(record)

    def warn(self, message: str, step: int) -> None:
        """Something that a user should know."""
        self.say(warning_record(message, step))

    def note(self, message: str | None, step: int) -> None:
        """Something that a user asked of this very rank, if there is anything to say."""
        if message is not None:
            self._place.outbox.put(note_record(message, step))

    def tell(self, window: Window) -> None:
        """A window of training: every rank keeps the rows of all."""
        last, num_steps = window.span.step, len(window.steps)
        if num_steps:
            self._place.rings.append("steps", np.arange(last - num_steps, last) + 1, window.steps)
            self._place.rings.append("shards", np.array([last]), window.shards[None])
        self.say(window_record(window))

    def tell_bad_rows(self, found: ReadReport, step: int) -> None:
        """What of the data could not be read so far: once, and again whenever the number has doubled."""
        if found.num_bad_rows >= max(1, 2 * self._told_bad_rows):
            self._told_bad_rows = found.num_bad_rows
            self.warn(f"{found.num_bad_rows} bad rows left out so far, the first: {found.bad_rows[0]}", step)
