"""Splitting, shuffling, slicing and positions, on rows that carry their own number."""

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm.data.batches import Batch
from dlrm.data.stream import BatchStream, ReadReport
from dlrm.errors import DataError
from tests.dlrm.data.helpers import NumberedReader, drain, numbered_source, row_numbers, same


def read_numbers(
    split: str, num_rows: int, batch_size: int, world_size: int, **options: int | None
) -> list[list[list[int]]]:
    """Row numbers of one epoch, by rank and batch."""
    ranks = []
    for rank in range(world_size):
        source = numbered_source(num_rows, split, batch_size, rank, world_size, **options)
        ranks.append([row_numbers(batch) for batch in drain(BatchStream(source, 2, num_epochs=1))])
    return ranks


@settings(max_examples=40, deadline=None)
@given(
    num_rows=st.integers(60, 200),
    batch_size=st.integers(1, 8),
    world_size=st.integers(1, 4),
    shuffle_rows=st.sampled_from([0, 1, 13, 500]),
)
def test_ranks_together_are_the_stream_each_row_once(
    num_rows: int, batch_size: int, world_size: int, shuffle_rows: int
) -> None:
    train = read_numbers("train", num_rows, batch_size, world_size, shuffle_rows=shuffle_rows)
    held_out = read_numbers("eval", num_rows, batch_size, world_size, shuffle_rows=shuffle_rows)
    assert len({len(batches) for batches in train}) == 1
    trained = [number for batches in train for batch in batches for number in batch]
    evaluated = [number for batches in held_out for batch in batches for number in batch]
    in_train = [number for number in range(num_rows) if (number + 1) % 5]
    in_eval = [number for number in range(num_rows) if (number + 1) % 5 == 0]
    assert len(trained) == len(in_train) - len(in_train) % (batch_size * world_size)
    assert len(set(trained)) == len(trained) and set(trained) <= set(in_train)
    assert sorted(evaluated) == in_eval[: len(in_eval) - len(in_eval) % world_size]


def test_without_shuffling_the_order_is_the_streams() -> None:
    ranks = read_numbers("train", 40, 4, 2, holdout_every=None)
    assert ranks[0] == [[0, 1, 2, 3], [8, 9, 10, 11], [16, 17, 18, 19], [24, 25, 26, 27], [32, 33, 34, 35]]
    assert ranks[1][0] == [4, 5, 6, 7]


def test_batches_hold_their_rows_features() -> None:
    for batch in drain(BatchStream(numbered_source(100, "train", 8, 1, 2, shuffle_rows=30), 2, num_epochs=1)):
        jagged = batch.sparse_features.to_dict()
        for row, number in enumerate(row_numbers(batch)):
            assert batch.labels[row] == number % 2
            assert jagged["single"].to_dense()[row].tolist() == [number * 10]
            assert jagged["ragged"].to_dense()[row].tolist() == [number] * (number % 4)


def test_shuffling_mixes_within_windows_and_differs_between_epochs() -> None:
    source = numbered_source(64, "train", 16, 0, 1, holdout_every=None, shuffle_rows=32)
    batches = [row_numbers(batch) for batch in drain(BatchStream(source, 2, num_epochs=2))]
    assert sorted(batches[0] + batches[1]) == list(range(32))
    assert batches[0] != sorted(batches[0])
    assert batches[:4] != batches[4:]


@pytest.mark.parametrize("taken", [0, 3, 5, 7, 12])
def test_a_sought_stream_goes_on_as_if_never_stopped(taken: int) -> None:
    source = numbered_source(50, "train", 4, 1, 2, shuffle_rows=20)
    whole = drain(BatchStream(source, 3, num_epochs=3))
    assert len(whole) == 15
    with BatchStream(source, 3, num_epochs=3) as first:
        for _ in range(taken):
            next(first)
        position = first.position()
    resumed = BatchStream(numbered_source(50, "train", 4, 1, 2, shuffle_rows=20), 3, num_epochs=3)
    resumed.seek(position)
    rest = drain(resumed)
    assert len(rest) == len(whole) - taken
    assert all(same(a, b) for a, b in zip(rest, whole[taken:], strict=True))


def test_the_position_is_what_was_taken_not_what_was_made_ahead() -> None:
    class Counting:
        """Ten batches an epoch; says when the first five are made."""

        def __init__(self) -> None:
            self.source = numbered_source(100, "train", 8, 0, 1)
            self.are_five_made = threading.Event()

        def read_epoch(self, epoch: int, first_batch: int) -> Iterator[Batch]:
            for number, batch in enumerate(self.source.read_epoch(epoch, first_batch), start=1):
                if number == 5:
                    self.are_five_made.set()
                yield batch

        @property
        def num_batches(self) -> int | None:
            return self.source.num_batches

        def report(self) -> ReadReport:
            return self.source.report()

    source = Counting()
    with BatchStream(source, 4, num_epochs=None) as stream:
        next(stream)
        assert source.are_five_made.wait(timeout=10)
        assert stream.position() == {"epoch": 0, "batch": 1}


