"""Options as arrays tell of every choice what the estimator, the memory model and the constraints say of it."""

from collections.abc import Callable

import numpy as np
import pytest

from planner.cost.analytic import AnalyticEstimator
from planner.policy.options import NARROW_WIDTHS, NO_TYPE, join_options, list_options
from planner.problem import PlanningProblem, TableConstraint
from planner.search.placement import price_options
from planner.sharding import ShardingType
from planner.shards import TYPE_CODE
from planner.tables import Workload
from planner.topology import Topology
from tests.planner.search.problems import draw_problem

ESTIMATOR = AnalyticEstimator()


@pytest.mark.parametrize(("num_nodes", "per_node"), [(2, 2), (1, 4), (3, 2)])
def test_first_and_last_shards_are_priced_as_the_shards_of_the_option(num_nodes: int, per_node: int) -> None:
    for seed in range(3):
        problem = draw_problem(seed, num_nodes=num_nodes, per_node=per_node)
        units, options = list_options(problem, ESTIMATOR)
        for index, unit in enumerate(units):
            assert options.is_there[index].sum() == len(unit.choices)
            for column, group in enumerate(unit.choices):
                for option, prices in zip(group, price_options(problem, ESTIMATOR, group), strict=True):
                    at = index, column
                    assert options.type_code[at] == TYPE_CODE[option.sharding_type]
                    assert options.num_shards[at] == option.num_shards
                    np.testing.assert_allclose(options.loads[at], prices.loads[[0, -1]], rtol=1e-12)
                    np.testing.assert_array_equal(options.num_bytes[at], prices.num_bytes[[0, -1]])


def test_ranks_are_those_of_the_options_and_nodes_are_drawn_by_their_first_rank() -> None:
    problem = draw_problem(0, num_nodes=2, per_node=3)
    units, options = list_options(problem, ESTIMATOR)
    for index, unit in enumerate(units):
        for column, group in enumerate(unit.choices):
            held = set(np.flatnonzero(options.may_hold[index, column]).tolist())
            drawn = set(np.flatnonzero(options.may_draw[index, column]).tolist())
            assert held == {rank for option in group for rank in option.ranks}
            if group[0].is_free:
                assert drawn == held and options.num_draws[index, column] == group[0].num_shards
            elif group[0].sharding_type is ShardingType.TABLE_ROW_WISE:
                assert drawn == {option.ranks[0] for option in group} and options.num_draws[index, column] == 1
            else:
                assert not drawn and options.num_draws[index, column] == 0
    nowhere = ~options.is_there
    assert nowhere.any() and not options.may_hold[nowhere].any() and not options.loads[nowhere].any()


def test_columns_are_cut_narrower_than_searches_cut_them_where_they_may_be_cut(
    make_topology: Callable[..., Topology], make_workload: Callable[..., Workload]
) -> None:
    """64 columns on 16 ranks: eighths and sixteenths besides halves and quarters, unless column_wise is forbidden."""
    workload = make_workload((1_000, 64, 2.0), (1_000, 64, 2.0))
    names = [table.name for table in workload.tables]
    whole = TableConstraint((names[1],), sharding_types=(ShardingType.TABLE_WISE,))
    units, _ = list_options(PlanningProblem(workload, make_topology(per_node=16), (whole,)), ESTIMATOR)
    cuts = [
        {option.num_shards for option in unit.options if option.sharding_type is ShardingType.COLUMN_WISE}
        for unit in units
    ]
    assert cuts == [{2, 4} | {64 // width for width in NARROW_WIDTHS}, set()]


def test_joined_options_are_the_parts_and_what_is_padded_is_none() -> None:
    many = list_options(draw_problem(0), ESTIMATOR)[1].at(None)
    few = many.at(slice(None), slice(None), slice(0, 2))
    joined = join_options([few, many])
    np.testing.assert_array_equal(joined.type_code[1], many.type_code[0])
    np.testing.assert_array_equal(joined.loads[0, :, :2], few.loads[0])
    assert (joined.type_code[0, :, 2:] == NO_TYPE).all() and not joined.total_bytes[0, :, 2:].any()
