"""The one small collective of a window: timings of all ranks, metrics, and agreement on a command."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from dlrm.metrics import BinaryMetrics
from dlrm.timing import STEP_COLUMNS

# What every rank tells the others once a window, beside its mean timings.
OWN_COLUMNS = ("command_id", "bad_step", "peak_bytes", *STEP_COLUMNS)
COMMAND_ID, BAD_STEP, PEAK_BYTES = range(3)
TIMINGS = slice(3, None)


@dataclass(frozen=True)
class Window:
    """What all ranks know alike after a window: `own` is `[W, len(OWN_COLUMNS)]`, `metrics` the summed state."""

    own: np.ndarray
    metrics: torch.Tensor

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
    """A preallocated buffer in which every rank fills its own row; one all-reduce (a sum) completes it."""

    def __init__(self, rank: int, world_size: int, device: torch.device) -> None:
        self._rank = rank
        self._shape = (world_size, len(OWN_COLUMNS))
        self._size = world_size * len(OWN_COLUMNS)
        self._device = device
        self._buffer: torch.Tensor | None = None

    def share(self, own: np.ndarray, metrics: BinaryMetrics) -> Window:
        """Give every rank all rows and the summed metrics. Collective: all ranks call it at the same step."""
        if self._buffer is None:
            self._buffer = torch.zeros(self._size + metrics.state.numel(), dtype=torch.float64, device=self._device)
        buffer = self._buffer
        rows = buffer[: self._size].view(self._shape)
        rows.zero_()
        rows[self._rank] = torch.from_numpy(own)
        buffer[self._size :] = metrics.state
        dist.all_reduce(buffer)
        result = buffer.cpu()
        return Window(result[: self._size].view(self._shape).numpy().copy(), result[self._size :].clone())
