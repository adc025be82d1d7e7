"""Rings hold the newest rows in the room they were given, count what they lose, and never grow."""

import pickle
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.telemetry import LEAST_ROWS, Block, Rings

SHAPE = (2, 3)
LABELS = {"columns": ["a", "b", "c"]}
ROW_BYTES = 8 * (1 + 6)
NUM_SLOTS = 40


def rows_of(steps: np.ndarray) -> np.ndarray:
    """Rows by which each can be told: 6 numbers from the step on."""
    return steps[:, None, None] + np.arange(6.0).reshape(SHAPE)


def make_rings(num_slots: int = NUM_SLOTS) -> Rings:
    rings = Rings(num_slots * ROW_BYTES)
    rings.declare("steps", SHAPE, LABELS)
    return rings


def append(rings: Rings, first: int, count: int) -> None:
    steps = np.arange(first, first + count)
    rings.append("steps", steps, rows_of(steps))


def check(block: Block, steps: list[int], num_dropped: int = 0) -> None:
    assert block.steps.tolist() == steps
    assert (block.rows == rows_of(block.steps)).all()
    assert block.num_dropped == num_dropped


@given(st.lists(st.one_of(st.integers(0, 3 * NUM_SLOTS), st.just("drain")), max_size=30))
def test_a_ring_keeps_the_newest_rows_and_counts_the_others(calls: list[int | str]) -> None:
    rings, waiting, step = make_rings(), [], 0
    for call in [*calls, "drain"]:
        if call == "drain":
            kept = waiting[-NUM_SLOTS:]
            blocks = rings.drain()
            assert len(blocks) == bool(kept)
            for block in blocks:
                check(block, kept, len(waiting) - len(kept))
            waiting = []
        else:
            append(rings, step, int(call))
            waiting += range(step, step + int(call))
            step += int(call)


def test_what_was_drained_stays_as_it_was() -> None:
    rings = make_rings()
    append(rings, 0, NUM_SLOTS)
    (block,) = rings.drain()
    append(rings, NUM_SLOTS, NUM_SLOTS)
    check(block, list(range(NUM_SLOTS)))
    check(pickle.loads(pickle.dumps(block)), list(range(NUM_SLOTS)))


def test_rows_larger_than_the_room_still_have_a_few_places() -> None:
    rings = Rings(1)
    rings.declare("steps", SHAPE, LABELS)
    append(rings, 0, LEAST_ROWS + 1)
    check(rings.drain()[0], list(range(1, LEAST_ROWS + 1)), 1)


def test_memory_does_not_grow_whether_or_not_anybody_drains() -> None:
    rings, num_rows = make_rings(1000), 100
    steps = np.arange(num_rows)
    rows = rows_of(steps)
    tracemalloc.start()
    try:
        rings.append("steps", steps, rows)
        sizes = [tracemalloc.get_traced_memory()[0]]
        for number in range(1, 1000):
            rings.append("steps", steps + num_rows * number, rows)
            if number > 500:
                rings.drain()
        sizes.append(tracemalloc.get_traced_memory()[0])
        for number in range(1000, 1050):
            rings.declare("steps", SHAPE, {**LABELS, "plan": number})
            rings.append("steps", steps + num_rows * number, rows)
        sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # Python itself keeps up to 2000 freed tuples of a length, 48 bytes each; the rows written came to 5.6 MB.
    slack = 2 * 2000 * 48
    assert sizes[1] - sizes[0] < slack
    # The series' own room is traced only now that it was made anew; beside it lies what had not been drained before.
    assert sizes[2] - sizes[1] < (1000 + num_rows) * ROW_BYTES + slack


