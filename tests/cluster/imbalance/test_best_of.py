"""The best of the last steps, however blocks are cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.imbalance.best_of import BEST_OF, BestOfLast, BestReader, join_steps
from cluster.telemetry import Block
from tests.cluster.imbalance.fleets import COLLECTIVES, COLUMNS, DENSE, LOOKUPS, column, make_rows, scale, steps_block


@settings(deadline=None)
@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, 20), max_size=5))
def test_it_is_the_least_of_the_last_steps(seed: int, cuts: list[int]) -> None:
    rows = np.random.default_rng(seed).random((20, 3, 2))
    best = BestOfLast()
    found = np.concatenate([best.take(part) for part in np.split(rows, sorted(cuts))])
    expected = [rows[max(0, step - BEST_OF + 1) : step + 1].min(axis=0) for step in range(20)]
    assert (found == np.array(expected)).all()


def test_an_interruption_is_not_seen_and_a_change_is() -> None:
    rows = make_rows(40, 2, noise=0.0)
    scale(rows, (*LOOKUPS, *DENSE, *COLLECTIVES), 5.0, 1, slice(10, 10 + BEST_OF - 1))
    scale(rows, LOOKUPS, 2.0, 0, slice(30, None))
    best = BestReader().read(steps_block(rows))
    assert best.lookup_ms[:, 1] == pytest.approx(8) and best.dense_ms == pytest.approx(16)
    assert best.transfer_ms == pytest.approx(2) and best.work_ms[:, 1] == pytest.approx(24)
    assert best.lookup_ms[[29, 30 + BEST_OF - 1], 0] == pytest.approx([8, 16])


def test_work_that_is_slow_in_turns_is_seen_in_whole_steps_alone() -> None:
    rows = make_rows(40, 2, noise=0.0)
    for index, name in enumerate((*LOOKUPS, *DENSE)):
        scale(rows, (name,), 4.0, 0, slice(20 + index % 2, None, 2))
    best = BestReader().read(steps_block(rows))
    assert best.lookup_ms == pytest.approx(8) and best.dense_ms == pytest.approx(16)
    assert best.work_ms[30:, 0] == pytest.approx(60) and best.work_ms[:, 1] == pytest.approx(24)


def test_counts_are_of_the_very_step() -> None:
    rows = make_rows(10, 2)
    best = BestReader().read(steps_block(rows))
    assert (best.ids == column(rows, "ids")).all() and best.bytes == pytest.approx(2e5)


def test_parts_join() -> None:
    block = steps_block(make_rows(12, 2))
    whole = BestReader().read(block)
    reader = BestReader()
    cut = (Block("steps", block.labels, block.steps[at], block.rows[at]) for at in (slice(0, 5), slice(5, None)))
    joined = join_steps([reader.read(each) for each in cut])
    assert all((vars(joined)[name] == vars(whole)[name]).all() for name in vars(whole))
    assert (join_steps([whole.part(slice(0, 7)), whole.part(slice(7, None))]).ids == whole.ids).all()


@pytest.mark.parametrize("columns", [list(COLUMNS), [*COLUMNS, "more"]])
def test_another_layout_is_refused(columns: list[str]) -> None:
    reader = BestReader()
    reader.read(steps_block(make_rows(5, 2)))
    with pytest.raises(ValueError, match="other ranks or columns"):
        reader.read(Block("steps", {"columns": columns}, np.arange(5), np.zeros((5, 3, len(columns)))))
