"""Whether a migration fits into memory, before anything is touched, and where new shards are filled."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from dlrm.config import ReshardConfig
from dlrm.errors import DlrmError
from dlrm.memory import free_bytes
from dlrm.reshard.parcels import NUM_BUFFERS, Layout, Parcel, buffer_floats
from planner.memory import FLOAT_BYTES
from planner.plan import ShardingPlan
from planner.sharding import ShardingType
from planner.text import render_bytes
from planner.transfers import Transfer

HOST = torch.device("cpu")


@dataclass(frozen=True)
class Room:
    """What a migration needs on this rank beside what is there.

    Attributes:
        new_bytes: Of the new shards, with their optimizer state, of replicas their gradients, and of rows whose parts
            meet the values of all parts.
        old_bytes: Of the old ones.
        buffer_bytes: Of the buffers.
    """

    new_bytes: int
    old_bytes: int
    buffer_bytes: int

    def announced_bytes(self, staging: str) -> int:
        """Bytes of the device: both generations of shards stand beside each other, unless the host holds the new."""
        if staging == "host":
            return self.buffer_bytes + max(0, self.new_bytes - self.old_bytes)
        return self.buffer_bytes + self.new_bytes

    def host_bytes(self, staging: str) -> int:
        """Bytes of the host: the new shards, and a copy of the old ones to go back to."""
        return self.new_bytes + self.old_bytes if staging == "host" else 0


def measure_room(
    rank: int,
    plan: ShardingPlan,
    layout: Layout,
    old_bytes: int,
    pieces: Sequence[Transfer],
    rounds: Sequence[Sequence[Parcel]],
) -> Room:
    """What moving to a plan needs on this rank.

    Source: torch 2.13, `Reducer` of DistributedDataParallel: it allocates its buckets, as large as the parameters, when
    it is built.

    Args:
        rank: This rank.
        plan: The new one.
        layout: What of a rectangle travels.
        old_bytes: Of the old shards.
        pieces: All that the new plan's shards are made of.
        rounds: In which what travels does.
    """
    num_floats = layout.num_row_values * _num_part_rows(rank, plan, pieces)
    for table in plan.tables:
        is_replicated = table.sharding_type is ShardingType.DATA_PARALLEL
        for shard in (shard for shard in table.shards if shard.rank == rank):
            num_floats += layout.num_floats(shard.num_rows, shard.num_cols)
            num_floats += shard.num_rows * shard.num_cols * is_replicated
    buffer_bytes = NUM_BUFFERS // 2 * FLOAT_BYTES * sum(buffer_floats(rounds, rank))
    return Room(FLOAT_BYTES * num_floats, old_bytes, buffer_bytes)


def _num_part_rows(rank: int, plan: ShardingPlan, pieces: Sequence[Transfer]) -> int:
    """Rows of all pieces on this rank that meet others in a shard of more columns."""
    mine = {table.name: [shard for shard in table.shards if shard.rank == rank] for table in plan.tables}
    return sum(
        piece.num_rows
        for piece in pieces
        if piece.target == rank
        for shard in mine[piece.table]
        if 0 <= piece.col_offset - shard.col_offset < shard.num_cols and piece.num_cols < shard.num_cols
    )


def choose_staging(room: Room, config: ReshardConfig, device: torch.device) -> str:
    """`device` or `host`, alike on all ranks: as configured, or with `auto` by the rank with the least room.

    Collective. On CPU ranks device and host are the same memory, and staging saves none of it.
    """
    if config.staging != "auto":
        return config.staging
    is_short = device.type == "cuda" and room.announced_bytes("device") > free_bytes(device)
    flag = torch.tensor(int(is_short))
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return "host" if flag.item() else "device"


def check_room(room: Room, staging: str, device: torch.device) -> None:
    """Pass where this rank has the memory.

    Raises:
        DlrmError: `memory`, with what is needed and what there is.
    """
    needed = {device: room.announced_bytes(staging)}
    needed[HOST] = needed.get(HOST, 0) + room.host_bytes(staging)
    for place, num_bytes in needed.items():
        if num_bytes > (free := free_bytes(place)):
            where = "host memory" if place == HOST else "the GPU"
            way_out = "" if staging == "host" or device == HOST else "; resharding.staging=host needs less of the GPU"
            message = (
                f"moving needs {render_bytes(num_bytes)} of {where} beside what is there, with "
                f"{render_bytes(room.new_bytes)} of new shards, and {render_bytes(free)} are free{way_out}"
            )
            raise DlrmError(message, "memory")
