"""Every strategy on the same task, side by side."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.estimators import build_estimator
from launcher.preparation import describe_task, find_target, find_weights, resolve_paths, with_access, with_profile
from launcher.profiling import Follow, unseen
from launcher.schema import RunConfig
from planner.errors import PlanningError
from planner.problem import PlanningProblem
from planner.search.registry import STRATEGIES, PlanResult, SearchSettings, find_plan

Begin = Callable[[str], None]
"""Takes the name of the strategy that begins to plan."""

FollowStrategies = Callable[[Sequence[str]], AbstractContextManager[Begin]]
"""Opens a view of the strategies' progress, given their names."""


@dataclass(frozen=True)
class Outcome:
    """What one strategy gave: a plan, or why there is none."""

    strategy: str
    planned: PlanResult | None
    fault: str | None


@contextmanager
def unwatched(names: Sequence[str]) -> Iterator[Begin]:
    """Strategies whose progress nobody follows."""
    yield lambda name: None


def compare_strategies(
    config: RunConfig,
    topology_path: Path | None,
    profile_path: Path | None = None,
    follow: Follow = unseen,
    follow_strategies: FollowStrategies = unwatched,
) -> list[Outcome]:
    """Plan with every strategy, the best estimated step first and failures last; for the devices as `prepare`."""
    task = describe_task(resolve_paths(config))
    target = find_target(config, topology_path, profile_path)
    topology = target.described.topology
    problem = with_access(task, topology.world_size)[0].problem(topology)
    profile = with_profile(target, config, follow).profile
    estimator = build_estimator(topology, profile, find_weights(config))
    settings = SearchSettings(estimator, config.planner.budget_s, has_policy=profile is not None)
    outcomes = []
    with follow_strategies(list(STRATEGIES)) as begin:
        for name in STRATEGIES:
            begin(name)
            outcomes.append(_attempt(problem, name, settings))
    return sorted(outcomes, key=lambda o: o.planned.cost.step_ms if o.planned else float("inf"))


def comparison_dict(outcomes: list[Outcome]) -> dict[str, Any]:
    """`{"strategies": {name: plan --json, or {"error": text}}}`, best first."""
    return {
        "strategies": {
            outcome.strategy: outcome.planned.to_dict() if outcome.planned else {"error": outcome.fault}
            for outcome in outcomes
        }
    }


def _attempt(problem: PlanningProblem, name: str, settings: SearchSettings) -> Outcome:
    try:
        return Outcome(name, find_plan(problem, name, settings), None)
    except PlanningError as error:
        return Outcome(name, None, " ".join(str(error).split()))
