"""The problem as it is now: with the ids that tables were seen to look up, wherever they lie."""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from planner.access import curve_reuse
from planner.problem import PlanningProblem
from planner.replan.interface import Observation
from planner.tables import TableSpec


def observed_problem(problem: PlanningProblem, seen: Observation, counted: Collection[str]) -> PlanningProblem:
    """The problem with observed pooling factors and access statistics; tables that were not sampled stay as they are.

    Distinct rows of the global batch are those counted, else the known ones times how the access curve says that they
    grow with the ids. The reuse of rows keeps its shape: a bin is twice the uses of the one before, so where a row is
    used r times as often as it was all shares move log2(r) bins up. What a replica's batch looks up follows from the
    curve alone.

    Args:
        problem: Tables as they were planned.
        seen: What was observed.
        counted: Tables whose counts of different ids are to be used, as far as there are any.
    """
    tables, workload = problem.arrays, problem.workload
    names = [table.name for table in workload.tables]
    old_ids = tables.samples * tables.ids_per_sample
    ids = np.array([seen.table_ids.get(name, old) for name, old in zip(names, old_ids.tolist(), strict=True)])
    known = np.array([name in counted and name in seen.table_distinct for name in names])
    distinct = np.array([seen.table_distinct.get(name, 0.0) for name in names])
    distinct = np.where(known, distinct, tables.distinct_rows * _distinct_growth(problem, old_ids, ids))
    distinct = np.minimum(distinct, np.minimum(ids, tables.num_rows))
    uses = _ratio(_ratio(ids, distinct), _ratio(old_ids, tables.distinct_rows))
    reuse = shift_reuse(tables.reuse, np.log2(uses))
    changed = tuple(
        _observed_table(problem, table, float(ids[at]), float(distinct[at]), reuse[at])
        for at, table in enumerate(workload.tables)
    )
    return replace(problem, workload=replace(workload, tables=changed))


def shift_reuse(reuse: NDArray[np.float64], by_bins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares [T, bins] moved up by so many bins [T], parts of one split between neighbours; ends collect the rest.

    >>> shift_reuse(np.array([[0.5, 0.5, 0.0]]), np.array([0.5])).tolist()
    [[0.25, 0.5, 0.25]]
    """
    num_tables, num_bins = reuse.shape
    at = np.clip(np.arange(num_bins) + by_bins[:, None], 0, num_bins - 1)
    below = np.floor(at).astype(np.int64)
    above_share = at - below
    rows = np.broadcast_to(np.arange(num_tables)[:, None], at.shape)
    moved = np.zeros_like(reuse)
    np.add.at(moved, (rows, below), reuse * (1 - above_share))
    np.add.at(moved, (rows, np.minimum(below + 1, num_bins - 1)), reuse * above_share)
    return moved


def _distinct_growth(
    problem: PlanningProblem, old_ids: NDArray[np.float64], ids: NDArray[np.float64]
) -> NDArray[np.float64]:
    """By how much [T] the distinct rows grow with ids [T], by each table's coverage curve; 1 where there is none."""
    growth = np.ones(len(ids))
    changed = np.flatnonzero((ids != old_ids) & np.array([each is not None for each in problem.arrays.access]))
    if len(changed):
        known = [access for access in (problem.arrays.access[at] for at in changed) if access is not None]
        coverage, used = np.array([each.coverage for each in known]), np.array([each.used_rows for each in known])
        before, after = (curve_reuse(coverage, used, each[changed]).distinct_rows for each in (old_ids, ids))
        growth[changed] = _ratio(after, before)
    return growth


def _observed_table(
    problem: PlanningProblem, table: TableSpec, ids: float, distinct: float, reuse: NDArray[np.float64]
) -> TableSpec:
    pooling_factor = ids / (problem.arrays.samples * len(table.feature_names))
    access = table.access
    if access is not None:
        access = replace(
            access,
            samples=problem.arrays.samples,
            pooling=access.pooling.scaled_to(pooling_factor),
            distinct_rows=distinct,
            reuse=tuple(np.clip(reuse, 0.0, 1.0).tolist()),
        )
    return replace(table, pooling_factor=pooling_factor, access=access)


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quotients; 1 where either is 0."""
    is_known = (above > 0) & (below > 0)
    return np.where(is_known, above / np.where(is_known, below, 1.0), 1.0)
