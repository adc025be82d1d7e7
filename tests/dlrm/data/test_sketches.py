"""Sketches against exact counts, and merged ones against one pass."""

from collections import Counter
from functools import reduce

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm.data.sketches import FeatureSketch, HeavyHitters, PoolingCounts, RowSample, hash_rows, merge_sketches

CAPACITY = 8
BATCHES = st.lists(st.lists(st.integers(0, 40), max_size=60), min_size=1, max_size=6)


def counted(ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.unique(np.array(ids, np.int64), return_counts=True)


def heavy(ids: list[int]) -> HeavyHitters:
    return HeavyHitters.of(*counted(ids), capacity=CAPACITY)


def sample(ids: list[int]) -> RowSample:
    return RowSample.of(*counted(ids), capacity=CAPACITY)


@settings(max_examples=150, deadline=None)
@given(batches=BATCHES, split=st.integers(0, 6))
def test_heavy_hitters_keep_their_bound_in_any_order_of_merging(batches: list[list[int]], split: int) -> None:
    def merge(parts: list[list[int]]) -> HeavyHitters:
        return reduce(lambda a, b: a.merge(b, CAPACITY), map(heavy, parts), heavy([]))

    exact = Counter(id for ids in batches for id in ids)
    for found in (merge(batches), merge(batches[:split]).merge(merge(batches[split:]), CAPACITY)):
        counts = dict(zip(found.rows.tolist(), found.counts.tolist(), strict=True))
        assert len(counts) <= CAPACITY
        assert found.max_undercount <= exact.total() / (CAPACITY + 1)
        for row, count in exact.items():
            assert count - found.max_undercount <= counts.get(row, 0) <= count
        assert set(counts) <= set(exact)


@settings(max_examples=150, deadline=None)
@given(batches=BATCHES, split=st.integers(0, 6))
def test_the_sample_of_rows_is_the_same_however_it_came_about(batches: list[list[int]], split: int) -> None:
    def merge(parts: list[list[int]]) -> RowSample:
        return reduce(lambda a, b: a.merge(b, CAPACITY), map(sample, parts), sample([]))

    whole = [id for ids in batches for id in ids]
    once, merged = sample(whole), merge(batches[:split]).merge(merge(batches[split:]), CAPACITY)
    for found in (merged, merge(batches)):
        assert found.hashes.tolist() == once.hashes.tolist() and found.counts.tolist() == once.counts.tolist()
        assert found.chance == once.chance
    exact = Counter(whole)
    rows = {int(hash_rows(np.array([row]))[0]): count for row, count in exact.items()}
    assert [rows[int(each)] for each in once.hashes] == once.counts.tolist()
    assert len(once.hashes) == min(len(exact), CAPACITY)
    if len(exact) <= CAPACITY:
        assert once.num_distinct == len(exact)


def test_distinct_rows_are_estimated_within_the_stated_error() -> None:
    k, errors = 1024, []
    for seed in range(20):
        rows = np.random.default_rng(seed).choice(2**40, 50_000, replace=False)
        found = RowSample.of(np.sort(rows), np.ones(50_000, np.int64), capacity=k)
        errors.append(found.num_distinct / 50_000 - 1)
    assert np.sqrt(np.mean(np.square(errors))) < 1.5 / np.sqrt(k - 2)
    assert abs(np.mean(errors)) < 3 / np.sqrt(20 * (k - 2))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.integers(0, 30), st.integers(0, 5000)), min_size=1, max_size=50), cut=st.integers()
)
def test_pooling_figures_are_those_of_the_sorted_lengths(lengths: list[int], cut: int) -> None:
    cut %= len(lengths) + 1
    parts = (np.array(part, np.int64) for part in (lengths[:cut], lengths[cut:]))
    found = reduce(PoolingCounts.merge, map(PoolingCounts.of, parts)).pooling()
    assert found.mean * len(lengths) == np.float64(sum(lengths)) or abs(found.mean - np.mean(lengths)) < 1e-9
    assert found.max == max(lengths)
    for share, value in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99)):
        exact = sorted(lengths)[int(np.ceil(share * len(lengths))) - 1]
        assert value == (exact if exact <= 2047 else max(lengths))


def test_a_feature_merged_from_ranks_is_the_feature_of_all() -> None:
    generator = np.random.default_rng(5)
    parts = []
    for _ in range(4):
        lengths = generator.integers(0, 5, 500)
        parts.append(FeatureSketch.of(generator.zipf(1.3, lengths.sum()) % 90_000, lengths))
    one_pass = reduce(FeatureSketch.merge, parts)
    merged = merge_sketches([part.to_arrays() for part in (parts[0].merge(parts[1]), parts[2].merge(parts[3]))])
    arrays, expected = merged.to_arrays(), one_pass.to_arrays()
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        assert array.tolist() == expected[name].tolist(), name
    assert merged.reuse.num_batches == 4 and sum(merged.reuse.shares()) > 0.999999


def test_the_reuse_histogram_is_the_mean_over_batches() -> None:
    first = FeatureSketch.of(np.array([7, 7, 7, 8]), np.array([2, 2]))
    second = FeatureSketch.of(np.array([7]), np.array([1, 0]))
    merged = first.merge(second)
    assert merged.reuse.distinct_rows == 1.5
    assert merged.reuse.shares()[:4] == (2 / 3, 0.0, 1 / 3, 0.0)
    assert merged.pooling.pooling().mean == 1.25
