"""Makes `Tasks` of planning problems: lists the options, prices them where all lies evenly, orders the units."""

from collections.abc import Hashable, Sequence
from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import AdditiveEstimator
from planner.errors import PlanningError
from planner.memory import capacity_bytes
from planner.policy.even_step import LEAST_MS, EvenStep
from planner.policy.options import Options, join_options, list_options
from planner.policy.task_features import shard_features, table_features
from planner.policy.tasks import Tasks
from planner.problem import PlanningProblem
from planner.search.placement import smallest_bytes


def build_tasks(problems: Sequence[PlanningProblem], estimator: AdditiveEstimator) -> Tasks:
    """The tasks of problems, to be placed side by side.

    Raises:
        PlanningError: The problems do not differ in tables and memory only, or not in so many units (reason
            `strategy`).
        InfeasibleError: A unit has no legal option at all.
    """
    _check_alike(problems)
    return _join([_build_task(problem, estimator) for problem in problems])


def _build_task(problem: PlanningProblem, estimator: AdditiveEstimator) -> Tasks:
    """One problem as a single task."""
    units, options = list_options(problem, estimator)
    firsts = options.total_loads[:, 0]
    even, nothing = firsts.sum(axis=0) / problem.topology.world_size, np.zeros(firsts.shape[1])
    lookup_ms = estimator.lookup_ms(problem, even[None], np.arange(problem.topology.world_size)).sum(axis=0)
    even_step = EvenStep(problem, estimator, int(np.argsort(lookup_ms, kind="stable")[len(lookup_ms) // 2]))

    own_ms = even_step.added_ms(firsts, nothing)
    order = np.argsort(-own_ms, kind="stable")
    units, own_ms, options = tuple(units[index] for index in order), own_ms[order], options.at(order)
    least_bytes, level_ms = smallest_bytes(problem, units), even_step.level_ms(even)
    tables = table_features(problem, units, own_ms, least_bytes, level_ms)
    share = even_step.added_ms(options.loads[:, :, 0], nothing) / level_ms
    return Tasks(
        problems=(problem,),
        estimator=estimator,
        units=(units,),
        options=options.at(None),
        tables=tables[None],
        shards=shard_features(problem, options, tables, share)[None],
        own_ms=own_ms[None],
        cheapest=_cheapest(even_step, options, even)[None],
        least_bytes=least_bytes[None],
        capacity_bytes=capacity_bytes(problem)[None],
        even_step=even_step,
        slowness=lookup_ms / max(float(lookup_ms.mean()), LEAST_MS),
        level_ms=np.array([level_ms]),
    )


def _cheapest(even_step: EvenStep, options: Options, even: NDArray[np.float64]) -> NDArray[np.int64]:
    """The option [T] of each unit that changes a step of even loads [K] for the best, the others left as they are."""
    instead = (options.total_loads - options.total_loads[:, :1]) / even_step.problem.topology.world_size
    added_ms = even_step.added_ms(instead, even)
    return np.asarray(np.where(options.is_there, added_ms, np.inf).argmin(axis=1))


def _join(tasks: Sequence[Tasks]) -> Tasks:
    """All tasks in one; what tells devices apart is the first one's."""
    options = join_options([each.options for each in tasks])
    most = options.type_code.shape[-1]
    shards = [np.pad(each.shards, [(0, 0), (0, 0), (0, most - each.shards.shape[2]), (0, 0)]) for each in tasks]
    return replace(
        tasks[0],
        problems=tuple(problem for each in tasks for problem in each.problems),
        units=tuple(units for each in tasks for units in each.units),
        options=options,
        tables=np.concatenate([each.tables for each in tasks]),
        shards=np.concatenate(shards),
        own_ms=np.concatenate([each.own_ms for each in tasks]),
        cheapest=np.concatenate([each.cheapest for each in tasks]),
        least_bytes=np.concatenate([each.least_bytes for each in tasks]),
        capacity_bytes=np.concatenate([each.capacity_bytes for each in tasks]),
        level_ms=np.concatenate([each.level_ms for each in tasks]),
    )


def _check_alike(problems: Sequence[PlanningProblem]) -> None:
    """Passes problems that can be placed side by side; raises PlanningError listing what keeps others from it."""
    found = []
    num_ways = len({_besides_tables(problem) for problem in problems})
    if num_ways > 1:
        expected = "the same devices, links, batch and dense part"
        found.append(f"differ in {num_ways} ways beside tables and memory, expected {expected}")
    counts = sorted({len(problem.groups) for problem in problems})
    if len(counts) > 1:
        found.append(f"have {' or '.join(map(str, counts))} units, expected equally many")
    if found:
        raise PlanningError(f"{len(problems)} tasks to be placed side by side {'; '.join(found)}", reason="strategy")


def _besides_tables(problem: PlanningProblem) -> tuple[Hashable, ...]:
    """All that prices depend on but for the tables."""
    topology, workload = problem.topology, problem.workload
    devices = tuple(replace(device, hbm_bytes=0, reserved_bytes=0) for device in topology.devices)
    others = tuple(getattr(workload, each.name) for each in fields(workload) if each.name != "tables")
    return (devices, topology.intra_node, topology.inter_node, *others)