def test_nothing_is_lost_uncounted_between_threads() -> None:
    rings, count = make_rings(), 3_000
    writer = threading.Thread(target=lambda: [append(rings, 7 * number, 7) for number in range(count)])
    blocks: list[Block] = []
    writer.start()
    while writer.is_alive():
        blocks += rings.drain()
    blocks += rings.drain()
    steps = np.concatenate([block.steps for block in blocks])
    assert (np.diff(steps) > 0).all()
    assert all((block.rows == rows_of(block.steps)).all() for block in blocks)
    assert len(steps) + sum(block.num_dropped for block in blocks) == 7 * count


def test_declared_again_alike_a_series_goes_on() -> None:
    rings = make_rings()
    append(rings, 1, 3)
    rings.declare("steps", SHAPE, {"columns": list("abc")})
    append(rings, 4, 1)
    check(rings.drain()[0], [1, 2, 3, 4])


def test_declared_otherwise_it_begins_anew_after_what_was_there() -> None:
    rings = make_rings()
    append(rings, 0, NUM_SLOTS + 5)
    rings.declare("steps", (1,), {"columns": ["other"]})
    rings.append("steps", np.array([NUM_SLOTS + 5]), np.array([[1.5]]))
    old, new = rings.drain()
    check(old, list(range(5, NUM_SLOTS + 5)), 5)
    assert (old.labels, new.labels) == (LABELS, {"columns": ["other"]})
    assert (new.steps.tolist(), new.rows.tolist(), new.num_dropped) == ([NUM_SLOTS + 5], [[1.5]], 0)
    assert rings.drain() == ()


def test_of_many_beginnings_the_last_is_kept_and_the_others_are_counted() -> None:
    rings = make_rings()
    for number in range(4):
        rings.declare("steps", SHAPE, {**LABELS, "plan": number})
        append(rings, 10 * number, 5)
    old, new = rings.drain()
    check(old, [20, 21, 22, 23, 24], 10)
    check(new, [30, 31, 32, 33, 34])
    assert (old.labels["plan"], new.labels["plan"]) == (2, 3)


def test_a_run_that_counts_from_the_beginning_again_is_a_block_of_its_own() -> None:
    rings = make_rings()
    append(rings, 1, 4)
    append(rings, 1, 2)
    append(rings, 3, 1)
    old, new = rings.drain()
    check(old, [1, 2, 3, 4])
    check(new, [1, 2, 3])


@given(last=st.integers(0, 120), dropped=st.integers(0, 60))
def test_one_that_was_never_drained_goes_on_where_another_ended(last: int, dropped: int) -> None:
    rings = make_rings()
    end = NUM_SLOTS + dropped
    append(rings, 0, end)
    rings.declare("shards", (1,), {"columns": ["ids"]})
    rings.append("shards", np.array([9]), np.array([[3.0]]))
    blocks = {block.name: block for block in rings.drain({"steps": last})}
    assert blocks["shards"].steps.tolist() == [9]
    if last >= end - 1:
        assert "steps" not in blocks
    else:
        check(blocks["steps"], list(range(max(last + 1, dropped), end)), max(0, dropped - last - 1))
    assert rings.drain() == ()


@pytest.mark.parametrize(
    ("name", "steps", "shape", "words"),
    [
        ("shards", [1], (1, 2, 3), "not declared; there are: steps"),
        ("steps", [1, 2], (1, 2, 3), r"expected rows \(2, 2, 3\), found \(1, 2, 3\)"),
        ("steps", [2, 2], (2, 2, 3), "expected increasing"),
    ],
)
def test_rows_that_do_not_fit_are_refused(name: str, steps: list[int], shape: tuple[int, ...], words: str) -> None:
    rings = make_rings()
    with pytest.raises(ValueError, match=words):
        rings.append(name, np.array(steps), np.zeros(shape))
    assert rings.drain() == ()


def test_a_series_needs_names_for_its_columns_and_room() -> None:
    with pytest.raises(ValueError, match="found 2"):
        Rings().declare("steps", SHAPE, {"columns": ["a", "b"]})
    with pytest.raises(ValueError, match="found 0"):
        Rings(0)
