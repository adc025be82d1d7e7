"""Which of many failing ranks failed first, and how to say it once."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any

# Words of an error that a rank gets because another one is gone. Source: torch 2.13: gloo's messages carry the source
# file (`[.../gloo/transport/tcp/pair.cc:534] Connection closed by peer`), ProcessGroupNCCL's its name.
COLLECTIVE_WORDS = ("gloo/", "ProcessGroupNCCL", "NCCL error", "NCCL communicator")
# How the trace of a fatal signal begins. Source: Python's faulthandler; Ray's (absl's) failure signal handler.
CRASH_WORDS = re.compile(r"Fatal Python error|\*\*\* SIG|terminate called|AddressSanitizer")
MOST_LAST_WORDS = 30


@dataclass(frozen=True)
class RankError:
    """The failure of one rank.

    Attributes:
        rank: The rank.
        time_s: Unix time at which the exception was caught, or at which the loss was noticed.
        error_type: `module.QualName` of the exception; empty for a lost worker.
        message: Text of the exception, or what Ray says about the loss.
        reason: The exception's `reason`, empty where it has none.
        traceback_text: The traceback; empty for a lost worker.
        is_explained: Whether the message alone tells a user what to mend (the exception's `explains_itself`).
        is_consequence: Whether a collective broke, which is what other ranks' failures look like from here.
        is_lost: Whether the worker itself is gone.
    """

    rank: int
    time_s: float
    error_type: str
    message: str
    reason: str = ""
    traceback_text: str = ""
    is_explained: bool = False
    is_consequence: bool = False
    is_lost: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a run ended on one rank: its result, or its failure."""

    rank: int
    result: Any = None
    failure: RankError | None = None


def describe_exception(rank: int, exception: BaseException) -> RankError:
    """Gives an exception as data, taken at the time of the call; the exception itself may not pickle."""
    kind = type(exception)
    return RankError(
        rank=rank,
        time_s=time.time(),
        error_type=f"{kind.__module__}.{kind.__qualname__}",
        message=str(exception),
        reason=str(getattr(exception, "reason", "")),
        traceback_text="".join(traceback.format_exception(exception)),
        is_explained=bool(getattr(exception, "explains_itself", False)),
        is_consequence=is_collective_error(find_root(exception)),
    )


def describe_loss(rank: int, error: BaseException) -> RankError:
    """Gives the loss of a worker as data, from the error that Ray raises for it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    because = [line for line in lines if "is dead because" in line or "unavailable" in line]
    return RankError(rank, time.time(), "", (because or lines or [type(error).__name__])[0], is_lost=True)


def find_root(exception: BaseException) -> BaseException:
    """Follows `raise ... from` and `during handling of` to the exception that began it."""
    seen = {id(exception)}
    while True:
        earlier = exception.__cause__ or (None if exception.__suppress_context__ else exception.__context__)
        if earlier is None or id(earlier) in seen:
            return exception
        seen.add(id(earlier))
        exception = earlier


def is_collective_error(exception: BaseException) -> bool:
    """Tells whether an exception comes from a broken collective, not from the code that called it."""
    from torch.distributed import DistError

    if isinstance(exception, DistError):
        return True
    return isinstance(exception, RuntimeError) and any(word in str(exception) for word in COLLECTIVE_WORDS)


def choose_first(errors: Sequence[RankError]) -> RankError:
    """Gives the failure that the others follow from: the earliest that is no broken collective, else the earliest."""
    return min(errors, key=lambda error: (error.is_consequence, error.time_s, error.rank))


def read_last_words(log_path: str) -> str:
    """Gives what a process that crashed wrote on the way, the trace of the fatal signal, where its log is at hand.

    Source: Python's faulthandler, which Ray's workers enable, begins its trace with `Fatal Python error`.
    """
    try:
        lines = Path(log_path).read_text(errors="replace").splitlines()
    except OSError:  # on another node
        return ""
    first = next((number for number, line in enumerate(lines) if CRASH_WORDS.search(line)), len(lines))
    return "\n".join(lines[first : first + MOST_LAST_WORDS])


def render_failure(
    error: RankError, *, node_id: str, host: str, log_path: str, num_others: int, running: Sequence[int]
) -> str:
    """Gives the text for people: who, where, what, the log, and the other ranks as a count.

    `running` are the ranks that had still not returned: next to a broken collective they are the suspects. A lost
    rank's last words are quoted where its log can be read from here.
    """
    what = "was lost" if error.is_lost else "failed" if error.is_explained else f"failed with {error.error_type}"
    lines = [f"Rank {error.rank} {what} on node {host} ({node_id[:8]}): {error.message}"]
    if error.traceback_text and not error.is_explained:
        lines.append(indent(error.traceback_text.rstrip(), "  | "))
    if error.is_lost and (last_words := read_last_words(log_path)):
        lines.append(indent(last_words, "  | "))
    if error.is_consequence and running:
        ranks = ", ".join(map(str, running))
        lines.append(f"No rank raised an error of its own; still busy: rank {ranks}. Look there for what never came.")
    lines.append(f"Log of rank {error.rank} (on {host}): {log_path}")
    if num_others:
        others = "1 other rank" if num_others == 1 else f"{num_others} other ranks"
        lines.append(f"{others} failed or had to stop as a consequence.")
    return "\n".join(lines)
