"""Assignments stay legal and their sums exact whatever a search does, and each kind of change is found where needed."""

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.check import check
from planner.cost.analytic import AnalyticEstimator
from planner.problem import PlanningProblem
from planner.search.assignment import Assignment
from planner.search.catalogue import Catalogue, Form, build_catalogue
from planner.search.local_search import LocalSearch, exact_score
from planner.search.moves import form_changes, row_changes, shifts, swaps
from planner.search.objective import Standing, feel_rates, smooth_ms, step_ms
from planner.search.placement import build_units
from planner.sharding import ShardingType
from tests.planner.search.problems import draw_problem, plain_problem

ESTIMATOR = AnalyticEstimator()
SECONDS = 20.0
SEEDS = st.integers(0, 10_000)


def catalogue_of(problem: PlanningProblem) -> Catalogue:
    return build_catalogue(problem, ESTIMATOR, build_units(problem))


def search(catalogue: Catalogue) -> LocalSearch:
    return LocalSearch(catalogue, time.monotonic() + SECONDS, np.random.default_rng(0))


def draw_assignment(catalogue: Catalogue, rng: np.random.Generator) -> Assignment:
    """Any forms on any ranks."""
    shape = len(catalogue.units), catalogue.world_size
    form, granules = np.zeros(len(catalogue.units), dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for unit in range(len(catalogue.units)):
        is_free = catalogue.may_be_whole[unit] or catalogue.may_cut[unit]
        form[unit] = rng.choice([*([Form.FREE] * 2 if is_free else []), *catalogue.fixed_forms(unit)])
        if form[unit] == Form.FREE:
            ranks = rng.permutation(np.flatnonzero(catalogue.may_move[unit]))
            total = int(catalogue.num_granules[unit])
            num_ranks = int(rng.integers(1, len(ranks) + 1)) if catalogue.may_cut[unit] else 1
            np.add.at(granules[unit], rng.choice(ranks[:num_ranks], total) if num_ranks > 1 else ranks[[0] * total], 1)
    return Assignment.of_forms(catalogue, form, granules)


def whole_on(catalogue: Catalogue, ranks: list[int]) -> Assignment:
    granules = np.zeros((len(ranks), catalogue.world_size), dtype=np.int64)
    granules[np.arange(len(ranks)), ranks] = catalogue.num_granules
    return Assignment.of_forms(catalogue, np.zeros(len(ranks), dtype=np.int64), granules)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_any_assignment_is_a_legal_plan_of_the_same_cost(seed: int) -> None:
    catalogue = catalogue_of(draw_problem(seed))
    assignment = draw_assignment(catalogue, np.random.default_rng(seed))
    plan = assignment.to_plan()
    check(plan, catalogue.problem)
    phases_ms = ESTIMATOR.phases_ms(catalogue.problem, assignment.loads)
    np.testing.assert_allclose(phases_ms, ESTIMATOR.estimate(catalogue.problem, plan).phases_ms, rtol=1e-9)
    again = Assignment.of_plan(catalogue, plan)
    assert again.to_plan() == plan
    assert (again.free_bytes == assignment.free_bytes).all()


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_sums_follow_every_change(seed: int) -> None:
    rng = np.random.default_rng(seed)
    catalogue = catalogue_of(draw_problem(seed))
    assignment = draw_assignment(catalogue, rng)
    for _ in range(20):
        unit = int(rng.integers(len(catalogue.units)))
        changes = form_changes(assignment, unit, rng.permutation(catalogue.world_size), 2)
        if changes:
            assignment.place(*changes[rng.integers(len(changes))])
    fresh = Assignment.of_forms(catalogue, assignment.form, assignment.granules)
    np.testing.assert_allclose(assignment.loads, fresh.loads, atol=1e-6, rtol=1e-9)
    assert (assignment.free_bytes == fresh.free_bytes).all()
    check(assignment.to_plan(), catalogue.problem)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_a_screened_change_is_a_legal_one_of_nearly_that_cost(seed: int) -> None:
    rng = np.random.default_rng(seed)
    catalogue = catalogue_of(draw_problem(seed))
    problem, prices, ranks = catalogue.problem, catalogue.prices, np.arange(catalogue.world_size)
    assignment = draw_assignment(catalogue, rng)
    rates = feel_rates(problem, ESTIMATOR, assignment.loads)
    standing = Standing.at(problem, ESTIMATOR, rates, assignment.loads, assignment.free_bytes, 3)
    for moves in (shifts(assignment, 0, ranks), swaps(assignment, 0, ranks, rng, 500)):
        if not len(moves.units):
            continue
        before, after = row_changes(catalogue, assignment, moves)
        added = (prices.loads[after] - prices.loads[before]).sum(axis=1)
        added_bytes = (prices.num_bytes[after] - prices.num_bytes[before]).sum(axis=1)
        over, smooth = standing.screen(moves.ranks, added, added_bytes)
        at = int(rng.integers(len(over)))
        changed = assignment.copy()
        for unit, granules in zip(moves.units[at], moves.granules[at], strict=True):
            if unit >= 0:
                there = changed.granules[unit].copy()
                there[moves.ranks[at]] = granules
                changed.place(int(unit), Form.FREE, there)
        check(changed.to_plan(), problem)
        exact = float(smooth_ms(ESTIMATOR.phases_ms(problem, changed.loads), 3))
        assert changed.overflow_bytes == over[at]
        assert smooth[at] == pytest.approx(exact, rel=0.25)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_polish_ends_legal_and_never_worse(seed: int) -> None:
    catalogue = catalogue_of(draw_problem(seed))
    start = draw_assignment(catalogue, np.random.default_rng(seed))
    before = exact_score(start)
    found = search(catalogue).polish(start)
    check(found.to_plan(), catalogue.problem)
    assert exact_score(found) <= before == exact_score(start)


def test_the_smooth_step_tends_to_the_step_from_above() -> None:
    phases_ms = np.random.default_rng(0).uniform(0.1, 3.0, (4, 10, 6))
    steps = [smooth_ms(phases_ms, power) for power in (1, 3, 5, 9)]
    assert all((larger > smaller).all() for larger, smaller in pairwise(steps))
    np.testing.assert_allclose(steps[-1], step_ms(phases_ms), rtol=0.01)


def test_a_move_evens_out_equal_tables() -> None:
    catalogue = catalogue_of(plain_problem([(1000, 64, 8.0)] * 4, 2, 1 << 30, ShardingType.TABLE_WISE))
    found = search(catalogue).polish(whole_on(catalogue, [0, 0, 0, 1]))
    assert (found.granules > 0).sum(axis=0).tolist() == [2, 2]


def test_only_a_swap_helps_where_memory_is_full() -> None:
    busy, idle = (1000, 64, 50.0), (1000, 64, 1.0)
    problem = plain_problem([busy, busy, idle, idle], 2, 2 * 1000 * 64 * 4, ShardingType.TABLE_WISE)
    catalogue = catalogue_of(problem)
    found = search(catalogue).polish(whole_on(catalogue, [0, 0, 1, 1]))
    assert found.rows[0].argmax() != found.rows[1].argmax()
    assert found.overflow_bytes == 0


def test_a_table_is_split_where_only_columns_are_allowed_and_merged_where_it_was_cut_in_vain() -> None:
    types = (ShardingType.TABLE_WISE, ShardingType.COLUMN_WISE)
    catalogue = catalogue_of(plain_problem([(10_000, 128, 60.0)], 2, 1 << 30, *types))
    found = search(catalogue).polish(whole_on(catalogue, [0]))
    assert (found.granules > 0).all()
    catalogue = catalogue_of(plain_problem([(10_000, 8, 60.0)] * 2, 2, 1 << 30, *types))
    start = Assignment.of_forms(catalogue, np.zeros(2, dtype=np.int64), np.array([[1, 1], [1, 1]]))
    found = search(catalogue).polish(start)
    assert (found.granules > 0).sum(axis=1).tolist() == (found.granules > 0).sum(axis=0).tolist() == [1, 1]


def test_a_change_of_type_replaces_copies_of_a_large_table() -> None:
    catalogue = catalogue_of(plain_problem([(1_000_000, 128, 2.0)] * 2, 2, 4 << 30))
    start = Assignment.of_forms(catalogue, np.array([Form.COPIES] * 2), np.zeros((2, 2), dtype=np.int64))
    found = search(catalogue).polish(start)
    assert (found.form != Form.COPIES).all()


def test_overflow_has_a_slope_down_to_the_only_packing() -> None:
    sizes = [7, 6, 5, 4, 3, 2, 2, 1]
    problem = plain_problem([(1000 * size, 32, 2.0) for size in sizes], 3, 10 * 1000 * 32 * 4, ShardingType.TABLE_WISE)
    catalogue = catalogue_of(problem)
    found = search(catalogue).polish(whole_on(catalogue, [0] * len(sizes)))
    assert found.overflow_bytes == 0
    check(found.to_plan(), problem)


def test_kicks_leave_a_local_optimum() -> None:
    """Found by looking for a start whose local optimum is not the best one."""
    catalogue = catalogue_of(draw_problem(3, num_tables=14))
    start = draw_assignment(catalogue, np.random.default_rng(1))
    polished = search(catalogue).polish(start)
    assert exact_score(search(catalogue).explore(polished)) < exact_score(polished)
