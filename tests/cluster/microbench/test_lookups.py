"""Random fused sets cover their ranges within memory, their ids are what they say, and the kernel trains."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.microbench.ids import describe_ids, draw_ids, draw_lengths
from cluster.microbench.lookups import FusedLookup, measure_lookups
from cluster.microbench.recipes import SAMPLES, LookupRecipe, ShardRecipe, draw_lookup_sets, shard_bytes
from cluster.microbench.repeats import Limits
from cluster.microbench.sampling import latin_hypercube
from planner.lookups import NUM_REUSE_BINS
from planner.tables import OptimizerKind

CPU = torch.device("cpu")
ADAGRAD = OptimizerKind.ROWWISE_ADAGRAD
QUICK = Limits(num_warmups=1, max_repeats=6)


def shard(rows: int = 50, ids: float = 3.0, features: int = 1, skew: float = 0.0, ragged: bool = False) -> ShardRecipe:
    return ShardRecipe(rows, 8, ids, features, skew, ragged)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_hypercube_has_one_point_in_every_slice() -> None:
    points = latin_hypercube(np.random.default_rng(0), 20, 3)
    assert (np.sort(np.floor(points * 20), axis=0) == np.arange(20)[:, None]).all()


@pytest.mark.parametrize("memory_bytes", [2**20, 2**28])
def test_sets_cover_their_ranges_and_fit_the_memory(memory_bytes: int) -> None:
    sets = draw_lookup_sets(120, 3, ADAGRAD, memory_bytes)
    assert sets == draw_lookup_sets(120, 3, ADAGRAD, memory_bytes) != draw_lookup_sets(120, 4, ADAGRAD, memory_bytes)
    assert all(sum(shard_bytes(each, ADAGRAD) for each in one.shards) <= memory_bytes for one in sets)
    sizes = [len(one.shards) for one in sets]
    assert min(sizes) == 1 and max(sizes) > 30 and sum(size <= 12 for size in sizes) > 60
    shards = [each for one in sets for each in one.shards]
    assert {each.num_features for each in shards} == {1, 2, 3, 4}
    assert all(each.num_cols % 4 == 0 and 4 <= each.num_cols <= 256 for each in shards)
    assert min(each.ids_per_sample for each in shards) < 0.2 and max(each.ids_per_sample for each in shards) > 50
    assert all(SAMPLES[0] <= one.samples <= SAMPLES[1] for one in sets)
    assert any(len({each.num_cols for each in one.shards}) == 1 for one in sets if len(one.shards) > 5)


def test_only_the_largest_shards_lose_rows() -> None:
    free, tight = (draw_lookup_sets(60, 1, ADAGRAD, memory_bytes) for memory_bytes in (2**40, 2**24))
    cut = 0
    for whole, fitted in zip(free, tight, strict=True):
        sizes = [shard_bytes(each, ADAGRAD) for each in fitted.shards]
        for before, size in zip(whole.shards, sizes, strict=True):
            if size < shard_bytes(before, ADAGRAD):
                cut += 1
                assert size > 0.99 * max(sizes) - before.num_cols * 8
        if sum(shard_bytes(each, ADAGRAD) for each in whole.shards) > 2**24:
            assert sum(sizes) > 0.9 * 2**24
    assert cut > 20


@given(st.integers(1, 300), st.floats(0.0, 1.3), st.integers(0, 400), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_ids_are_rows_and_their_description_counts_them(rows: int, skew: float, count: int, seed: int) -> None:
    one = shard(rows, skew=skew)
    ids = draw_ids(one, count, generator(seed))
    described = describe_ids(one, ids, samples=10)
    uses = Counter(ids.tolist())
    assert len(ids) == count and all(0 <= row < rows for row in uses)
    assert described.ids_per_sample == count / 10 and described.distinct_rows == len(uses)
    bins = Counter(0 if times == 1 else (times - 1).bit_length() for times in uses.values())
    expected = [bins[index] / max(1, len(uses)) for index in range(NUM_REUSE_BINS)]
    assert list(described.reuse) == pytest.approx(expected)


def test_skew_concentrates_ids_on_rows_that_lie_apart() -> None:
    counts = []
    for skew in (0.0, 0.6, 1.2):
        ids = draw_ids(shard(10_000, skew=skew), 50_000, generator())
        counts.append(torch.bincount(ids, minlength=10_000))
    tops = [each.topk(100) for each in counts]
    shares = [int(top.values.sum()) / 50_000 for top in tops]
    assert shares[0] < 0.05 < shares[1] < 0.4 < shares[2]
    hottest = tops[2].indices.sort().values
    assert int(hottest.diff().min()) > 10


@given(st.floats(0.05, 9.0), st.booleans(), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_bags_have_the_mean_that_is_asked_for(ids_per_bag: float, ragged: bool, features: int) -> None:
    lengths = draw_lengths(shard(ids=ids_per_bag * features, features=features, ragged=ragged), 4096, generator())
    assert len(lengths) == 4096 * features
    assert float(lengths.float().mean()) == pytest.approx(ids_per_bag, rel=0.1, abs=0.02)
    if not ragged:
        assert int(lengths.max() - lengths.min()) <= 1


def test_a_measurement_describes_its_batches_and_the_kernel_trains() -> None:
    recipe = LookupRecipe(64, ADAGRAD, (shard(40, 4.0, features=2), shard(5000, 0.5, ragged=True)), seed=1)
    lookup = FusedLookup(recipe, CPU)
    before = [weights.clone() for weights in lookup._kernel.split_embedding_weights()]
    lookup.run(0)
    touched = [
        int((weights != old).any(dim=1).sum())
        for weights, old in zip(lookup._kernel.split_embedding_weights(), before, strict=True)
    ]
    assert touched == [each.distinct_rows for each in lookup._batches[0].shards]
    measured = measure_lookups(recipe, CPU, QUICK)
    assert measured.lookups == lookup.lookups
    assert measured.lookups.shards[0].num_features == 2
    assert measured.lookups.shards[0].ids_per_sample == pytest.approx(4.0, rel=0.2)
    assert min(measured.forward.median_ms, measured.backward.median_ms, measured.canary_ms) > 0


def test_batches_differ_and_take_turns() -> None:
    lookup = FusedLookup(LookupRecipe(32, OptimizerKind.SGD, (shard(),), seed=2), CPU)
    batches = [batch.indices.tolist() for batch in lookup._batches]
    assert len({tuple(each) for each in batches}) == 3


def test_an_optimizer_without_a_kernel_is_an_error() -> None:
    with pytest.raises(Exception, match=r"ADAM|adam"):
        FusedLookup(LookupRecipe(32, OptimizerKind.ADAM, (shard(),), seed=2), CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", list(OptimizerKind))
def test_a_gpu_is_timed_by_events(optimizer: OptimizerKind) -> None:
    measured = measure_lookups(LookupRecipe(512, optimizer, (shard(5000),), seed=1), torch.device("cuda:0"), QUICK)
    assert min(measured.forward.median_ms, measured.backward.median_ms, measured.canary_ms) > 0
