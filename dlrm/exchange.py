"""What the ranks tell one another between two windows: timings, counts, and agreement on a command."""

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
import torch.distributed as dist

from dlrm.shard_sample import SHARD_COLUMNS

# What every rank says of itself, before its steps and its shards.
HEAD = ("command_id", "bad_step", "num_steps")
COMMAND_ID, BAD_STEP, NUM_STEPS = range(len(HEAD))


@dataclass(frozen=True, eq=False)
class Gathered:
    """What all ranks know alike after an exchange.

    Attributes:
        head: float64 [W, len(HEAD)].
        steps: float64 [N, W, C], the steps whose times are known.
        shards: float64 [W, most shards of a rank, len(SHARD_COLUMNS)], padded.
    """

    head: np.ndarray
    steps: np.ndarray
    shards: np.ndarray

    @property
    def agreed_command(self) -> int:
        """The command id that every rank holds, or 0 while they differ or there is none."""
        ids = self.head[:, COMMAND_ID]
        return int(ids[0]) if (ids == ids[0]).all() else 0

    @property
    def first_bad_step(self) -> tuple[int, int] | None:
        """(step, rank) of the first loss that was not finite, if there was one."""
        steps = self.head[:, BAD_STEP]
        bad = np.flatnonzero(steps)
        if not bad.size:
            return None
        rank = int(bad[steps[bad].argmin()])
        return int(steps[rank]), rank


class WindowExchange:
    """One all-gather of host memory; buffers are made once, a row of `8 * (3 + window * C + 3 S)` bytes a rank.

    It goes through gloo also where the ranks train on GPUs, so it waits for no device; each host waits for the last.
    """

    def __init__(self, world_size: int, window_steps: int, num_columns: int, num_shards: int) -> None:
        self._shapes = (window_steps, num_columns), (num_shards, len(SHARD_COLUMNS))
        self._ends = np.cumsum([len(HEAD), *map(prod, self._shapes)])
        self._own = torch.zeros(int(self._ends[-1]), dtype=torch.float64)
        self._all = torch.zeros(world_size, len(self._own), dtype=torch.float64)
        self._rows = list(self._all.unbind())

    def share(self, command_id: int, bad_step: int, steps: np.ndarray, shards: np.ndarray) -> Gathered:
        """Give every rank all rows: own steps `[N, C]`, no more than a window's, and own shards. Collective."""
        own = self._own.numpy()
        own[: len(HEAD)] = command_id, bad_step, len(steps)
        own[self._ends[0] :][: steps.size] = steps.ravel()
        own[self._ends[1] :][: shards.size] = shards.ravel()
        dist.all_gather(self._rows, self._own)
        head, timed, counted = np.split(self._all.numpy(), self._ends[:-1], axis=1)
        world_size = len(head)
        assert (head[:, NUM_STEPS] == len(steps)).all(), "ranks closed windows of different lengths"
        timed = timed.reshape(world_size, *self._shapes[0])[:, : len(steps)]
        return Gathered(
            head.copy(), timed.transpose(1, 0, 2).copy(), counted.reshape(world_size, *self._shapes[1]).copy()
        )


class Mail:
    """Brings a device's numbers to the host: at once from a CPU, from a GPU with the next call, without waiting.

    The copy goes into page-locked memory behind the device's work; a window later it has arrived.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_late = device.type == "cuda"
        self._sent: tuple[torch.Tensor, torch.cuda.Event] | None = None

    def swap(self, values: torch.Tensor | None) -> torch.Tensor | None:
        """Post numbers `[n]` (None: no more) and get those that have arrived on the host, if any."""
        if not self._is_late:
            return values
        arrived, self._sent = self._sent, None
        if values is not None:
            copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            copy.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._sent = copy, event
        if arrived is None:
            return None
        arrived[1].synchronize()
        return arrived[0]


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
