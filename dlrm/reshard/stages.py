"""The stages of a migration, and the faults that tests and benches plant into them."""

from collections.abc import Callable
from enum import StrEnum


class Stage(StrEnum):
    """Where a migration can fail on one rank; until the last of them is over, the old plan is whole."""

    BEFORE = "before"
    TRANSFER = "transfer"
    CORRUPT = "corrupt"
    COMMIT = "commit"


At = Callable[[Stage], None]
"""Told of each stage on this rank as it is reached; raises where a fault is planted there.

`CORRUPT` is told once what came over links has been unpacked: a fault there changes it and says nothing.
"""


def no_fault(_: Stage) -> None:
    """Nothing is planted."""
