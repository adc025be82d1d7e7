"""`shardwright bench plans`: every strategy on the same random planning tasks, predicted and on demand measured."""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from launcher.bench.baselines import Progress, prefixed
from launcher.bench.plan_contest import Contest, PlanBenchmark, set_up
from launcher.bench.plan_ratios import MeasuredTimes, summarize_measured
from launcher.bench.plan_scores import (
    Attempt,
    ScoredTask,
    common_means,
    compare_pairs,
    describe_tasks,
    score_strategies,
)
from planner.check import check
from planner.errors import PlanningError
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.search.bound import lower_bound_ms
from planner.search.registry import SearchSettings, build_strategy
from planner.tables import MemoryCount
from planner.text import human_bytes

MEMORY_NOTES = {
    MemoryCount.WEIGHTS: "memory counts weights alone, as NeuroShard does",
    MemoryCount.FULL: "memory counts weights, optimizer state, inputs, outputs and what every rank holds",
}

INPUT_NOTES = {
    "neuroshard": "neuroshard: the published beam and greedy grid, with this cost model and memory; table_wise and "
    "column_wise only",
    "torchrec": "torchrec: EmbeddingShardingPlanner with the true batch, pooling factors, memory as counted here and "
    "nothing reserved, bandwidths of memory and links; it has no input for reuse or measured costs",
}
"""What the baselines are given."""


def run_plans(asked: PlanBenchmark, progress: Progress) -> dict[str, Any]:
    """The `--json` object: scores of every strategy, comparisons in pairs, every task.

    Args:
        asked: What to draw, what to plan with, what to price with.
        progress: Is told in lines how far it is.

    Raises:
        ConfigError: A figure is out of range.
        CostFileError: The pool cannot be read.
        PlanningError: A strategy is not known, or the profile, topology or weights cannot be used.
    """
    contest = set_up(asked)
    progress(f"{len(contest.tasks)} tasks; cost model: {contest.devices.cost_model}")
    _load_strategies(contest)
    scored = [_score_task(contest, index, progress) for index in range(len(contest.tasks))]
    strategies, per_task = score_strategies(scored), describe_tasks(scored)
    if asked.is_measured:
        measured = _measure(contest, progress)
        for name, summary in summarize_measured(measured).items():
            strategies[name] |= summary
        for task, plans in zip(per_task, measured, strict=True):
            task["measured_ms"] = {name: plan.max_rank_ms for name, plan in plans.items()}
    return {
        "tasks": len(scored),
        "ranks": contest.devices.topology.world_size,
        "strategies": strategies,
        "common": common_means(scored),
        "pairs": compare_pairs(scored),
        "per_task": per_task,
        "cost_model": contest.devices.cost_model,
        "seed": asked.seed,
        "budget_s": asked.budget_s,
        "notes": _notes(contest),
    }


def _load_strategies(contest: Contest) -> None:
    """Has every strategy plan one table, so that what it loads on its first call is not in the times of a task."""
    task = contest.tasks[0]
    problem = contest.problem(replace(task, tables=task.tables[:1], dims=task.dims[:1]))
    for name in contest.strategies:
        _attempt(problem, name, contest.settings)


def _score_task(contest: Contest, index: int, progress: Progress) -> ScoredTask:
    task, estimator = contest.tasks[index], contest.devices.estimator
    problem = contest.problem(task)
    bound_ms = lower_bound_ms(problem, estimator)
    attempts = {}
    for name in contest.strategies:
        _, attempts[name] = _attempt(problem, name, contest.settings)
    scored = ScoredTask(task.num_tables, task.weight_bytes, bound_ms if math.isfinite(bound_ms) else None, attempts)
    solved = scored.solved_ms
    best = min(solved, key=solved.__getitem__, default=None)
    outcome = f"best {best}: {solved[best]:.1f} ms" if best else "no strategy has a plan"
    seconds = sum(attempt.seconds for attempt in attempts.values())
    progress(f"task {index + 1} of {len(contest.tasks)}: {task.num_tables} tables, {outcome}, {seconds:.1f} s")
    return scored


def _attempt(problem: PlanningProblem, name: str, settings: SearchSettings) -> tuple[ShardingPlan | None, Attempt]:
    """A checked plan and what it is predicted to cost, or why there is none."""
    strategy = build_strategy(name, settings)
    started = time.perf_counter()
    try:
        plan = strategy.plan(problem)
        seconds = time.perf_counter() - started
        check(plan, problem)
    except PlanningError as error:
        return None, Attempt(time.perf_counter() - started, fault=str(error).splitlines()[0])
    cost = settings.estimator.estimate(problem, plan)
    return plan, Attempt(seconds, cost.step_ms, float(cost.lookup_ms.max()))


def _measure(contest: Contest, progress: Progress) -> list[Mapping[str, MeasuredTimes]]:
    """For each task the measured plans by strategy: the task scaled, planned anew and run."""
    from launcher.bench.plan_measurement import measure_plans, scale_task

    measured: list[Mapping[str, MeasuredTimes]] = []
    for index, task in enumerate(contest.tasks):
        scaled = scale_task(task)
        problem = contest.problem(scaled)
        found = {name: _attempt(problem, name, contest.settings)[0] for name in contest.strategies}
        plans = {name: plan for name, plan in found.items() if plan is not None}
        told = prefixed(progress, f"measuring task {index + 1} of {len(contest.tasks)}: ")
        told(f"{human_bytes(scaled.weight_bytes)} of weights, {scaled.global_batch} samples")
        measured.append(measure_plans(scaled, problem, plans, contest.asked.seed, told))
    return measured


def _notes(contest: Contest) -> list[str]:
    """What the figures are figures of."""
    problem, redrawn = contest.problem(contest.tasks[0]), sum(task.num_redrawn > 0 for task in contest.tasks)
    workload = problem.workload
    notes = [
        f"global batch {problem.arrays.samples}: {workload.batch_size} samples a rank; optimizer "
        f"{workload.optimizer} fused into the backward pass; no dense part",
        MEMORY_NOTES[workload.memory],
        "predicted_ms is the estimated step: per phase the slowest rank, lookups and transfers; lookup_ms the lookups "
        "of the busiest rank; both are means over the strategy's own tasks",
    ]
    notes += [INPUT_NOTES[name] for name in contest.strategies if name in INPUT_NOTES]
    if contest.asked.sharding_types:
        notes.append(f"all tables are {' or '.join(contest.asked.sharding_types)}")
    if redrawn:
        notes.append(
            f"{redrawn} tasks were too large in every draw: their largest tables were drawn again one by one until "
            "they fitted, so they hold fewer large tables than the pool"
        )
    if contest.asked.is_measured:
        notes.append(
            "measured: rows and batch scaled to fit this machine and planned anew; every rank run alone on one thread, "
            "forward and backward; ratios are geometric means over tasks of the slowest rank's time"
        )
    return notes
