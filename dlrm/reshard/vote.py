"""All ranks or none: what went wrong on one of them, told alike on all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from dlrm.exchange import first_rank_where

MOST_TEXT_BYTES = 2000
HOST = torch.device("cpu")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Fault:
    """Why a migration was given up.

    Attributes:
        rank: The first rank on which something was wrong; None where it cannot be told.
        text: What.
    """

    rank: int | None
    text: str


class GivenUp(Exception):
    """A migration that all ranks give up together; `fault` says why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.text if fault.rank is None else f"rank {fault.rank}: {fault.text}")
        self.fault = fault


def together(work: Callable[[], Result]) -> Result:
    """What `work` gives, once it has gone well on every rank. Collective, through host memory.

    Raises:
        GivenUp: On all ranks alike, where it raised on any.
    """
    result: Result | None = None
    text = None
    try:
        result = work()
    except Exception as error:
        is_explained = getattr(error, "explains_itself", False)
        text = str(error) if is_explained else f"{type(error).__name__}: {error}".removesuffix(": ")
    rank = first_rank_where(text is not None, dist.get_rank(), dist.get_world_size(), HOST)
    if rank is not None:
        raise GivenUp(Fault(rank, _broadcast(text or "", rank)))
    return result  # type: ignore[return-value]


def _broadcast(text: str, rank: int) -> str:
    encoded = text.encode()[:MOST_TEXT_BYTES]
    buffer = torch.zeros(MOST_TEXT_BYTES, dtype=torch.uint8)
    buffer[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8)
    dist.broadcast(buffer, rank)
    return bytes(buffer.tolist()).rstrip(b"\0").decode(errors="replace")
