"""`shardwright bench cost`: our costs beside the baselines on sets, collectives and steps never used for fitting."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from launcher.bench.baselines import Progress
from launcher.bench.collectives import bench_collectives
from launcher.bench.fused_sets import bench_compute_sets, measure_candidates, noise_of, set_up_contest
from launcher.bench.held_out import measure_held_out
from launcher.bench.local import local_profile
from launcher.bench.metrics import METRICS
from launcher.bench.step_errors import bench_steps, estimate_steps, held_out_configs
from launcher.bench.steps import measure_steps
from launcher.config import ConfigError
from launcher.preparation import find_weights
from launcher.profiling import Follow
from launcher.run_dir import locate_runs
from launcher.schema import RunConfig
from launcher.views.tables import make_table
from planner.cost.learned import learn_compute
from planner.profile_file import load_profile


@dataclass(frozen=True)
class CostBenchmark:
    """What `bench cost` is asked for.

    Attributes:
        num_sets: Fused sets to measure, each twice, where no profile is given.
        num_steps: Model configurations to train; 0 leaves steps out.
        seed: Of what is drawn, of splits and first weights.
        held_out: A profile of sets and collectives to test on; None measures them.
        training: Profiles that the baselines are trained on; none of them means the local one.
    """

    num_sets: int
    num_steps: int
    seed: int
    held_out: Path | None
    training: tuple[Path, ...]

    def check(self) -> None:
        """Raises ConfigError for figures out of range."""
        faults = [
            f"{name} is {value}, expected at least {least}"
            for name, value, least in (("--sets", self.num_sets, 1), ("--steps", self.num_steps, 0))
            if value < least
        ]
        if faults:
            raise ConfigError(faults)


def run_cost(config: RunConfig, asked: CostBenchmark, follow: Follow, progress: Progress) -> dict[str, Any]:
    """The `--json` object.

    Args:
        config: Its cluster, optimizer and profile sections decide what is measured, `planner.cost_weights` the weights.
        asked: What to measure, and what was measured before.
        follow: Shows how far a profile is.
        progress: Is told how far everything else is.

    Raises:
        ConfigError: A figure is out of range.
        PlanningError: A profile cannot be read or has too few sets (reason `profile`), or the weights cannot be read.
        ClusterError, WorkerFailure: As `shardwright profile` and `train`.
    """
    asked.check()
    find_profile = partial(local_profile, follow=follow)
    kernels = _bench_kernels(config, asked, find_profile, progress)
    return kernels | {"step": _bench_steps(config, asked, find_profile, progress)}


def render_cost(found: dict[str, Any]) -> Iterator[Table | str]:
    """The report for people."""
    compute = found["compute"]
    floor = "not measured (no set twice)" if found["noise_floor"] is None else f"{found['noise_floor']:.2%}"
    yield _scores_table(f"compute: {compute['num_test']} held-out measurements of fused sets", compute)
    yield f"noise floor, one measurement predicted by another of the same set: {floor}"
    yield f"baselines and ours_same_data: trained on {compute['num_train']} measurements"
    for collective, scores in found["comms"].items():
        yield _scores_table(f"comms: {collective}, {scores['num_test']} held out", scores)
    if found["step"] is not None:
        yield from _step_tables(found["step"])
    yield f"4,096 candidate sets costed in {found['candidates_ms']:.1f} ms on one core"


def _bench_kernels(
    config: RunConfig, asked: CostBenchmark, find_profile: Callable[[RunConfig], Any], progress: Progress
) -> dict[str, Any]:
    local = find_profile(config)
    training = [load_profile(path) for path in asked.training] or [local]
    if asked.held_out is not None:
        held_out = load_profile(asked.held_out)
    else:
        held_out, path = measure_held_out(config, asked.num_sets, asked.seed, progress)
        progress(f"held-out measurements kept: {path}; test on them again with --profile")
    model = learn_compute(local, find_weights(config))
    contest = set_up_contest(local, training, held_out, local.devices[0].lookup_canary.median_ms)
    return {
        "noise_floor": noise_of(contest),
        "compute": bench_compute_sets(contest, model, asked.seed, progress),
        "comms": bench_collectives(training, held_out),
        "candidates_ms": measure_candidates(model, contest.test, asked.seed),
    }


def _bench_steps(
    config: RunConfig, asked: CostBenchmark, find_profile: Callable[[RunConfig], Any], progress: Progress
) -> dict[str, Any] | None:
    if asked.num_steps == 0:
        return None
    configs = held_out_configs(config, asked.num_steps, asked.seed)
    path = locate_runs(config.run.dir) / "bench" / "steps.jsonl"
    measurements = measure_steps(configs, path, progress)
    return bench_steps(estimate_steps(measurements, config, find_profile))


def _scores_table(title: str, scores: dict[str, Any]) -> Table:
    """A row a model; what else stands in a section is no model."""
    rows = [
        (name, f"{found['rmse_ms']:.2f}", f"{found['mape']:.2%}", f"{found['spearman']:.4f}")
        for name, found in scores.items()
        if isinstance(found, dict) and set(METRICS) <= set(found)
    ]
    return make_table(title, ("model", "RMSE ms", "MAPE", "Spearman"), rows)


def _step_tables(step: dict[str, Any]) -> Iterator[Table]:
    names = ("geomean_error", "mean_error", "median_error", "bias")
    models = [
        (name, *(f"{found[each]:.2%}" for each in names), f"{found['scale']:.3f}")
        for name, found in step.items()
        if isinstance(found, dict) and set(names) <= set(found)
    ]
    title = f"step: relative errors on {step['num_steps']} held-out configurations"
    yield make_table(title, ("model", "geomean", "mean", "median", "bias", "scale"), models)
    rows = [
        (
            phase,
            *(f"{found[name]:.2f}" for name in ("measured_ms", "estimated_ms", "mean_error_ms")),
            f"{found['mean_error_of_step']:.2%}",
        )
        for phase, found in step["phases"].items()
    ]
    yield make_table("phases, means", ("phase", "measured ms", "ours ms", "error ms", "error of step"), rows)
