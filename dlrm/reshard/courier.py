"""Brings rectangles from the shards of the old plan to those of the new one, within a rank and between ranks."""

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from dlrm.reshard.checksum import row_values_sum
from dlrm.reshard.held import HeldShard
from dlrm.reshard.parcels import NUM_BUFFERS, Parcel, buffer_floats
from planner.transfers import Transfer

Handle = Callable[[Transfer, torch.Tensor], None]
"""Packs a piece into a flat buffer, or unpacks it."""


@dataclass(frozen=True, eq=False)
class Part:
    """Values of some rows from one of the parts that meet in a new shard.

    Attributes:
        col_offset: First column of the part.
        weight: Its columns, of all up to its last.
        values: float32 [num_rows], copied.
        mean: The same rows of the new shard.
    """

    col_offset: int
    weight: float
    values: torch.Tensor
    mean: torch.Tensor


class Shelf:
    """The shards of one plan on one rank, found by place."""

    def __init__(self, shards: Iterable[HeldShard]) -> None:
        self._by_table: dict[str, list[HeldShard]] = {}
        for shard in shards:
            self._by_table.setdefault(shard.table, []).append(shard)

    def find(self, piece: Transfer) -> HeldShard:
        """The shard that a piece lies in."""
        return next(each for each in self._by_table[piece.table] if _holds(each, piece))


class Guard:
    """Keeps the first error of several attempts, so that a rank goes on to take part in what the others wait for."""

    def __init__(self) -> None:
        self._error: Exception | None = None

    def attempt(self, act: Callable[[], None]) -> None:
        """Act, unless something went wrong before."""
        if self._error is None:
            try:
                act()
            except Exception as error:  # told once all ranks are through
                self._error = error

    def tell(self) -> None:
        """Raise what went wrong."""
        if self._error is not None:
            raise self._error


class Flight:
    """One round between the buffers of this rank and those of the others."""

    def __init__(self, parcels: Sequence[Parcel], rank: int, outgoing: torch.Tensor, incoming: torch.Tensor) -> None:
        mine = (each for each in parcels if each.piece.source == rank)
        theirs = (each for each in parcels if each.piece.target == rank)
        self._mine = sorted(mine, key=lambda each: each.piece.target)
        self._theirs = sorted(theirs, key=lambda each: each.piece.source)
        self._outgoing, self._incoming = outgoing, incoming
        self._work: dist.Work | None = None

    def load(self, pack: Handle) -> None:
        """Fill the buffer that is sent."""
        _handle(self._mine, self._outgoing, pack)

    def start(self, world_size: int) -> None:
        """Exchange, without waiting for the end. Collective."""
        sent, received = [0] * world_size, [0] * world_size
        for parcel in self._mine:
            sent[parcel.piece.target] += parcel.num_floats
        for parcel in self._theirs:
            received[parcel.piece.source] += parcel.num_floats
        outgoing, incoming = self._outgoing[: sum(sent)], self._incoming[: sum(received)]
        self._work = dist.all_to_all_single(incoming, outgoing, received, sent, async_op=True)

    def land(self) -> None:
        """Wait for the end."""
        assert self._work is not None, "land before start"
        self._work.wait()

    def unload(self, unpack: Handle) -> None:
        """Empty the buffer that was received into."""
        _handle(self._theirs, self._incoming, unpack)


