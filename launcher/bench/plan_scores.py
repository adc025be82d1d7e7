"""What planning tasks say about strategies: success, predicted cost, distance to the bound, comparisons in pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

REFERENCE = "portfolio"
"""The strategy that others are compared with, where it runs; otherwise the first of the list."""

SAME = 1e-9
"""Relative difference of predicted costs below which two plans count as equally good."""


@dataclass(frozen=True)
class Attempt:
    """What one strategy made of one task.

    Attributes:
        seconds: What it took.
        step_ms: Predicted step; None where there is no plan.
        lookup_ms: Predicted lookups of the busiest rank; None where there is no plan.
        fault: Why there is none; None where there is.
    """

    seconds: float
    step_ms: float | None = None
    lookup_ms: float | None = None
    fault: str | None = None


@dataclass(frozen=True)
class ScoredTask:
    """One task with every strategy's attempt.

    Attributes:
        num_tables: Tables placed.
        weight_bytes: Of all tables.
        lower_bound_ms: No plan's predicted step is shorter; None where no legal plan exists.
        attempts: By strategy.
    """

    num_tables: int
    weight_bytes: int
    lower_bound_ms: float | None
    attempts: Mapping[str, Attempt]

    @property
    def solved_ms(self) -> dict[str, float]:
        """Predicted steps of the strategies that found a plan."""
        return {name: each.step_ms for name, each in self.attempts.items() if each.step_ms is not None}


def score_strategies(tasks: Sequence[ScoredTask]) -> dict[str, dict[str, Any]]:
    """Per strategy, over the tasks that it solves: means of predicted cost, distance to the bound; and its seconds.

    `success` is a fraction of all tasks; `num_best` counts those on which no listed strategy predicts less.
    """
    return {name: _score(tasks, name) for name in tasks[0].attempts}


def compare_pairs(tasks: Sequence[ScoredTask]) -> list[dict[str, Any]]:
    """The reference strategy against each other one, over the tasks that both solve; `ratio` is that of the means."""
    names = list(tasks[0].attempts)
    reference = REFERENCE if REFERENCE in names else names[0]
    return [_pair(tasks, reference, name) for name in names if name != reference]


def common_means(tasks: Sequence[ScoredTask]) -> dict[str, Any]:
    """Mean predicted cost over the tasks that all strategies solve that solve any; none where there are no such."""
    solving = [name for name in tasks[0].attempts if any(name in task.solved_ms for task in tasks)]
    shared = [task.solved_ms for task in tasks if all(name in task.solved_ms for name in solving)] if solving else []
    means = {name: float(np.mean([each[name] for each in shared])) for name in solving} if shared else {}
    return {"num_tasks": len(shared), "predicted_ms": means}


def describe_tasks(tasks: Sequence[ScoredTask]) -> list[dict[str, Any]]:
    """A JSON object a task; a predicted cost is null where there is no plan, and `faults` says why."""
    return [
        {
            "num_tables": task.num_tables,
            "weight_bytes": task.weight_bytes,
            "lower_bound_ms": task.lower_bound_ms,
            "predicted_ms": {name: each.step_ms for name, each in task.attempts.items()},
            "faults": {name: each.fault for name, each in task.attempts.items() if each.fault},
        }
        for task in tasks
    ]


def _score(tasks: Sequence[ScoredTask], name: str) -> dict[str, Any]:
    solved = [task for task in tasks if name in task.solved_ms]
    bounds = [(task.solved_ms[name], task.lower_bound_ms) for task in solved]
    gaps = [step_ms / bound_ms - 1 for step_ms, bound_ms in bounds if bound_ms]
    is_best = [task.solved_ms[name] <= min(task.solved_ms.values()) * (1 + SAME) for task in solved]
    return {
        "success": len(solved) / len(tasks),
        "predicted_ms": _mean([task.solved_ms[name] for task in solved]),
        "lookup_ms": _mean([task.attempts[name].lookup_ms for task in solved]),
        "gap_median": float(np.median(gaps)) if gaps else None,
        "gap_p95": float(np.percentile(gaps, 95)) if gaps else None,
        "seconds_mean": _mean([task.attempts[name].seconds for task in tasks]),
        "num_best": sum(is_best),
        "measured_ratio_vs_torchrec": None,
    }


def _pair(tasks: Sequence[ScoredTask], reference: str, other: str) -> dict[str, Any]:
    both = [task.solved_ms for task in tasks if reference in task.solved_ms and other in task.solved_ms]
    reference_ms, other_ms = (_mean([each[name] for each in both]) for name in (reference, other))
    return {
        "strategy": reference,
        "other": other,
        "num_tasks": len(both),
        "predicted_ms": reference_ms,
        "other_predicted_ms": other_ms,
        "ratio": reference_ms / other_ms if reference_ms is not None and other_ms else None,
        "num_worse": sum(each[reference] > each[other] * (1 + SAME) for each in both),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
