"""The one collective of a window: timings of all ranks, metrics, and agreement on a command."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from dlrm.metrics import NUM_STATES
from dlrm.timing import STEP_COLUMNS

# What every rank tells the others once a window, and of that what records show.
SHARED_COLUMNS = ("peak_bytes", *STEP_COLUMNS)
OWN_COLUMNS = ("command_id", "bad_step", *SHARED_COLUMNS)
COMMAND_ID, BAD_STEP, PEAK_BYTES = range(3)
TIMINGS = slice(3, None)


@dataclass(frozen=True)
class Window:
    """What all ranks know alike after a window: `own` is `[W, len(OWN_COLUMNS)]`, `metrics` the summed state."""

    own: np.ndarray
    metrics: torch.Tensor

    @property
    def shared(self) -> np.ndarray:
        """`[W, len(SHARED_COLUMNS)]`: what records show of every rank."""
        return self.own[:, PEAK_BYTES:]

    @property
    def agreed_command(self) -> int:
        """The command id that every rank holds, or 0 while they differ or there is none."""
        ids = self.own[:, COMMAND_ID]
        return int(ids[0]) if (ids == ids[0]).all() else 0

    @property
    def first_bad_step(self) -> tuple[int, int] | None:
        """(step, rank) of the first loss that was not finite, if there was one."""
        steps = self.own[:, BAD_STEP]
        bad = np.flatnonzero(steps)
        if not bad.size:
            return None
        rank = int(bad[steps[bad].argmin()])
        return int(steps[rank]), rank


class WindowExchange:
    """A buffer in which every rank fills its own row; one all-reduce (a sum) completes it.

    It holds W rows and one state of metrics, 64 KiB and a few bytes a rank.
    """

    def __init__(self, rank: int, world_size: int, device: torch.device) -> None:
        self._rank = rank
        self._shape = (world_size, len(OWN_COLUMNS))
        self._size = world_size * len(OWN_COLUMNS)
        self._buffer = torch.zeros(self._size + NUM_STATES, dtype=torch.float64, device=device)

    def share(self, own: np.ndarray, metrics: torch.Tensor) -> Window:
        """Give every rank all rows and the summed metrics. Collective: all ranks call it at the same step."""
        rows = self._buffer[: self._size].view(self._shape)
        rows.zero_()
        rows[self._rank] = torch.from_numpy(own)
        self._buffer[self._size :] = metrics
        dist.all_reduce(self._buffer)
        result = self._buffer.cpu()
        return Window(result[: self._size].view(self._shape).numpy().copy(), result[self._size :].clone())


def agree(value: int, device: torch.device) -> int:
    """`value` where every rank holds the same, else 0. Collective."""
    ends = torch.tensor([value, -value], device=device)
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    most, least = ends[0].item(), -ends[1].item()
    return int(most) if most == least else 0


def first_rank_where(is_so: bool, rank: int, world_size: int, device: torch.device) -> int | None:
    """The lowest rank on which something is so, or None. Collective."""
    lowest = torch.tensor(rank if is_so else world_size, device=device)
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    found = int(lowest.item())
    return found if found < world_size else None
