"""Beam, prices and greedy placement of forms."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.check import check
from planner.cost.analytic import AnalyticEstimator
from planner.search.assignment import Assignment
from planner.search.beam import beam_search
from planner.search.catalogue import Catalogue, Form, build_catalogue
from planner.search.greedy_batch import first_forms, joined, place_forms, uniform_forms
from planner.search.local_search import exact_score
from planner.search.objective import feel_rates
from planner.search.placement import build_units
from planner.search.price_forms import list_options, place_by_price, price_forms
from planner.sharding import ShardingType
from tests.planner.search.problems import draw_problem, plain_problem

ESTIMATOR = AnalyticEstimator()


def start_of(catalogue: Catalogue) -> Assignment:
    forms = first_forms(catalogue)
    empty = np.zeros((catalogue.world_size, catalogue.prices.loads.shape[1]))
    placed = place_forms(catalogue, feel_rates(catalogue.problem, ESTIMATOR, empty), forms)
    return Assignment.of_forms(catalogue, forms.form[0], placed.granules[0])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_placements_of_many_forms_are_those_of_each_alone_and_legal(seed: int) -> None:
    problem = draw_problem(seed)
    catalogue = build_catalogue(problem, ESTIMATOR, build_units(problem))
    start = start_of(catalogue)
    rates = feel_rates(problem, ESTIMATOR, start.loads)
    forms = joined([first_forms(catalogue), price_forms(catalogue, rates, start.loads.mean(axis=0))])
    together = place_forms(catalogue, rates, forms)
    for at in range(len(forms)):
        alone = place_forms(catalogue, rates, forms.take(np.array([at])))
        assert (alone.granules[0] == together.granules[at]).all()
        found = Assignment.of_forms(catalogue, forms.form[at].copy(), together.granules[at].copy())
        assert exact_score(found) == pytest.approx((together.over_bytes[at], together.step_ms[at]))
        if not found.overflow_bytes:
            check(found.to_plan(), problem)


def test_uniform_forms_give_every_unit_the_form_that_it_may_take() -> None:
    problem = draw_problem(0)
    catalogue = build_catalogue(problem, ESTIMATOR, build_units(problem))
    forms = uniform_forms(catalogue)
    by_rows = [index for index, unit in enumerate(catalogue.units) if unit.names == ("table_1",)]
    assert (forms.form[:, by_rows] == Form.ROWS).all()
    for form in (Form.FREE, Form.ROWS, Form.COPIES, Form.NODE):
        may = (catalogue.fixed[:, form, 0] != 0) if form else (catalogue.may_be_whole | catalogue.may_cut)
        assert (forms.form == np.where(may, form, forms.form[0])).all(axis=1).any()


def test_a_beam_finds_cuts_that_are_no_halvings() -> None:
    types = (ShardingType.TABLE_WISE, ShardingType.COLUMN_WISE)
    problem = plain_problem([(10_000, 96, 60.0)], 3, 1 << 30, *types)
    catalogue = build_catalogue(problem, ESTIMATOR, build_units(problem))
    start = start_of(catalogue)
    best = beam_search(catalogue, [start], time.monotonic() + 10)[0]
    assert best.granules[0].tolist() == [8, 8, 8]
    assert exact_score(best) < exact_score(start)


def test_prices_cut_what_sticks_out_and_leave_the_rest_whole() -> None:
    problem = plain_problem([(100_000, 128, 100.0)] + [(1000, 16, 2.0)] * 12, 4, 4 << 30)
    catalogue = build_catalogue(problem, ESTIMATOR, build_units(problem))
    forms = place_by_price(catalogue, start_of(catalogue))
    assert all(each.form[0] != Form.FREE or (each.granules[0] > 0).sum() > 1 for each in forms)
    assert any((each.granules[1:] > 0).sum(axis=1).max() <= 1 for each in forms)


def test_prices_rise_with_memory_that_is_short() -> None:
    """Copies are the cheapest form of these tables, and do not fit."""
    shapes = [(50, 64, 40.0)] * 6
    roomy = plain_problem(shapes, 2, 1 << 30)
    tight = plain_problem(shapes, 2, 7 * 50 * 64 * 4 // 2)
    chosen = {}
    for name, problem in (("roomy", roomy), ("tight", tight)):
        catalogue = build_catalogue(problem, ESTIMATOR, build_units(problem))
        rates = feel_rates(problem, ESTIMATOR, start_of(catalogue).loads)
        chosen[name] = price_forms(catalogue, rates, start_of(catalogue).loads.mean(axis=0)).form
    assert (chosen["roomy"] == Form.COPIES).any()
    assert (chosen["tight"] == Form.COPIES).sum(axis=1).max() <= 1


def test_options_that_are_not_allowed_cost_infinitely_much() -> None:
    problem = draw_problem(0)
    catalogue = build_catalogue(problem, ESTIMATOR, build_units(problem))
    start = start_of(catalogue)
    options = list_options(catalogue, feel_rates(problem, ESTIMATOR, start.loads), start.loads.mean(axis=0))
    by_rows = [index for index, unit in enumerate(catalogue.units) if unit.names == ("table_1",)]
    is_allowed = np.isfinite(options.total_ms[by_rows[0]])
    assert options.form[is_allowed].tolist() == [Form.ROWS]