def test_endless_streams_go_on_with_the_next_epoch() -> None:
    with BatchStream(numbered_source(50, "train", 20, 0, 1), 2, num_epochs=None) as stream:
        for _ in range(5):
            next(stream)
        assert stream.position() == {"epoch": 2, "batch": 1}


def test_the_last_training_rows_are_dropped_and_counted() -> None:
    stream = BatchStream(numbered_source(50, "train", 8, 0, 2), 2, num_epochs=1)
    assert len(drain(stream)) == 2
    assert stream.report().num_dropped_rows == 40 - 2 * 16
    assert stream.report().num_rows == 50


def test_dropped_rows_stay_told_in_the_next_epoch() -> None:
    with BatchStream(numbered_source(50, "train", 8, 0, 2), 1, num_epochs=None) as stream:
        assert stream.report().num_dropped_rows == 0
        for _ in range(5):
            next(stream)
        assert stream.position()["epoch"] == 2
        assert stream.report().num_dropped_rows == 40 - 2 * 16
    held_out = BatchStream(numbered_source(50, "eval", 2, 0, 3), 1, num_epochs=1)
    assert [len(batch.labels) for batch in drain(held_out)] == [2, 1]
    assert held_out.report().num_dropped_rows == 10 - 9


def test_the_length_of_an_epoch_is_known_once_it_was_read_whole() -> None:
    source = numbered_source(100, "train", 8, 0, 1, holdout_every=None)
    with BatchStream(source, 1, num_epochs=None) as stream:
        next(stream)
        assert stream.num_batches is None
        for _ in range(12):
            next(stream)
        assert stream.num_batches == 12
    resumed = BatchStream(numbered_source(100, "train", 8, 0, 1, holdout_every=None), 1, num_epochs=1)
    resumed.seek({"epoch": 0, "batch": 11})
    drain(resumed)
    assert resumed.num_batches == 12


@pytest.mark.parametrize("shuffle_rows", [0, 20])
def test_a_rank_encodes_the_rows_of_its_own_batches_alone(shuffle_rows: int) -> None:
    for split in ("train", "eval"):
        reader = NumberedReader(200)
        source = numbered_source(reader, split, 4, 1, 3, shuffle_rows=shuffle_rows)
        batches = drain(BatchStream(source, 2, num_epochs=1))
        assert reader.encoded == [number for batch in batches for number in row_numbers(batch)]


def test_what_lies_before_a_sought_position_is_not_encoded() -> None:
    reader = NumberedReader(100)
    stream = BatchStream(numbered_source(reader, "train", 8, 0, 1, holdout_every=None), 2, num_epochs=1)
    stream.seek({"epoch": 0, "batch": 10})
    drain(stream)
    assert reader.encoded == list(range(80, 96))


def test_too_little_data_is_an_error_with_the_numbers() -> None:
    stream = BatchStream(numbered_source(50, "train", 64, 0, 2), 2, num_epochs=1)
    with pytest.raises(DataError, match=r"40 of 50 good rows .*needs 128 \(2 ranks x batch size 64\)") as caught:
        drain(stream)
    assert caught.value.reason == "too_short"


def test_a_position_past_the_end_is_an_error() -> None:
    stream = BatchStream(numbered_source(50, "train", 8, 0, 1), 2, num_epochs=1)
    stream.seek({"epoch": 0, "batch": 6})
    with pytest.raises(DataError, match="batch 6 of epoch 0, but the epoch has 5 batches"):
        drain(stream)


def test_an_error_in_the_thread_reaches_the_consumer_after_the_batches_before_it() -> None:
    class Failing:
        """One batch, then a full stop."""

        num_batches = None

        def read_epoch(self, epoch: int, first_batch: int) -> Iterator[Batch]:
            yield next(numbered_source(50, "train", 8, 0, 1).read_epoch(epoch, first_batch))
            raise OSError("the disk is gone")

        def report(self) -> ReadReport:
            return ReadReport()

    with BatchStream(Failing(), 2, num_epochs=1) as stream:
        next(stream)
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                next(stream)


def test_close_ends_the_thread_even_when_its_queue_is_full() -> None:
    stream = BatchStream(numbered_source(500, "train", 2, 0, 1), 1, num_epochs=None)
    next(stream)
    assert any(thread.name == "data-prefetch" for thread in threading.enumerate())
    stream.close()
    assert not any(thread.name == "data-prefetch" for thread in threading.enumerate())
    assert stream.position() == {"epoch": 0, "batch": 1}