class Courier:
    """Copies what stays on this rank, and exchanges the rest in rounds of bounded size.

    A row's single value of row-wise Adagrad stands for all columns of the shard: cut by columns it goes to every part,
    and where parts meet their mean is taken, weighted by columns. It is taken from left to right, whatever came first,
    as `mean += (value - mean) * columns / columns so far`: so replicas are equal to the bit on all ranks, and where all
    parts have the same value the mean is that.

    Attributes:
        transit_sums: int64 [2], sums of the rows' values as they were taken from old shards, and as they arrived: over
            all ranks they must be equal. Only of tables that no sum before and after tells of.
    """

    def __init__(
        self,
        old: Sequence[HeldShard],
        new: Sequence[HeldShard],
        rounds: Sequence[Sequence[Parcel]],
        rank: int,
        device: torch.device,
        summed: Set[str],
    ) -> None:
        """Allocate the buffers.

        Args:
            old: Shards of this rank to take from.
            new: Shards of this rank to fill, on any device.
            rounds: What travels between all ranks.
            rank: This rank.
            device: Of the buffers, and so which backend carries them.
            summed: Tables whose rows' values are summed on the way.
        """
        self._summed = summed
        self._old, self._new, self._rounds, self._rank = Shelf(old), Shelf(new), rounds, rank
        num_sent, num_received = buffer_floats(rounds, rank)
        self._outgoing, self._incoming = (
            [torch.empty(count, device=device) for _ in range(NUM_BUFFERS // 2)] for count in (num_sent, num_received)
        )
        self.transit_sums = torch.zeros(2, dtype=torch.int64, device=device)
        self._parts: list[Part] = []
        for shard in new:
            for state in shard.states:
                if state.dim() == 1:
                    state.zero_()

    @torch.no_grad()
    def keep(self, pieces: Iterable[Transfer]) -> None:
        """Copy the pieces that stay on this rank."""
        for piece in pieces:
            values = _values(self._old.find(piece), piece)
            self._add_up(0, piece, values)
            self._deliver(piece, values)

    @torch.no_grad()
    def merge(self) -> None:
        """Take the means of rows whose parts have met, once all have arrived."""
        for part in sorted(self._parts, key=lambda each: each.col_offset):
            part.mean.add_((part.values - part.mean) * part.weight)
        self._parts.clear()

    @torch.no_grad()
    def exchange(self, at_transfer: Callable[[], None]) -> None:
        """Send and receive all rounds; `at_transfer` is called amid them. Collective.

        While a round is under way the next one is packed, and the one before unpacked. An error of this rank's own is
        raised after the last round: the others wait for it in every one.
        """
        guard, before = Guard(), None
        for number, parcels in enumerate(self._rounds):
            if number == len(self._rounds) // 2:
                guard.attempt(at_transfer)
            side = number % len(self._outgoing)
            flight = Flight(parcels, self._rank, self._outgoing[side], self._incoming[side])
            guard.attempt(partial(flight.load, self._pack))
            if before is not None:
                before.land()
            flight.start(dist.get_world_size())
            if before is not None:
                guard.attempt(partial(before.unload, self._unpack))
            before = flight
        if before is None:
            at_transfer()
            return
        before.land()
        guard.attempt(partial(before.unload, self._unpack))
        guard.tell()

    def _pack(self, piece: Transfer, buffer: torch.Tensor) -> None:
        values = _values(self._old.find(piece), piece)
        self._add_up(0, piece, values)
        for place, each in zip(_split(buffer, values), values, strict=True):
            place.copy_(each)

    def _unpack(self, piece: Transfer, buffer: torch.Tensor) -> None:
        shard = self._new.find(piece)
        self._deliver(piece, _split(buffer, _values(shard, piece)))

    def _deliver(self, piece: Transfer, values: Sequence[torch.Tensor]) -> None:
        self._add_up(1, piece, values)
        shard = self._new.find(piece)
        is_part = piece.num_cols < shard.weight.shape[1]
        for place, each in zip(_values(shard, piece), values, strict=True):
            if place.dim() == 1 and is_part:
                weight = piece.num_cols / (piece.col_offset - shard.col_offset + piece.num_cols)
                self._parts.append(Part(piece.col_offset, weight, each.to(place.device, copy=True), place))
            else:
                place.copy_(each)

    def _add_up(self, side: int, piece: Transfer, values: Sequence[torch.Tensor]) -> None:
        if piece.table not in self._summed:
            return
        for each in values:
            if each.dim() == 1:
                self.transit_sums[side] += row_values_sum(each, piece.row_offset, piece.col_offset)


def _handle(parcels: Sequence[Parcel], buffer: torch.Tensor, handle: Handle) -> None:
    begin = 0
    for parcel in parcels:
        handle(parcel.piece, buffer[begin : begin + parcel.num_floats])
        begin += parcel.num_floats


def _holds(shard: HeldShard, piece: Transfer) -> bool:
    num_rows, num_cols = shard.weight.shape
    row, col = piece.row_offset - shard.row_offset, piece.col_offset - shard.col_offset
    return row >= 0 and col >= 0 and row + piece.num_rows <= num_rows and col + piece.num_cols <= num_cols


def _values(shard: HeldShard, piece: Transfer) -> list[torch.Tensor]:
    """Views of a piece's weights and states in a shard."""
    row, col = piece.row_offset - shard.row_offset, piece.col_offset - shard.col_offset
    rows, cols = slice(row, row + piece.num_rows), slice(col, col + piece.num_cols)
    return [each[rows, cols] if each.dim() == 2 else each[rows] for each in (shard.weight, *shard.states)]


def _split(buffer: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Views of a flat buffer with the shapes of some tensors."""
    parts = buffer.split([each.numel() for each in like])
    return [part.view(each.shape) for part, each in zip(parts, like, strict=True)]
