"""Rows that batches look up: against exact sums, against draws, and as the planner gets them."""

from collections.abc import Callable
from dataclasses import replace
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.access import COVERAGE_ROWS, AccessStatistics, Pooling, curve_reuse, uniform_reuse
from planner.errors import PlanningError
from planner.lookups import NUM_REUSE_BINS
from planner.occupancy import reuse_bins
from planner.problem import PlanningProblem
from planner.search.registry import make_plan
from planner.tables import Workload
from planner.topology import Topology


def curve(chances: np.ndarray) -> np.ndarray:
    """The coverage curve of rows of these chances, hottest first."""
    up_to = np.concatenate([[0.0], np.cumsum(chances)])
    return np.minimum(np.interp(COVERAGE_ROWS, np.arange(len(up_to)), up_to) / up_to[-1], 1.0)


def statistics(samples: int, chances: np.ndarray, pooling: float, distinct_rows: float = 5.0) -> AccessStatistics:
    reuse = (1.0,) + (0.0,) * (NUM_REUSE_BINS - 1)
    shape = tuple(curve(chances).tolist())
    return AccessStatistics(samples, Pooling(*[pooling] * 5), distinct_rows, reuse, float(len(chances)), shape)


@settings(max_examples=60, deadline=None)
@given(num_rows=st.integers(1, 60), ids=st.integers(0, 120))
def test_uniform_ids_as_summed_exactly(num_rows: int, ids: int) -> None:
    hit = np.zeros(NUM_REUSE_BINS)
    for count in range(1, ids + 1):
        chance = comb(ids, count) * (1 / num_rows) ** count * (1 - 1 / num_rows) ** (ids - count)
        hit[reuse_bins(np.array([count]))[0]] += num_rows * chance
    found = uniform_reuse(np.array([float(num_rows)]), np.array([float(ids)]))
    assert found.distinct_rows[0] == pytest.approx(hit.sum(), rel=1e-9)
    assert found.reuse[0] == pytest.approx(hit / max(hit.sum(), 1e-300), abs=1e-3)


@settings(max_examples=100, deadline=None)
@given(num_rows=st.floats(1, 1e9), ids=st.one_of(st.just(0.0), st.floats(1e-6, 1e10)))
def test_uniform_ids_are_sound_at_any_size(num_rows: float, ids: float) -> None:
    with np.errstate(all="raise", under="ignore"):
        found = uniform_reuse(np.array([num_rows]), np.array([ids]))
    distinct, reuse = found.distinct_rows[0], found.reuse[0]
    assert 0 <= distinct <= min(num_rows, ids) * (1 + 1e-9)
    assert (reuse >= 0).all() and reuse.sum() == pytest.approx(1 if ids else 0)
    assert uniform_reuse(np.array([num_rows]), np.array([ids * 2])).distinct_rows[0] >= distinct * (1 - 1e-9)


@pytest.mark.parametrize(("num_rows", "alpha", "ids"), [(300, 1.0, 2000), (50_000, 0.7, 20_000), (50_000, 1.3, 90_000)])
def test_a_curve_gives_what_draws_give(num_rows: int, alpha: float, ids: int) -> None:
    generator = np.random.default_rng(3)
    chances = np.arange(1, num_rows + 1.0) ** -alpha
    counts = generator.multinomial(ids, chances / chances.sum(), size=20)
    drawn = np.bincount(reuse_bins(counts[counts > 0]), minlength=NUM_REUSE_BINS) / 20
    found = curve_reuse(curve(chances)[None], np.array([float(num_rows)]), np.array([float(ids)]))
    assert found.distinct_rows[0] == pytest.approx(drawn.sum(), rel=0.02)
    assert found.reuse[0] == pytest.approx(drawn / drawn.sum(), abs=0.012)


