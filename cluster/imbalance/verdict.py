"""What a watch finds: who holds the fleet up, why, since when and at what loss."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Cause(StrEnum):
    """Why a step is longer than it was.

    slow_device: the own work of a rank grew, the ids that it looks up did not. hot_table: its lookups grew with its
    ids. slow_link: transfers grew, the work did not. global_drift: all ranks slowed down alike, which no plan mends.
    """

    SLOW_DEVICE = "slow_device"
    HOT_TABLE = "hot_table"
    SLOW_LINK = "slow_link"
    GLOBAL_DRIFT = "global_drift"


@dataclass(frozen=True)
class Verdict:
    """One finding, or its end.

    Attributes:
        step: The step whose row made it certain; it is told with the block that holds this row.
        cause: Why.
        rank: Who; None where all are concerned, and for a slow link that no probe has located.
        tables: The hot ones, those whose ids grew most first; empty for other causes.
        severity_ms: Milliseconds a step that the fleet loses by it. Of a rank: what it takes beyond the slowest rank
            there were if all that are found slow now were mended together; 0 where a healthy rank is slower still.
            So slow ranks hold the fleet up at once, and what several of them cost does not add up.
        since_step: The step at which it is estimated to have begun.
        is_over: Whether this tells the end of a finding; `severity_ms` is then what it last cost.
    """

    step: int
    cause: Cause
    rank: int | None
    tables: tuple[str, ...]
    severity_ms: float
    since_step: int
    is_over: bool = False

    @property
    def is_actionable(self) -> bool:
        """Whether another plan could help."""
        return self.cause is not Cause.GLOBAL_DRIFT

    @property
    def message(self) -> str:
        """One line for people."""
        if self.is_over:
            return f"over since step {self.step}: {self._what()}"
        return f"{self._what()}: {self.severity_ms:.2f} ms a step lost since step {self.since_step}"

    def to_record(self) -> dict[str, Any]:
        """The record `verdict` of a run, JSON-able.

        >>> Verdict(240, Cause.SLOW_DEVICE, 3, (), 1.9, 227).to_record()["message"]
        'rank 3 is slow: 1.90 ms a step lost since step 227'
        """
        return {
            "kind": "verdict",
            "step": self.step,
            "cause": str(self.cause),
            "rank": self.rank,
            "tables": list(self.tables),
            "severity_ms": self.severity_ms,
            "since_step": self.since_step,
            "is_over": self.is_over,
            "message": self.message,
        }

    def _what(self) -> str:
        match self.cause:
            case Cause.SLOW_DEVICE:
                return f"rank {self.rank} is slow"
            case Cause.HOT_TABLE:
                return f"rank {self.rank} looks up more than it did ({', '.join(self.tables) or 'tables unknown'})"
            case Cause.SLOW_LINK:
                return "exchanges are slow" if self.rank is None else f"what rank {self.rank} sends is slow"
            case Cause.GLOBAL_DRIFT:
                return "all ranks are slower, no action"
