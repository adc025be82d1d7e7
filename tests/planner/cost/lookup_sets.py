"""Random fused sets for tests of the learned cost, and times that a simple law gives them."""

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from planner.cost.features import work_terms
from planner.lookups import NUM_REUSE_BINS, LookupArrays, LookupSet, LookupShard
from planner.profile import LookupMeasurement, Timing
from planner.tables import OptimizerKind

PRICES = np.array([0.02, 0.05, 0.4, 0.3, 0.2, 0.3, 0.5, 0.4])
"""Canaries a unit of `work_terms`, forward; backward takes twice as long."""


@st.composite
def shards(draw: st.DrawFn) -> LookupShard:
    """A shard within the ranges of a profile, any reuse."""
    ids = draw(st.floats(0.01, 200.0))
    bins = draw(st.lists(st.floats(0, 1), min_size=NUM_REUSE_BINS, max_size=NUM_REUSE_BINS))
    total = sum(bins)
    return LookupShard(
        num_rows=draw(st.integers(1, 50_000_000)),
        num_cols=4 * draw(st.integers(1, 64)),
        ids_per_sample=ids,
        distinct_rows=draw(st.floats(0, 1e6)),
        reuse=tuple(each / total if total else 0.0 for each in bins),
        num_features=draw(st.integers(1, 4)),
    )


def random_sets(count: int, seed: int, most_shards: int = 12) -> list[LookupSet]:
    """Sets of which a profile could be made."""
    rng = np.random.default_rng(seed)
    return [
        LookupSet(
            samples=int(2 ** rng.uniform(7, 14)),
            optimizer=OptimizerKind.ROWWISE_ADAGRAD,
            shards=tuple(random_shard(rng) for _ in range(rng.integers(1, most_shards + 1))),
        )
        for _ in range(count)
    ]


def random_shard(rng: np.random.Generator) -> LookupShard:
    num_rows, reuse = int(10 ** rng.uniform(1, 6)), rng.dirichlet(np.full(NUM_REUSE_BINS, 0.3))
    return LookupShard(
        num_rows=num_rows,
        num_cols=4 * int(rng.integers(1, 33)),
        ids_per_sample=float(30 ** rng.uniform(0, 1)),
        distinct_rows=float(num_rows * rng.uniform(0.01, 0.5)),
        reuse=tuple(reuse.tolist()),
    )


def law_ms(sets: list[LookupSet], canary_ms: float = 1.0, prices: NDArray[np.float64] = PRICES) -> NDArray[np.float64]:
    """Forward and backward ms [N, 2] of an additive law."""
    lookups = LookupArrays.of(sets)
    forward = 0.01 + np.bincount(lookups.set_index, work_terms(lookups) @ prices, lookups.num_sets)
    return np.stack([forward, 2 * forward], axis=1) * canary_ms


def measurements(
    sets: list[LookupSet], times_ms: NDArray[np.float64], canary_ms: float = 1.0
) -> tuple[LookupMeasurement, ...]:
    """The sets as if a profile had measured them."""
    return tuple(
        LookupMeasurement(each, Timing(forward, 0.0, 9), Timing(backward, 0.0, 9), canary_ms)
        for each, (forward, backward) in zip(sets, times_ms.tolist(), strict=True)
    )