def test_a_flat_curve_is_the_uniform_case() -> None:
    num_rows, ids = np.array([1.0, 100.0, 3e6]), np.array([7.0, 250.0, 4e6])
    flat = curve_reuse(np.minimum(COVERAGE_ROWS / num_rows[:, None], 1.0), num_rows, ids)
    uniform = uniform_reuse(num_rows, ids)
    assert flat.distinct_rows == pytest.approx(uniform.distinct_rows, rel=1e-6)
    assert flat.reuse == pytest.approx(uniform.reuse, abs=1e-6)


def test_a_problem_takes_what_was_measured_else_the_curve_else_uniform_ids(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    workload = make_workload(*[(1000, 16, 2.0)] * 3, batch_size=64)
    hot = np.concatenate([np.full(12, 0.075), np.full(988, 0.1 / 988)])
    first, second, third = workload.tables
    tables = (
        replace(first, access=statistics(4 * 64, hot, 2.0)),
        replace(second, access=statistics(999, hot, 2.0)),
        third,
    )
    arrays = PlanningProblem(replace(workload, tables=tables), make_topology(2, 2)).arrays
    drawn = (1 - (1 - hot) ** (4 * 64 * 2)).sum()
    uniform = 1000 * (1 - (1 - 1 / 1000) ** (4 * 64 * 2))
    assert arrays.distinct_rows == pytest.approx([5.0, drawn, uniform], rel=0.01)
    assert arrays.reuse[0].tolist() == [1.0] + [0.0] * 16
    local = (1 - (1 - hot) ** (64 * 2)).sum()
    assert arrays.local_distinct_rows[:2] == pytest.approx([local, local], rel=0.01)
    assert arrays.local_reuse.shape == (3, NUM_REUSE_BINS)


def test_fewer_distinct_rows_are_a_cheaper_update(
    make_workload: Callable[..., Workload], make_topology: Callable[..., Topology]
) -> None:
    workload = make_workload((100_000, 64, 10.0), batch_size=512)
    skewed = replace(workload.tables[0], access=statistics(1, np.arange(1, 100_001.0) ** -1.2, 10.0))
    costs = [
        make_plan(PlanningProblem(replace(workload, tables=(table,)), make_topology(1, 2)), "size_greedy").cost
        for table in (workload.tables[0], skewed)
    ]
    assert costs[1].phase("lookup_backward").max() < 0.8 * costs[0].phase("lookup_backward").max()
    assert costs[1].phase("lookup_forward") == pytest.approx(costs[0].phase("lookup_forward"))


@settings(max_examples=20, deadline=None)
@given(
    tables=st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 1.5), st.floats(0, 30)), min_size=1, max_size=8),
    strategy=st.sampled_from(["random", "longest_processing_time"]),
)
def test_the_lower_bound_holds_with_statistics(
    make_workload: Callable[..., Workload],
    make_topology: Callable[..., Topology],
    tables: list[tuple[int, float, float]],
    strategy: str,
) -> None:
    workload = make_workload(*[(rows, 16, pooling) for rows, _, pooling in tables])
    skewed = tuple(
        replace(table, access=statistics(1, np.arange(1, rows + 1.0) ** -alpha, pooling))
        for table, (rows, alpha, pooling) in zip(workload.tables, tables, strict=True)
    )
    result = make_plan(PlanningProblem(replace(workload, tables=skewed), make_topology(2, 2)), strategy)
    assert 0 < result.lower_bound_ms <= result.cost.step_ms * (1 + 1e-9)


def test_statistics_survive_json_and_refuse_what_they_cannot_be() -> None:
    found = statistics(64, np.ones(9), 1.5)
    assert AccessStatistics.from_dict(found.to_dict()) == found
    with pytest.raises(PlanningError, match="reuse has 3 figures, expected 17"):
        AccessStatistics.from_dict({**found.to_dict(), "reuse": [0.5, 0.3, 0.2]})
    with pytest.raises(PlanningError, match="distinct_rows is nan, expected a finite number >= 0"):
        replace(found, distinct_rows=float("nan"))
    with pytest.raises(PlanningError, match="cannot be read"):
        AccessStatistics.from_dict({"samples": 3})
