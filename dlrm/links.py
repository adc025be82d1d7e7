"""Measures how long it takes each rank to send to each other one, over the job's own process group."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

# Large enough that a slow link's bandwidth shows beside its latency, small enough that all pairs of a round on one
# machine are through in a millisecond or two.
MESSAGE_BYTES = 64 * 1024
# The least of so many: a disturbance only ever makes a message later. On a machine with more ranks than cores most are
# disturbed; the first one also makes the connection where there was none.
NUM_REPEATS = 8
# Every rank is measured against so many others at most, both ways. A rank whose sends are late shows against each of
# them; more rounds would make the probe of a large job last longer and say the same.
MOST_ROUNDS = 16
# Of the choice of rounds where there are more, which must be the same on every rank.
SEED = 0
MS_PER_S = 1e3


def no_delay() -> None:
    """Sends are not held up."""


def probe_links(
    rank: int, world_size: int, device: torch.device, delay: Callable[[], None] = no_delay
) -> NDArray[np.float64]:
    """Milliseconds `[W, W]` from every rank (row) to every other (column), one way; NaN where nothing was measured.

    Ranks meet in pairs, all pairs of a round at once, first one direction, then the other. The sender's clock alone
    counts, since clocks of different machines differ: a message there and an acknowledgement of one byte back, less
    half of a round trip of such bytes. What delays the smallest message as well is therefore seen in both directions.
    Collective: all ranks call it at the same place, after any other collective.

    Args:
        rank: This rank.
        world_size: W.
        device: Of the messages, and so which backend carries them.
        delay: Called before every message that is measured; a planted slow link waits in it.
    """
    own = np.full(world_size, np.nan)
    link = Link(device, delay)
    for number in choose_rounds(world_size):
        partner = find_partner(rank, number, world_size)
        dist.barrier()
        if partner is None:
            continue
        for is_sender in (rank < partner, rank > partner):
            if is_sender:
                own[partner] = link.measure_send(partner)
            else:
                link.answer(partner)
    return _gather(own, device)


def choose_rounds(world_size: int) -> list[int]:
    """The rounds of a tournament in which ranks meet: all of them, or a fixed choice of `MOST_ROUNDS`."""
    num_rounds = world_size - 1 + world_size % 2
    if num_rounds <= MOST_ROUNDS:
        return list(range(num_rounds))
    chosen = np.random.default_rng(SEED).choice(num_rounds, MOST_ROUNDS, replace=False)
    return sorted(chosen.tolist())


def find_partner(rank: int, number: int, world_size: int) -> int | None:
    """Whom a rank meets in a round; None for the one that is left over where ranks are odd in number.

    In `world_size - 1` rounds (`world_size` where that is odd) everybody meets everybody once.
    Source: the circle method of round-robin tournaments: with n - 1 players on a circle and one in its centre, i meets
    j in round i + j modulo n - 1, and who would meet himself meets the centre.

    >>> [find_partner(0, number, 4) for number in range(3)]
    [3, 1, 2]
    """
    num_players = world_size + world_size % 2
    circle = num_players - 1
    if rank == circle:
        # i meets himself where 2 i = number modulo the circle, which is odd; num_players / 2 is the inverse of 2.
        return number * (num_players // 2) % circle
    partner = (number - rank) % circle
    if partner == rank:
        partner = circle
    return partner if partner < world_size else None


class Link:
    """Messages between this rank and one other at a time."""

    def __init__(self, device: torch.device, delay: Callable[[], None]) -> None:
        self._device, self._delay = device, delay
        self._message = torch.zeros(MESSAGE_BYTES, dtype=torch.uint8, device=device)
        self._token = torch.zeros(1, dtype=torch.uint8, device=device)

    def measure_send(self, partner: int) -> float:
        """Milliseconds of a message to `partner`, who answers meanwhile."""
        # They take turns, so that both find the machines alike busy.
        trips_ms = [
            (
                self._round_trip(partner, self._token, no_delay),
                self._round_trip(partner, self._message, self._delay),
            )
            for _ in range(NUM_REPEATS)
        ]
        token_ms, message_ms = np.min(trips_ms, axis=0)
        return max(0.0, float(message_ms - token_ms / 2))

    def answer(self, partner: int) -> None:
        """The other side of `measure_send`."""
        for _ in range(NUM_REPEATS):
            for incoming in (self._token, self._message):
                self._exchange(dist.irecv, incoming, partner)
                self._exchange(dist.isend, self._token, partner)

    def _round_trip(self, partner: int, outgoing: torch.Tensor, delay: Callable[[], None]) -> float:
        began_s = time.perf_counter()
        delay()
        self._exchange(dist.isend, outgoing, partner)
        self._exchange(dist.irecv, self._token, partner)
        return MS_PER_S * (time.perf_counter() - began_s)

    def _exchange(self, operation: Callable[..., Any], tensor: torch.Tensor, partner: int) -> None:
        """Send or receive, and wait for it.

        As a batch of one: NCCL then uses the group's communicator, instead of making one for every pair.
        """
        for work in dist.batch_isend_irecv([dist.P2POp(operation, tensor, partner)]):
            work.wait()
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def _gather(own: NDArray[np.float64], device: torch.device) -> NDArray[np.float64]:
    """The rows of all ranks."""
    rows = [torch.empty(len(own), dtype=torch.float64, device=device) for _ in own]
    dist.all_gather(rows, torch.from_numpy(own).to(device))
    return torch.stack(rows).cpu().numpy()
