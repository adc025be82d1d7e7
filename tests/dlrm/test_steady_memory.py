"""A long run holds no more memory than a short one: telemetry goes into room that is there from the beginning."""

import gc
import threading
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from cluster.mailbox import Inbox, Outbox
from cluster.telemetry import Rings
from dlrm.trainer import train
from tests.dlrm.test_trainer import make_job
from tests.ranks import run_ranks

SETTLED, LAST = 300, 1300
POLL_S = 0.2


class CountingRings(Rings):
    """Takes the traced memory when the rows of certain steps come in."""

    def __init__(self) -> None:
        super().__init__(capacity_bytes=1 << 16)
        self.traced_bytes: dict[int, int] = {}

    def append(self, name: str, steps: np.ndarray, rows: np.ndarray) -> None:
        super().append(name, steps, rows)
        if name == "steps" and steps[-1] in (SETTLED, LAST):
            gc.collect()
            self.traced_bytes[int(steps[-1])] = tracemalloc.get_traced_memory()[0]


@dataclass(frozen=True)
class Place:
    rank: int
    world_size: int
    device: str = "cpu"
    outbox: Outbox = field(default_factory=lambda: Outbox(capacity=64))
    inbox: Inbox = field(default_factory=Inbox)
    rings: CountingRings = field(default_factory=CountingRings)


def run_long(rank: int, world_size: int, folder: Path) -> int:
    """Bytes by which the memory of Python and NumPy grows in a thousand steps; rank 0 is polled, rank 1 never."""
    place, is_over = Place(rank, world_size), threading.Event()

    def poll() -> None:
        while rank == 0 and not is_over.wait(POLL_S):
            place.outbox.drain()
            place.rings.drain()

    poller = threading.Thread(target=poll)
    tracemalloc.start()
    poller.start()
    train(place, make_job(folder, steps=LAST, batch_size=4, checkpoint=False, eval_batches=1))
    tracemalloc.stop()
    is_over.set()
    poller.join()
    return place.rings.traced_bytes[LAST] - place.rings.traced_bytes[SETTLED]


@pytest.mark.distributed
@pytest.mark.slow
def test_a_thousand_steps_leave_nothing_behind(tmp_path: Path) -> None:
    # The rows of a thousand steps of two ranks would take 288 kB, the records of their windows as much again.
    assert max(run_ranks(run_long, 2, tmp_path)) < 50_000
