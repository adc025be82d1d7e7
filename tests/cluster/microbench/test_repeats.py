"""Repeating ends when the median is known, and not later than allowed."""

import time
from itertools import count

import numpy as np
import pytest
import torch

from cluster.microbench.clock import repeat
from cluster.microbench.repeats import Limits, median_half_width, median_interval

CPU = torch.device("cpu")


def busy(_: int) -> tuple[float, ...]:
    sum(range(20_000))
    return (5.0, 2.0)


def test_equal_times_need_the_fewest_repeats() -> None:
    first, second = repeat(busy, Limits(), CPU)
    assert (first.median_ms, first.iqr_ms, second.median_ms) == (5.0, 0.0, 2.0)
    assert first.num_repeats == Limits().min_repeats


def test_wild_times_are_repeated_to_the_limit() -> None:
    calls = count()

    def wild(index: int) -> tuple[float, ...]:
        next(calls)
        return (busy(index)[0] * (1 + index % 2),)

    (timing,) = repeat(wild, Limits(num_warmups=3, max_repeats=12, seconds=60.0), torch.device("meta"))
    assert timing.num_repeats == 12 and next(calls) == 15


def test_no_time_still_gives_the_fewest_repeats() -> None:
    (timing,) = repeat(lambda index: (1.0 + index,), Limits(min_repeats=7, seconds=0.0), torch.device("meta"))
    assert timing.num_repeats == 7


def test_repeats_without_the_core_are_left_out_while_there_are_others() -> None:
    def disturbed(index: int) -> tuple[float, ...]:
        if index % 2:
            time.sleep(0.002)  # off the core, as when another process is given it
            return (9.0,)
        return (busy(index)[0],)

    (timing,) = repeat(disturbed, Limits(num_warmups=0, max_repeats=60), CPU)
    assert (timing.median_ms, timing.iqr_ms) == (5.0, 0.0)


@pytest.mark.parametrize("size", [6, 9, 20, 50])
def test_the_interval_encloses_the_median_in_95_of_100_draws(size: int) -> None:
    rng = np.random.default_rng(size)
    draws = np.exp(rng.normal(size=(1000, size)))  # their true median is 1
    hits = sum(low <= 1.0 <= high for low, high in map(median_interval, draws.tolist()))
    assert 940 <= hits < 1000


def test_too_few_values_say_nothing() -> None:
    assert median_half_width([1.0] * 5) == float("inf")
