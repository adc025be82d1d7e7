"""What travels: cut into parcels, sorted into rounds that fit the buffers, alike on every rank."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm.reshard.parcels import (
    FLOAT_BYTES,
    NUM_BUFFERS,
    Layout,
    Parcel,
    buffer_floats,
    cut_parcels,
    layout_of,
    sort_into_rounds,
)
from planner.tables import OptimizerKind
from planner.transfers import Transfer

WORLD_SIZE = 4
layouts = st.sampled_from([layout_of(kind) for kind in OptimizerKind])
chunks = st.integers(1 << 8, 1 << 14)


@st.composite
def pieces(draw: st.DrawFn) -> list[Transfer]:
    """Pieces of as many tables, so that none overlap."""
    found = []
    for number in range(draw(st.integers(0, 12))):
        source = draw(st.integers(0, WORLD_SIZE - 1))
        target = (source + draw(st.integers(1, WORLD_SIZE - 1))) % WORLD_SIZE
        row, num_rows = draw(st.integers(0, 50)), draw(st.integers(1, 300))
        col, num_cols = draw(st.integers(0, 5)), draw(st.integers(1, 40))
        found.append(Transfer(f"t{number}", source, target, row, num_rows, 4 * col, 4 * num_cols))
    return found


@given(pieces(), layouts, chunks)
def test_parcels_are_the_pieces_row_by_row_with_their_state(moved: list[Transfer], layout: Layout, chunk: int) -> None:
    parcels = cut_parcels(moved, layout, chunk)
    for piece in moved:
        mine = [parcel.piece for parcel in parcels if parcel.piece.table == piece.table]
        found = [row for each in mine for row in range(each.row_offset, each.row_offset + each.num_rows)]
        assert found == list(range(piece.row_offset, piece.row_offset + piece.num_rows))
        ends = {(each.source, each.target, each.col_offset, each.num_cols) for each in mine}
        assert ends == {(piece.source, piece.target, piece.col_offset, piece.num_cols)}
    total = sum(layout.num_floats(piece.num_rows, piece.num_cols) for piece in moved)
    assert sum(parcel.num_floats for parcel in parcels) == total


@given(pieces(), layouts, chunks)
def test_rounds_hold_each_parcel_once_and_fit_the_buffers(moved: list[Transfer], layout: Layout, chunk: int) -> None:
    parcels = cut_parcels(moved, layout, chunk)
    rounds = sort_into_rounds(parcels, WORLD_SIZE, chunk)
    assert Counter(each for parcels in rounds for each in parcels) == Counter(parcels)
    assert all(rounds)
    for parcels in rounds:
        for rank in range(WORLD_SIZE):
            sent = [each.num_floats for each in parcels if each.piece.source == rank]
            received = [each.num_floats for each in parcels if each.piece.target == rank]
            for sizes in (sent, received):
                assert FLOAT_BYTES * sum(sizes) <= chunk // 2 or len(sizes) == 1


@given(pieces(), layouts, chunks)
def test_buffers_are_as_large_as_the_largest_round(moved: list[Transfer], layout: Layout, chunk: int) -> None:
    rounds = sort_into_rounds(cut_parcels(moved, layout, chunk), WORLD_SIZE, chunk)
    for rank in range(WORLD_SIZE):
        sent, received = buffer_floats(rounds, rank)
        for parcels in rounds:
            assert sum(each.num_floats for each in parcels if each.piece.source == rank) <= sent
            assert sum(each.num_floats for each in parcels if each.piece.target == rank) <= received
        assert (sent > 0) == any(piece.source == rank for piece in moved)
        assert (received > 0) == any(piece.target == rank for piece in moved)


@given(pieces(), layouts, chunks)
def test_parcels_of_a_pair_of_ranks_keep_their_order(moved: list[Transfer], layout: Layout, chunk: int) -> None:
    parcels = cut_parcels(moved, layout, chunk)
    in_rounds = [each for group in sort_into_rounds(parcels, WORLD_SIZE, chunk) for each in group]

    def of_pair(found: list[Parcel], pair: tuple[int, int]) -> list[Parcel]:
        return [each for each in found if (each.piece.source, each.piece.target) == pair]

    for pair in {(each.piece.source, each.piece.target) for each in parcels}:
        assert of_pair(in_rounds, pair) == of_pair(parcels, pair)


def test_pairs_of_ranks_that_have_nothing_in_common_share_a_round() -> None:
    moved = [Transfer("a", 0, 1, 0, 8, 0, 4), Transfer("b", 2, 3, 0, 8, 0, 4)]
    parcels = cut_parcels(moved, Layout(1, 0), 8 * 8 * 4 * 4 * NUM_BUFFERS)
    assert [len(each) for each in sort_into_rounds(parcels, WORLD_SIZE, 8 * 8 * 4 * 4 * NUM_BUFFERS)] == [2]


@pytest.mark.parametrize(("kind", "num_floats"), [("sgd", 40), ("rowwise_adagrad", 50), ("adam", 120)])
def test_state_travels_with_its_rows(kind: str, num_floats: int) -> None:
    assert layout_of(OptimizerKind(kind)).num_floats(10, 4) == num_floats
