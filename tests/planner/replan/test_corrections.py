"""Corrected estimators give back what was seen, blame what is to blame, and keep the contract of estimators."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from planner.access import COVERAGE_ROWS, AccessStatistics, Pooling
from planner.cost.estimator import LOOKUP_PHASES, PHASES
from planner.problem import PlanningProblem
from planner.replan import CorrectedEstimator, Observation, learn_corrections
from planner.replan.corrected import LOOKUP_ROWS
from planner.replan.observed import observed_problem
from planner.replan.residuals import shrink
from planner.search.assignment import Assignment
from planner.search.catalogue import build_catalogue
from planner.search.placement import build_units
from planner.search.portfolio import Portfolio
from planner.tables import TableSpec, Workload
from tests.planner.replan.jobs import (
    COLLECTIVES,
    ESTIMATOR,
    Trouble,
    make_problem,
    make_topology,
    observe,
    table_ids,
    whole_on,
)
from tests.planner.search.problems import draw_problem

EIGHT = [(100_000, 64, 10.0)] * 8
EVEN = [0, 0, 1, 1, 2, 2, 3, 3]
SEEDS = st.integers(0, 10_000)


def skewed_problem() -> PlanningProblem:
    """Tables whose accesses were measured: half of the ids on one row in a hundred."""
    rows = 10_000
    coverage = np.minimum(1.0, np.where(COVERAGE_ROWS <= 100, COVERAGE_ROWS / 200, 0.5 + COVERAGE_ROWS / rows / 2))
    access = AccessStatistics(
        samples=4096,
        pooling=Pooling(4.0, 4.0, 6.0, 8.0, 9.0),
        distinct_rows=6000.0,
        reuse=(0.5, 0.3, 0.2, *[0.0] * 14),
        used_rows=rows,
        coverage=tuple(coverage.tolist()),
    )
    tables = tuple(TableSpec(f"table_{at}", rows, 64, (f"feature_{at}",), 4.0, access) for at in range(4))
    return PlanningProblem(Workload(tables, 2048, make_problem(EIGHT, 2).workload.optimizer), make_topology(2))


def as_timed(phases_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Phases as they are timed: a collective ends for all ranks with the slowest."""
    timed_ms = phases_ms.copy()
    timed_ms[COLLECTIVES] = timed_ms[COLLECTIVES].max(axis=1, keepdims=True)
    return timed_ms


def test_what_was_seen_is_what_is_estimated() -> None:
    problem = make_problem(EIGHT, 4)
    plan, trouble = whole_on(problem, EVEN), Trouble(hot={"table_0": 3.0}, slow={2: 1.7})
    seen = observe(problem, plan, trouble)
    now, corrected = learn_corrections(problem, plan, ESTIMATOR, seen, observe(problem, plan))
    np.testing.assert_allclose(as_timed(corrected.estimate(now, plan).phases_ms), seen.phases_ms, rtol=1e-6)


def test_a_slow_device_is_told_from_a_hot_table() -> None:
    problem = make_problem(EIGHT, 4)
    plan, healthy = whole_on(problem, EVEN), observe(problem, whole_on(problem, EVEN))
    slow, hot = Trouble(slow={1: 1.7}), Trouble(hot={"table_2": 3.0})
    _, of_slow = learn_corrections(problem, plan, ESTIMATOR, observe(problem, plan, slow), healthy)
    now, of_hot = learn_corrections(problem, plan, ESTIMATOR, observe(problem, plan, hot), healthy)
    np.testing.assert_allclose(of_slow.lookup_factor, [[1, 1.7, 1, 1]] * 2, rtol=1e-6)
    np.testing.assert_allclose(of_hot.lookup_factor, 1.0, rtol=1e-6)
    assert now.tables["table_2"].pooling_factor == pytest.approx(30.0)


def test_hot_ids_that_are_dearer_than_the_model_says_are_the_tables() -> None:
    problem = make_problem(EIGHT, 4)
    plan, healthy = whole_on(problem, EVEN), observe(problem, whole_on(problem, EVEN))
    hot = observe(problem, plan, Trouble(hot={"table_2": 3.0}))
    phases_ms = hot.phases_ms.copy()
    phases_ms[LOOKUP_ROWS, 1] *= 1.5
    seen = Observation(phases_ms, hot.table_ids, {})
    now, corrected = learn_corrections(problem, plan, ESTIMATOR, seen, healthy)
    assert corrected.table_factor[2] > 1.4
    np.testing.assert_allclose(np.delete(corrected.table_factor, 2), 1.0)
    np.testing.assert_allclose(corrected.lookup_factor, 1.0, atol=0.05)
    np.testing.assert_allclose(as_timed(corrected.estimate(now, plan).phases_ms), phases_ms, rtol=0.05)


def test_what_a_healthy_rank_had_beyond_the_others_stays_with_its_tables() -> None:
    problem = make_problem(EIGHT, 4)
    plan = whole_on(problem, EVEN)
    phases_ms = observe(problem, plan).phases_ms.copy()
    phases_ms[LOOKUP_ROWS, 3] *= 1.3
    seen = Observation(phases_ms, observe(problem, plan).table_ids, {})
    _, corrected = learn_corrections(problem, plan, ESTIMATOR, seen, seen)
    np.testing.assert_allclose(corrected.table_factor, [1, 1, 1, 1, 1, 1, 1.3, 1.3], rtol=1e-6)
    np.testing.assert_allclose(corrected.lookup_factor, 1.0, atol=0.02)


