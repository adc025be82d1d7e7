"""Cuts what travels into parcels, and sorts these into rounds that fit the buffers; every rank gets the same rounds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planner.memory import FLOAT_BYTES
from planner.tables import OptimizerKind
from planner.transfers import Transfer

NUM_BUFFERS = 4
"""Into which a chunk's bytes are divided: two that are sent from and two that are received into, in turns."""

PARCELS_A_BUFFER = 8
"""A parcel takes at most this part of a buffer, so that little of one stays empty."""


@dataclass(frozen=True)
class Layout:
    """What of one rectangle travels, in floats.

    Attributes:
        num_cell_values: Of every cell: the weight, and state that is kept for each weight.
        num_row_values: Of every row: state that is kept for rows.
    """

    num_cell_values: int
    num_row_values: int

    @property
    def num_states(self) -> int:
        """Tensors of state beside the weights."""
        return self.num_cell_values - 1 + self.num_row_values

    def num_floats(self, num_rows: int, num_cols: int) -> int:
        """Floats of so large a rectangle."""
        return num_rows * (num_cols * self.num_cell_values + self.num_row_values)


@dataclass(frozen=True)
class Parcel:
    """Some rows of one transfer, with all their state.

    Attributes:
        piece: What is transferred, cut to these rows.
        num_floats: Its size.
    """

    piece: Transfer
    num_floats: int


def cut_parcels(pieces: Iterable[Transfer], layout: Layout, chunk_bytes: int) -> list[Parcel]:
    """Parcels of the pieces that travel, each at most a part of a buffer unless a single row is larger."""
    most = max(1, chunk_bytes // NUM_BUFFERS // FLOAT_BYTES // PARCELS_A_BUFFER)
    found = []
    for piece in pieces:
        num_rows = max(1, most // layout.num_floats(1, piece.num_cols))
        begins = range(0, piece.num_rows, num_rows)
        found += [_parcel(piece, begin, min(num_rows, piece.num_rows - begin), layout) for begin in begins]
    return found


def sort_into_rounds(parcels: Sequence[Parcel], world_size: int, chunk_bytes: int) -> list[list[Parcel]]:
    """Rounds in which no rank sends, or receives, more than a buffer holds; a larger parcel travels alone.

    Each parcel goes into the first round, from the one of its pair's latest parcel on, that has room at both ends.
    """
    limit = chunk_bytes // NUM_BUFFERS // FLOAT_BYTES
    rounds: list[list[Parcel]] = []
    sent: list[list[int]] = []
    received: list[list[int]] = []
    first_open: dict[tuple[int, int], int] = {}
    for parcel in parcels:
        source, target, size = parcel.piece.source, parcel.piece.target, parcel.num_floats
        at = first_open.get((source, target), 0)
        while at < len(rounds) and not _has_room(sent[at][source], received[at][target], size, limit):
            at += 1
        if at == len(rounds):
            rounds.append([])
            sent.append([0] * world_size)
            received.append([0] * world_size)
        rounds[at].append(parcel)
        sent[at][source] += size
        received[at][target] += size
        first_open[source, target] = at
    return rounds


def buffer_floats(rounds: Sequence[Sequence[Parcel]], rank: int) -> tuple[int, int]:
    """The most that a rank sends, and receives, in one round."""
    sent = (sum(each.num_floats for each in parcels if each.piece.source == rank) for parcels in rounds)
    received = (sum(each.num_floats for each in parcels if each.piece.target == rank) for parcels in rounds)
    return max(sent, default=0), max(received, default=0)


def layout_of(optimizer: OptimizerKind) -> Layout:
    """What of a table an optimizer keeps besides the weights: Adam two moments a weight, row-wise Adagrad a sum a row.

    Source: FBGEMM `SplitTableBatchedEmbeddingBagsCodegen`, momentum1 and momentum2.
    """
    return Layout(3 if optimizer is OptimizerKind.ADAM else 1, int(optimizer is OptimizerKind.ROWWISE_ADAGRAD))


def _has_room(sent: int, received: int, size: int, limit: int) -> bool:
    return (sent == 0 or sent + size <= limit) and (received == 0 or received + size <= limit)


def _parcel(piece: Transfer, begin: int, num_rows: int, layout: Layout) -> Parcel:
    cut = Transfer(
        piece.table,
        piece.source,
        piece.target,
        piece.row_offset + begin,
        num_rows,
        piece.col_offset,
        piece.num_cols,
    )
    return Parcel(cut, layout.num_floats(num_rows, piece.num_cols))
