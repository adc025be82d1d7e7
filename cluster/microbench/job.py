"""What a rank is asked to measure and what it gives back, as types that travel. Knows no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cluster.mailbox import Outbox
from planner.profile import CollectiveMeasurement, CopyMeasurement, DenseMeasurement, LookupMeasurement
from planner.tables import OptimizerKind

T = TypeVar("T")


@dataclass(frozen=True)
class RankJob:
    """What a rank is asked for.

    Attributes:
        optimizer: Of the lookups.
        nodes: The ranks of every node.
        place: Which of the ranks with this kind of device it is; each of them measures other sets.
        num_places: How many there are.
        deadline_s: When to end, on this rank's monotonic clock.
        seed: Of the sets, chains and messages.
    """

    optimizer: OptimizerKind
    nodes: tuple[tuple[int, ...], ...]
    place: int
    num_places: int
    deadline_s: float
    seed: int


@dataclass(frozen=True)
class RankMeasurements:
    """What a rank measured; collectives come from the first rank of each group only."""

    free_bytes: int
    dense: tuple[DenseMeasurement, ...]
    copies: tuple[CopyMeasurement, ...]
    lookups: tuple[LookupMeasurement, ...]
    collectives: tuple[CollectiveMeasurement, ...]


class Reporter:
    """Tells through the outbox how far a part of the profile has come."""

    def __init__(self, outbox: Outbox) -> None:
        """Keeps the outbox."""
        self._outbox = outbox

    def count(self, part: str, items: Sequence[T]) -> Iterator[T]:
        """The items, each announced by a record of kind `profile`."""
        for index, item in enumerate(items):
            self._outbox.put({"kind": "profile", "part": part, "num_done": index, "num_planned": len(items)})
            yield item
