"""Real ranks for tests: one process a rank, each failing loudly."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    local_world_size: int | None = None,
    backend: str = "gloo",
) -> list[Any]:
    """Call module-level `function(rank, world_size, *args)` on fresh ranks; their results in rank order."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    call = (function, args, world_size, local_world_size or world_size, f"tcp://127.0.0.1:{port}", backend, results)
    processes = mp.spawn(_rank, call, nprocs=world_size, join=False)
    # The queue is emptied before the processes are joined: one that still has to write would never end.
    found = {}
    while len(found) < world_size and not processes.join(timeout=0.1):
        while not results.empty():
            found.update([results.get()])
    while not results.empty():
        found.update([results.get()])
    while not processes.join():
        pass
    return [found[rank] for rank in range(world_size)]


def _rank(
    rank: int,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    world_size: int,
    local: int,
    address: str,
    backend: str,
    results: Any,
) -> None:
    torch.set_num_threads(1)
    os.environ.update(LOCAL_WORLD_SIZE=str(local), LOCAL_RANK=str(rank % local))
    dist.init_process_group(backend, address, rank=rank, world_size=world_size)
    try:
        results.put((rank, function(rank, world_size, *args)))
    finally:
        dist.destroy_process_group()
