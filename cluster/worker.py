"""What runs inside the Ray actor of one rank: its context, the rendezvous, the run, the mailboxes and rings."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib import import_module
from operator import attrgetter
from typing import Any

from cluster.errors import ClusterError
from cluster.failures import Outcome, describe_exception
from cluster.host import find_interface
from cluster.mailbox import Drained, Inbox, Outbox
from cluster.telemetry import Rings


@dataclass(frozen=True)
class WorkerContext:
    """What a function that runs on every rank is told about its place, and its ways to talk.

    Attributes:
        rank: Place in the job, 0 to world_size - 1; ranks are ordered by node, then device.
        world_size: Number of ranks.
        local_rank: Place on this node.
        local_world_size: Number of ranks on this node.
        node_id: Ray's NodeID, in hex.
        device: `cpu`, or `cuda:0` (every actor sees its own GPU only).
        outbox: Records for the controller; `put` never blocks.
        inbox: The controller's newest command; `latest` never blocks.
        rings: Rows of numbers for the controller, in declared series; `append` never waits for it.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_id: str
    device: str
    outbox: Outbox
    inbox: Inbox
    rings: Rings


@dataclass(frozen=True)
class Identity:
    """Where an actor landed: its node, process, GPU (empty on CPU) and the log of its stderr."""

    node_id: str
    host: str
    ip: str
    pid: int
    gpu: str
    log_path: str


@dataclass(frozen=True)
class Seat:
    """The place of one rank and how its group meets.

    Attributes:
        rank: Place in the job.
        world_size: Number of ranks.
        local_rank: Place on its node.
        local_world_size: Number of ranks on its node.
        num_nodes: Number of nodes that host ranks.
        device: `cpu` or `cuda:0`.
        num_threads: Threads of torch.
        store_host: Address of rank 0's store.
        store_port: Port of rank 0's store.
        start_timeout_s: Longest wait for the store.
        collective_timeout_s: Longest wait of one collective.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    num_nodes: int
    device: str
    num_threads: int
    store_host: str
    store_port: int
    start_timeout_s: float
    collective_timeout_s: float


class Worker:
    """The actor of one rank: `connect` and `run` use its one main thread, all else its `control` threads."""

    def __init__(self, outbox_capacity: int, ring_bytes: int) -> None:
        """Makes the mailboxes and rings; the worker knows its rank only once it is connected."""
        self._outbox = Outbox(outbox_capacity)
        self._inbox = Inbox()
        self._rings = Rings(ring_bytes)
        self._store: Any = None
        self._context: WorkerContext | None = None
        self._num_threads = 1

    def identify(self) -> Identity:
        """Tells where this actor runs."""
        import ray

        runtime = ray.get_runtime_context()
        gpus = runtime.get_accelerator_ids().get("GPU", [])
        return Identity(
            node_id=runtime.get_node_id(),
            host=socket.gethostname(),
            ip=ray.util.get_node_ip_address(),
            pid=os.getpid(),
            gpu=gpus[0] if gpus else "",
            log_path=os.readlink("/proc/self/fd/2"),  # Ray points stderr at the worker's log file
        )

    def open_store(self, host: str, world_size: int, timeout_s: float) -> int:
        """Opens the rendezvous store on rank 0 and gives its port; the system picks one that is free."""
        from torch.distributed import TCPStore

        timeout = timedelta(seconds=timeout_s)
        self._store = TCPStore(host, 0, world_size, is_master=True, timeout=timeout, wait_for_workers=False)
        return int(self._store.port)

    def connect(self, seat: Seat) -> None:
        """Joins the process group: gloo on CPU; nccl, with gloo for CPU tensors, on CUDA."""
        import torch.distributed as dist

        if self._store is None:
            timeout = timedelta(seconds=seat.start_timeout_s)
            self._store = dist.TCPStore(seat.store_host, seat.store_port, seat.world_size, timeout=timeout)
        self._set_environment(seat)
        self._context = self._build_context(seat)
        self._num_threads = seat.num_threads
        self._bind_thread()
        dist.init_process_group(
            "gloo" if seat.device == "cpu" else "cpu:gloo,cuda:nccl",
            store=self._store,
            rank=seat.rank,
            world_size=seat.world_size,
            timeout=timedelta(seconds=seat.collective_timeout_s),
        )

    def run(self, function_name: str, arguments: tuple[Any, ...]) -> Outcome:
        """Runs the function on this rank; what it raises comes back as data, with the time at which it was raised."""
        assert self._context is not None, "run before connect"
        try:
            self._bind_thread()
            return Outcome(self._context.rank, find_function(function_name)(self._context, *arguments))
        except BaseException as exception:  # SystemExit too: it would end the actor and hide its reason
            traceback.print_exc()
            sys.stderr.flush()
            return Outcome(self._context.rank, failure=describe_exception(self._context.rank, exception))

    def poll(self, after: Mapping[str, int] | None = None) -> Drained:
        """Drains the outbox and the rings; of the series in `after`, only rows with higher numbers."""
        return replace(self._outbox.drain(), blocks=self._rings.drain(after))

    def answer(self) -> None:
        """Answers, and so tells that this worker is there, however busy its main thread is."""

    def post(self, command: Mapping[str, Any]) -> None:
        """Puts a command into the inbox."""
        self._inbox.post(command)

    def _build_context(self, seat: Seat) -> WorkerContext:
        """Gives the context of this rank."""
        import ray

        node_id = ray.get_runtime_context().get_node_id()
        place = (seat.rank, seat.world_size, seat.local_rank, seat.local_world_size)
        return WorkerContext(*place, node_id, seat.device, self._outbox, self._inbox, self._rings)

    def _bind_thread(self) -> None:
        """Sets what torch keeps per thread: the number of compute threads and the current GPU."""
        import torch

        assert self._context is not None
        torch.set_num_threads(self._num_threads)
        if self._context.device != "cpu":
            torch.cuda.set_device(self._context.device)

    @staticmethod
    def _set_environment(seat: Seat) -> None:
        """Sets what torch.distributed and TorchRec read from the environment, as torchrun would.

        gloo asks the resolver for this host's address, and on many systems that is 127.0.1.1, which other nodes cannot
        reach: across nodes it is told the interface of the address that Ray uses.
        """
        import ray

        os.environ.update(
            RANK=str(seat.rank),
            WORLD_SIZE=str(seat.world_size),
            LOCAL_RANK=str(seat.local_rank),
            LOCAL_WORLD_SIZE=str(seat.local_world_size),
            MASTER_ADDR=seat.store_host,
            MASTER_PORT=str(seat.store_port),
        )
        interface = find_interface(ray.util.get_node_ip_address()) if seat.num_nodes > 1 else None
        if interface is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def name_function(function: Callable[..., Any]) -> str:
    """Gives `module:qualname` of a module-level function, which is how it travels.

    Raises:
        ClusterError: `function` for a lambda, a local function, or one of `__main__`, which workers cannot import.
    """
    module, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module in (None, "__main__") or not qualname or "<" in qualname:
        raise ClusterError(
            f"Function {function!r} cannot run on workers: expected one at the top of an importable module, found "
            f"{module}:{qualname}. Move it into a module of the project.",
            reason="function",
        )
    return f"{module}:{qualname}"


def find_function(name: str) -> Callable[..., Any]:
    """Gives the function that `name_function` named; raises ImportError or AttributeError where it is not installed."""
    module, _, qualname = name.partition(":")
    found: Callable[..., Any] = attrgetter(qualname)(import_module(module))
    return found
