"""The probe of links: who meets whom, and what three real ranks find of a late sender."""

import time
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlrm.links import MOST_ROUNDS, choose_rounds, find_partner, no_delay, probe_links
from tests.ranks import run_ranks

LATE_MS = 50.0


@given(st.integers(2, 40))
def test_everybody_meets_everybody_once_and_mutually(world_size: int) -> None:
    num_rounds = world_size - 1 + world_size % 2
    met: Counter[tuple[int, int]] = Counter()
    for number in range(num_rounds):
        partners = [find_partner(rank, number, world_size) for rank in range(world_size)]
        assert partners.count(None) == world_size % 2
        for rank, partner in enumerate(partners):
            if partner is not None:
                assert partner != rank and partners[partner] == rank
                met[rank, partner] += 1
    assert set(met.values()) == {1} and len(met) == world_size * (world_size - 1)


@pytest.mark.parametrize("world_size", [1, 2, 3, 16, 17, 18, 256])
def test_large_jobs_take_a_part_of_the_rounds(world_size: int) -> None:
    rounds = choose_rounds(world_size)
    assert rounds == choose_rounds(world_size) and len(set(rounds)) == len(rounds)
    if world_size <= MOST_ROUNDS:
        assert rounds == list(range(world_size - 1 + world_size % 2))
        return
    assert len(rounds) == MOST_ROUNDS
    partners = {rank: {find_partner(rank, number, world_size) for number in rounds} for rank in range(world_size)}
    assert {len(met) for met in partners.values()} == {MOST_ROUNDS}


def probe(rank: int, world_size: int) -> tuple[np.ndarray, int]:
    """The matrix, and how often this rank was asked to hold up a message."""
    held = []

    def late() -> None:
        held.append(rank)
        time.sleep(LATE_MS * 1e-3)

    probe_links(rank, world_size, torch.device("cpu"))
    return probe_links(rank, world_size, torch.device("cpu"), late if rank == 1 else no_delay), len(held)


@pytest.mark.distributed
def test_a_late_sender_has_a_row_of_its_own() -> None:
    results = run_ranks(probe, 3)
    matrices = [matrix for matrix, _ in results]
    for matrix in matrices:
        np.testing.assert_array_equal(matrix, matrices[0])
    matrix = matrices[0]
    assert matrix.shape == (3, 3) and np.isnan(np.diag(matrix)).all() and np.isnan(matrix).sum() == 3
    late, others = matrix[1, [0, 2]], matrix[[0, 0, 2, 2], [1, 2, 0, 1]]
    assert late.min() > 0.5 * LATE_MS and others.max() < 0.5 * LATE_MS


@pytest.mark.distributed
def test_one_rank_has_no_link() -> None:
    (result,) = run_ranks(probe, 1)
    assert np.isnan(result[0]).all() and result[0].shape == (1, 1)
