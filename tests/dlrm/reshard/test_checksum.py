"""Sums of tables: the same however they are cut, another one whatever changes."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm.reshard.checksum import BLOCK_CELLS, cells_sum, shard_sums, table_sums
from dlrm.reshard.held import HeldShard

ROWS, COLS = 23, 12
rows = st.integers(0, ROWS - 1)
columns = st.integers(0, COLS - 1)
cuts = st.sets(st.integers(1, ROWS - 1)), st.sets(st.integers(1, COLS - 1))


def drawn(seed: int) -> torch.Tensor:
    return torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(seed))


def spans(marks: set[int], end: int) -> list[tuple[int, int]]:
    edges = [0, *sorted(marks), end]
    return list(pairwise(edges))


@given(st.integers(0, 99), *cuts)
def test_any_cut_has_the_sum_of_the_whole(seed: int, row_marks: set[int], col_marks: set[int]) -> None:
    cells = drawn(seed)
    parts = [
        cells_sum(cells[top:bottom, left:right], top, left)
        for top, bottom in spans(row_marks, ROWS)
        for left, right in spans(col_marks, COLS)
    ]
    assert torch.stack(parts).sum() == cells_sum(cells, 0, 0)


@given(rows, columns, st.integers(0, 31))
def test_any_changed_bit_changes_the_sum(row: int, column: int, bit: int) -> None:
    cells = drawn(1)
    before = cells_sum(cells, 0, 0)
    # The sign bit as an int32: 1 << 31 does not fit one.
    cells.view(torch.int32)[row, column] ^= (1 << bit) if bit < 31 else -(1 << 31)
    assert cells_sum(cells, 0, 0) != before


@given(st.permutations(range(ROWS)), st.permutations(range(COLS)))
@settings(max_examples=50)
def test_exchanged_rows_or_columns_change_the_sum(row_order: list[int], col_order: list[int]) -> None:
    cells = drawn(2)
    exchanged = cells[row_order][:, col_order]
    is_same = row_order == list(range(ROWS)) and col_order == list(range(COLS))
    assert (cells_sum(exchanged, 0, 0) == cells_sum(cells, 0, 0)) == is_same


def test_a_table_larger_than_a_block_has_the_sum_of_its_halves() -> None:
    cells = torch.randn(2 * BLOCK_CELLS["cpu"] // 8 + 5, 8, generator=torch.Generator().manual_seed(3))
    half = len(cells) // 2
    assert cells_sum(cells[:half], 0, 0) + cells_sum(cells[half:], half, 0) == cells_sum(cells, 0, 0)


def test_values_that_are_no_numbers_have_a_sum_too() -> None:
    cells = torch.full((2, 4), torch.nan)
    assert cells_sum(cells, 0, 0) == cells_sum(cells.clone(), 0, 0) != cells_sum(torch.zeros(2, 4), 0, 0)


@given(st.integers(1, COLS - 1))
def test_state_of_weights_is_summed_by_place_and_that_of_rows_by_row(mark: int) -> None:
    weight, state, row_state = drawn(4), drawn(5), drawn(6)[:, 0].clone()
    whole = shard_sums(HeldShard("a", 0, 0, weight, (state, row_state)))
    left = shard_sums(HeldShard("a", 0, 0, weight[:, :mark], (state[:, :mark], row_state)))
    right = shard_sums(HeldShard("a", 0, mark, weight[:, mark:], (state[:, mark:], row_state)))
    assert (left + right)[:2].equal(whole[:2]) and left[2] == right[2] == whole[2]


def test_tables_are_told_apart() -> None:
    shards = [HeldShard(name, 0, 0, drawn(seed), ()) for seed, name in enumerate("abb")]
    sums = table_sums(shards, {"a": 0, "b": 1, "c": 2}, 1)
    assert sums[0] == shard_sums(shards[0]) and sums[1] == shard_sums(shards[1]) + shard_sums(shards[2])
    assert sums[2] == 0
