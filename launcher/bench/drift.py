"""How much of a drift's cost re-sharding wins back: the load moves to one rank's tables while a job trains.

Three ways to meet it take turns, over the same batches: `static` keeps its plan, `ours` starts with the same plan and
re-shards, `oracle` starts with the plan that is best once the load has moved. Counted are the steps from the drift to
the end by the wall clock: detection, search and pause are part of it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

from cluster.session import open_session
from launcher.bench.drift_runs import Arm, RunFigures, read_figures, run_arm, weights_difference
from launcher.bench.drift_scenario import WINDOW_STEPS, Hot, choose_hot, declare_hot, make_scenario
from launcher.bench.steps import WARMUP_STEPS
from launcher.config import ConfigError
from launcher.preparation import prepare
from launcher.profiling import Follow
from launcher.run_dir import RunDir
from launcher.schema import RunConfig
from launcher.views.tables import make_table, number
from planner.text import human_bytes

STATIC, OURS, ORACLE = ARMS = ("static", "ours", "oracle")
EQUAL_WEIGHTS = 1e-6
"""Largest relative difference of weights that were trained by the same arithmetic in another place."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class DriftBenchmark:
    """What is run.

    Attributes:
        num_repeats: Runs of each arm.
        num_steps: Of each run.
        after_step: The last step before the drift.
    """

    num_repeats: int
    num_steps: int
    after_step: int

    def check(self) -> None:
        """Pass where there are steps before and after the drift, and no window holds both; else raise ConfigError."""
        if not WARMUP_STEPS < self.after_step < self.num_steps or self.after_step % WINDOW_STEPS:
            expected = f"a multiple of {WINDOW_STEPS} above {WARMUP_STEPS} and below the {self.num_steps} of --steps"
            raise ConfigError([f"bench drift --drift-step: found {self.after_step}, expected {expected}"])


def run_drift(config: RunConfig, asked: DriftBenchmark, follow: Follow, progress: Progress) -> dict[str, Any]:
    """What `bench drift --json` prints: see `summarise`.

    Args:
        config: Its cluster, profile, planner, imbalance, resharding and `train.seed` count.
        asked: Lengths and repeats.
        follow: Shown the profile, where the devices are measured first.
        progress: Told of every run.

    Raises:
        ClusterError, WorkerFailure, ConfigError, DataError, PlanningError: As in training.
    """
    asked.check()
    config = make_scenario(config, asked.num_steps)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="drift-")))
        config.run.dir = str(folder)
        stack.enter_context(open_session(config.cluster.address))
        prepared = prepare(config, topology_path=None, follow=follow)
        hot = choose_hot(prepared, asked.after_step)
        right = prepare(declare_hot(config, prepared, hot), topology_path=None)
        first, best = folder / "first.json", folder / "best.json"
        first.write_text(json.dumps(prepared.planned.plan.to_dict()))
        best.write_text(json.dumps(right.planned.plan.to_dict()))
        arms = (Arm(STATIC, first, False), Arm(OURS, first, True), Arm(ORACLE, best, False))
        repeats = [
            _repeat(config, arms if turn % 2 == 0 else arms[::-1], hot, progress) for turn in range(asked.num_repeats)
        ]
    return summarise(repeats, hot, asked)


def _repeat(config: RunConfig, arms: Sequence[Arm], hot: Hot, progress: Progress) -> dict[str, Any]:
    """All arms once: figures by arm, and how far the weights of ours are from those of static."""
    runs: dict[str, RunDir] = {}
    found: dict[str, Any] = {}
    for arm in arms:
        runs[arm.name] = run_arm(config, arm, hot)
        found[arm.name] = read_figures(runs[arm.name], hot, WARMUP_STEPS)
        progress(_describe(arm.name, found[arm.name]))
    return {**found, "weights_difference": weights_difference(runs[OURS], runs[STATIC])}


def summarise(repeats: Sequence[dict[str, Any]], hot: Hot, asked: DriftBenchmark) -> dict[str, Any]:
    """What `bench drift --json` prints.

    `recovered` is (ours - static) / (oracle - static) of the medians of samples a second after the drift, null where
    the oracle was no faster than static; `recovered_range` holds the least and the most of single repeats. Of ours
    `detect_steps`, `decide_steps`, `move_steps` and `pause_ms` are medians over the repeats that came so far.
    """
    speeds = {arm: median(repeat[arm].samples_per_s for repeat in repeats) for arm in ARMS}
    single = [_recovered({arm: repeat[arm].samples_per_s for arm in ARMS}) for repeat in repeats]
    known = [value for value in single if value is not None]
    ours: list[RunFigures] = [repeat[OURS] for repeat in repeats]
    worst = max(repeat["weights_difference"] for repeat in repeats)
    return {
        "recovered": _recovered(speeds),
        "recovered_range": [min(known), max(known)] if known else None,
        "detect_steps": _median(each.detect_steps for each in ours),
        "decide_steps": _median(each.decide_steps for each in ours),
        "move_steps": _median(each.move_steps for each in ours),
        "pause_ms": _median(each.pause_ms if each.num_migrations else None for each in ours),
        "weights_equal": worst <= EQUAL_WEIGHTS,
        "weights_difference": worst,
        "samples_per_s": speeds,
        "hot_tables": list(hot.tables),
        "hot_rank": hot.rank,
        "drift_step": hot.from_step,
        "steps": asked.num_steps,
        "repeats": [
            {
                **{arm: asdict(repeat[arm]) for arm in ARMS},
                "recovered": value,
                "weights_difference": repeat["weights_difference"],
            }
            for repeat, value in zip(repeats, single, strict=True)
        ],
    }


def render_drift(found: dict[str, Any]) -> Iterator[Table | str]:
    """The object that `run_drift` gives, for people."""
    title = (
        f"from step {found['drift_step']} of {found['steps']} on rank {found['hot_rank']} looks up more in "
        f"{', '.join(found['hot_tables'])}; {len(found['repeats'])} runs of each"
    )
    columns = ("plan", "samples/s before", "after", "least", "most", "moves", "moved", "pause ms")
    yield make_table(title, columns, (_row(arm, [each[arm] for each in found["repeats"]]) for arm in ARMS))
    same = "equal" if found["weights_equal"] else "NOT equal"
    yield (
        f"recovered {number(found['recovered'], 2)} of the oracle's advantage; detected "
        f"{number(found['detect_steps'], 0)} steps after the drift, moved after {number(found['move_steps'], 0)}; "
        f"weights of ours and static are {same} (difference {found['weights_difference']:.1e})"
    )


def _row(arm: str, runs: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    speeds = [run["samples_per_s"] for run in runs]
    return (
        arm,
        f"{median(run['before_samples_per_s'] for run in runs):,.0f}",
        f"{median(speeds):,.0f}",
        f"{min(speeds):,.0f}",
        f"{max(speeds):,.0f}",
        f"{median(run['num_migrations'] for run in runs):g}",
        human_bytes(median(run["moved_bytes"] for run in runs)),
        f"{median(run['pause_ms'] for run in runs):.0f}",
    )


def _describe(arm: str, figures: RunFigures) -> str:
    said = "".join(f"\n    {decision}" for decision in figures.decisions)
    return f"{arm}: {figures.samples_per_s:,.0f} samples/s after the drift{said}"


def _recovered(speeds: dict[str, float]) -> float | None:
    gain = speeds[ORACLE] - speeds[STATIC]
    return (speeds[OURS] - speeds[STATIC]) / gain if gain > 0 else None


def _median(values: Iterator[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return float(median(known)) if known else None