def test_noise_is_shrunk_and_what_is_beyond_it_counts_whole() -> None:
    logs = np.linspace(-1, 1, 201)
    shrunk = shrink(logs, (0.1, 0.2))
    assert (shrunk[np.abs(logs) <= 0.1] == 0).all()
    np.testing.assert_allclose(shrunk[np.abs(logs) >= 0.2], logs[np.abs(logs) >= 0.2])
    assert (np.diff(shrunk) >= -1e-12).all()


def draw_corrected(problem: PlanningProblem, rng: np.random.Generator) -> CorrectedEstimator:
    """Any corrections."""
    world_size, num_tables = problem.topology.world_size, len(problem.workload.tables)
    phase_factor = np.exp(0.3 * rng.standard_normal((len(PHASES), world_size)))
    phase_factor[LOOKUP_ROWS] = 1.0
    return CorrectedEstimator(
        ESTIMATOR,
        np.exp(0.3 * rng.standard_normal(num_tables)),
        np.exp(0.3 * rng.standard_normal((2, world_size))),
        phase_factor,
        1e-3 * rng.standard_normal(phase_factor.shape),
        1e-8 * rng.uniform(size=world_size) * (rng.uniform(size=world_size) < 0.3),
    )


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_no_plan_is_below_the_corrected_bounds(seed: int) -> None:
    problem, rng = draw_problem(seed), np.random.default_rng(seed)
    corrected = draw_corrected(problem, rng)
    plan = Portfolio(corrected, 0.1, seed).plan(problem)
    loads = corrected.sum_loads(problem, plan)
    proven_of = corrected.phases_ms(problem, loads).max(axis=1)
    for bound in corrected.linear_bounds(problem):
        assert (bound.of_total @ loads.sum(axis=0) + bound.constant_ms <= proven_of + 1e-9).all()
        for rank in loads:
            assert (bound.of_shard @ rank + bound.constant_ms <= proven_of + 1e-9).all()


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_searches_price_what_the_estimator_prices(seed: int) -> None:
    problem, rng = draw_problem(seed), np.random.default_rng(seed)
    corrected = draw_corrected(problem, rng)
    catalogue = build_catalogue(problem, corrected, build_units(problem))
    plan = Portfolio(ESTIMATOR, 0.1, seed).plan(problem)
    assignment = Assignment.of_plan(catalogue, plan)
    phases_ms = corrected.phases_ms(problem, np.stack([assignment.loads] * 2))
    expected = corrected.estimate(problem, assignment.to_plan()).phases_ms
    np.testing.assert_allclose(phases_ms, np.stack([expected] * 2), rtol=1e-9)
    lookup_ms = corrected.lookup_ms(problem, assignment.loads[[2, 0]][None], np.array([[2, 0]]))
    every_ms = corrected.lookup_ms(problem, assignment.loads, np.arange(4))
    np.testing.assert_allclose(lookup_ms[:, 0], every_ms[:, [2, 0]])
    assert len(lookup_ms) == len(LOOKUP_PHASES)


def test_ids_as_planned_change_nothing() -> None:
    problem = skewed_problem()
    seen = Observation(np.zeros((len(PHASES), 2)), table_ids(problem, {}), {})
    again = observed_problem(problem, seen, ())
    np.testing.assert_allclose(again.arrays.ids_per_sample, problem.arrays.ids_per_sample)
    np.testing.assert_allclose(again.arrays.distinct_rows, problem.arrays.distinct_rows)
    np.testing.assert_allclose(again.arrays.reuse, problem.arrays.reuse, atol=1e-12)


def test_more_ids_meet_more_rows_more_often() -> None:
    problem = skewed_problem()
    ids, counted = table_ids(problem, {"table_1": 3.0, "table_2": 3.0}), {"table_2": 6000.0}
    hot = observed_problem(problem, Observation(np.zeros((len(PHASES), 2)), ids, counted), ["table_2"])
    before, after = problem.arrays, hot.arrays
    np.testing.assert_allclose(after.ids_per_sample / before.ids_per_sample, [1, 3, 3, 1])
    assert before.distinct_rows[1] < after.distinct_rows[1] < 3 * before.distinct_rows[1]
    assert after.distinct_rows[2] == 6000.0
    np.testing.assert_allclose(after.reuse.sum(axis=1), 1.0)
    middle = np.arange(after.reuse.shape[1])
    # Three times the ids on as many rows: log2(3) bins up.
    assert after.reuse[2] @ middle - before.reuse[2] @ middle == pytest.approx(np.log2(3.0))
    assert 0 < after.reuse[1] @ middle - before.reuse[1] @ middle < np.log2(3.0)


def test_observations_are_copied_and_checked() -> None:
    phases_ms, ids = np.ones((len(PHASES), 2)), {"table_0": 1.0}
    seen = Observation(phases_ms, ids, {})
    phases_ms[:], ids["table_0"] = 7.0, 7.0
    assert seen.phases_ms.max() == 1.0 and seen.table_ids["table_0"] == 1.0
    with pytest.raises(ValueError, match="expected"):
        Observation(np.ones((3, 2)), {}, {})
    with pytest.raises(ValueError, match="not finite"):
        Observation(np.full((len(PHASES), 2), np.nan), {}, {})
