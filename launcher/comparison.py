"""Every strategy on the same task, side by side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from launcher.estimators import build_estimator
from launcher.preparation import describe_task, find_target, find_weights, resolve_paths, with_access, with_profile
from launcher.profiling import Follow, unseen
from launcher.schema import RunConfig
from launcher.views.tables import make_table
from planner.errors import PlanningError
from planner.search.registry import STRATEGIES, PlanResult, find_plan
from planner.text import human_bytes

COLUMNS = ("strategy", "step ms", "max rank ms", "imbalance", "gap", "most memory", "plan s")


@dataclass(frozen=True)
class Outcome:
    """What one strategy gave: a plan, or why there is none."""

    strategy: str
    planned: PlanResult | None
    fault: str | None


def compare_strategies(
    config: RunConfig, topology_path: Path | None, profile_path: Path | None = None, follow: Follow = unseen
) -> list[Outcome]:
    """Plan with every strategy, the best estimated step first and failures last; for the devices as `prepare`."""
    task = describe_task(resolve_paths(config))
    target = find_target(config, topology_path, profile_path)
    topology = target.described.topology
    problem = with_access(task, topology.world_size)[0].problem(topology)
    estimator = build_estimator(topology, with_profile(target, config, follow).profile, find_weights(config))
    outcomes = []
    for name in STRATEGIES:
        try:
            outcomes.append(Outcome(name, find_plan(problem, name, estimator), None))
        except PlanningError as error:
            outcomes.append(Outcome(name, None, str(error).splitlines()[0]))
    return sorted(outcomes, key=lambda o: o.planned.cost.step_ms if o.planned else float("inf"))


def render_comparison(outcomes: list[Outcome]) -> Table:
    """A row a strategy."""
    return make_table("strategies", COLUMNS, map(_row, outcomes))


def comparison_dict(outcomes: list[Outcome]) -> dict[str, Any]:
    """`{"strategies": {name: plan --json, or {"error": text}}}`, best first."""
    return {
        "strategies": {
            outcome.strategy: outcome.planned.to_dict() if outcome.planned else {"error": outcome.fault}
            for outcome in outcomes
        }
    }


def _row(outcome: Outcome) -> tuple[str, ...]:
    if outcome.planned is None:
        return (outcome.strategy, f"no plan: {outcome.fault}", "", "", "", "", "")
    plan = outcome.planned.to_dict()
    return (
        outcome.strategy,
        f"{plan['estimated_step_ms']:.3f}",
        f"{plan['max_rank_ms']:.3f}",
        f"{plan['imbalance']:.2f}",
        f"{plan['gap']:.0%}",
        human_bytes(max(rank["hbm_bytes"] for rank in plan["ranks"])),
        f"{plan['plan_seconds']:.2f}",
    )
