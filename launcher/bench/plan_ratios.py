"""How strategies compare in measured time, over tasks, and how sure that is. Knows no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

BASELINE = "torchrec"

GREEDY_RULES = ("size_greedy", "dim_greedy", "lookup_greedy", "size_lookup_greedy")
"""Strategies that place whole tables by one figure each. Source: the baselines of AutoShard (arXiv 2208.06399)."""

NUM_RESAMPLES = 2_000
CONFIDENCE = 0.9


class MeasuredTimes(Protocol):
    """What is compared of a measured plan, see `plan_measurement.MeasuredPlan`."""

    @property
    def max_rank_ms(self) -> float:
        """The slowest rank's time."""
        ...

    @property
    def spread(self) -> float:
        """Range of that time over repeated rounds, as a share of it."""
        ...


@dataclass(frozen=True)
class MeasuredRatio:
    """A strategy's slowest rank over another's, over the tasks that both solve.

    Attributes:
        ratio: Geometric mean.
        low: Lower end of its 90 % interval.
        high: Upper end.
        num_tasks: Tasks that both solve.
    """

    ratio: float
    low: float
    high: float
    num_tasks: int


def measured_ratio(measured: Sequence[Mapping[str, MeasuredTimes]], name: str, other: str) -> MeasuredRatio | None:
    """How strategy `name` compares with `other`; None where no task has both.

    The interval is a percentile bootstrap over the tasks, so it holds which tasks were drawn as well as the noise of
    measuring them. Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    ratios = [task[name].max_rank_ms / task[other].max_rank_ms for task in measured if name in task and other in task]
    if not ratios:
        return None
    logs = np.log(ratios)
    drawn = np.random.default_rng(0).integers(len(logs), size=(NUM_RESAMPLES, len(logs)))
    ends = np.quantile(logs[drawn].mean(axis=1), ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    ratio, low, high = np.exp([logs.mean(), *ends]).tolist()
    return MeasuredRatio(ratio, low, high, len(logs))


def best_greedy_rule(measured: Sequence[Mapping[str, MeasuredTimes]], name: str) -> str | None:
    """The rule of `GREEDY_RULES` that a strategy is least ahead of; None where none of them was measured beside it."""
    found = {rule: measured_ratio(measured, name, rule) for rule in GREEDY_RULES}
    ratios = {rule: each.ratio for rule, each in found.items() if each is not None}
    return max(ratios, key=ratios.__getitem__, default=None)


def summarize_measured(measured: Sequence[Mapping[str, MeasuredTimes]]) -> dict[str, dict[str, float | str | None]]:
    """What a report says of each strategy that was measured on any task; None where there is nothing to compare with.

    `measured_ratio_vs_torchrec` and its 90 % interval `measured_ratio_low`, `measured_ratio_high`, over
    `measured_num_tasks`; the same against the best greedy rule, whose name is given; `measured_max_rank_ms`, the mean
    over the strategy's own tasks; `measured_spread`, the median of their ranges over rounds.
    """
    names = dict.fromkeys(name for task in measured for name in task)
    return {name: _summary(measured, name) for name in names}


def _summary(measured: Sequence[Mapping[str, MeasuredTimes]], name: str) -> dict[str, float | str | None]:
    rule = best_greedy_rule(measured, name)
    baseline = measured_ratio(measured, name, BASELINE)
    greedy = measured_ratio(measured, name, rule) if rule is not None else None
    own = [task[name] for task in measured if name in task]
    return {
        "measured_ratio_vs_torchrec": baseline.ratio if baseline else None,
        "measured_ratio_low": baseline.low if baseline else None,
        "measured_ratio_high": baseline.high if baseline else None,
        "measured_num_tasks": baseline.num_tasks if baseline else 0,
        "measured_best_greedy": rule,
        "measured_ratio_vs_best_greedy": greedy.ratio if greedy else None,
        "measured_ratio_vs_best_greedy_low": greedy.low if greedy else None,
        "measured_ratio_vs_best_greedy_high": greedy.high if greedy else None,
        "measured_max_rank_ms": float(np.mean([each.max_rank_ms for each in own])),
        "measured_spread": float(np.median([each.spread for each in own])),
    }
