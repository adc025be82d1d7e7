"""What the tests run on the ranks; the workers import it by name."""

import os
import resource
import signal
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

WAIT_LIMIT_S = 60.0
SMALL_OUTBOX = 8


def add_up(context: Any, value: float) -> dict[str, Any]:
    """Sums value x (rank + 1) over the ranks, and tells what the worker knows of its place."""
    tensor = torch.full((2,), value * (context.rank + 1))
    dist.all_reduce(tensor)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return {
        "sum": tensor.tolist(),
        "place": (context.rank, context.world_size, context.local_rank, context.local_world_size),
        "environment": tuple(int(os.environ[name]) for name in names),
        "node_id": context.node_id,
        "device": context.device,
        "threads": torch.get_num_threads(),
        "backend": dist.get_backend(),
    }


def count_fresh_tensors(context: Any, num_floats: int) -> int:
    """How many of 32 tensors had to wait for fresh pages, each freed before the next."""
    faults = []
    for _ in range(32):
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        torch.ones(num_floats)
        faults.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
    return sum(each > 16 for each in faults)


def fail_on_rank(context: Any, failing_rank: int) -> None:
    """Raises on one rank while the others wait in a collective."""
    if context.rank == failing_rank:
        raise LookupError(f"row 17 is missing on rank {context.rank}")
    dist.all_reduce(torch.ones(1))


def fail_and_disconnect(context: Any, failing_rank: int) -> None:
    """Breaks the others' collective first and reports its own error later, as a slow clean-up does."""
    if context.rank != failing_rank:
        dist.all_reduce(torch.ones(1))
        return
    try:
        raise LookupError("the real cause")
    finally:
        dist.destroy_process_group()
        time.sleep(1.0)


def die_on_rank(context: Any, dying_rank: int) -> None:
    """Ends one worker process the hard way while the others wait in a collective."""
    if context.rank == dying_rank:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(1))


def leave_on_rank(context: Any, leaving_rank: int) -> None:
    """Calls sys.exit on one rank."""
    if context.rank == leaving_rank:
        raise SystemExit(3)


def stall_on_rank(context: Any, stalling_rank: int) -> None:
    """Never enters the collective on one rank."""
    if context.rank == stalling_rank:
        time.sleep(WAIT_LIMIT_S)
    dist.all_reduce(torch.ones(1))


def report_until_told(context: Any) -> dict[str, Any]:
    """Reports steps until a command comes, and returns that command."""
    deadline_s = time.monotonic() + WAIT_LIMIT_S
    step = 0
    while time.monotonic() < deadline_s:
        command = context.inbox.latest()
        if command is not None and command["kind"] == "stop":
            return dict(command)
        context.outbox.put({"rank": context.rank, "step": step})
        step += 1
        time.sleep(0.01)
    raise TimeoutError("no command came")


def report_many(context: Any, count: int) -> None:
    """Puts more records than the outbox may hold."""
    for step in range(count):
        context.outbox.put(step)


def return_unpicklable(context: Any) -> Any:
    """Gives a result that cannot travel."""
    return lambda: context.rank


def measure_until_killed(context: Any, dying_rank: int) -> None:
    """Measures 20 steps, and after the next command 15 more, alike on all ranks; then one is killed."""
    context.rings.declare("steps", (context.world_size, 2), {"columns": ["step_ms", "other_ms"]})
    measure(context, 0, 20)
    deadline_s = time.monotonic() + WAIT_LIMIT_S
    while context.inbox.latest() is None:
        assert time.monotonic() < deadline_s, "no command came"
        time.sleep(0.01)
    measure(context, 20, 35)
    dist.barrier()
    die_on_rank(context, dying_rank)


def measure(context: Any, begin: int, end: int) -> None:
    """Appends windows of 5 rows that all ranks share: step x (rank + 1), and the rank."""
    for first in range(begin, end, 5):
        steps = np.arange(first, first + 5) + 1
        own = torch.tensor(np.stack([steps * (context.rank + 1.0), np.full(5, context.rank)], axis=1))
        rows = [torch.empty_like(own) for _ in range(context.world_size)]
        dist.all_gather(rows, own)
        context.rings.append("steps", steps, torch.stack(rows, dim=1).numpy())
