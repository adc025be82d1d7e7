"""`bench cost`: the parts on profiles of known laws, and the command on profiles that real workers measure."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.host import count_cores
from cluster.inventory import build_inventory, read_facts
from dlrm.step_columns import STEP, STEP_COLUMNS
from launcher.bench.collectives import bench_collectives
from launcher.bench.cost import CostBenchmark, render_cost
from launcher.bench.fused_sets import (
    Contest,
    bench_compute_sets,
    measure_candidates,
    noise_of,
    set_up_contest,
)
from launcher.bench.held_out import measure_held_out
from launcher.bench.step_configs import draw_configs
from launcher.bench.step_errors import bench_steps, best_scale, estimate_steps, held_out_configs, step_errors
from launcher.bench.step_measurement import StepMeasurement, config_key
from launcher.bench.torchrec_steps import estimate_step_ms
from launcher.cli import main
from launcher.config import ConfigError, load_config
from launcher.hardware import describe_cluster
from launcher.preparation import prepare
from launcher.profiling import cache_path, take_fingerprint
from launcher.schema import RunConfig
from planner.cost.compute import ComputeModel
from planner.cost.estimator import PHASES
from planner.cost.fit import FORWARD_BACKWARD, FitOptions, fit_compute
from planner.errors import PlanningError
from planner.lookups import LookupArrays
from planner.plan import ShardingPlan, TablePlacement
from planner.profile import Profile, Timing
from planner.sharding import Shard, ShardingType
from planner.topology import DeviceType
from tests.launcher.made_profiles import (
    CPU_PAIR,
    keep,
    make_collectives,
    make_lookups,
    make_profile,
    slower,
)

METRICS = {"mape", "rmse_ms", "spearman"}
MODELS = {"ours", "ours_same_data", "torchrec", "nnls", "neuroshard"}


def ignore(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def local() -> Profile:
    return make_profile(make_lookups(150, seed=1, canary_ms=2.0), make_collectives(60, seed=1))


@pytest.fixture(scope="module")
def held_out() -> Profile:
    """Measured twice, a little unsteady, while the device was slower."""
    lookups = make_lookups(40, seed=2, canary_ms=2.0, noise=0.02, passes=2)
    return make_profile(slower(lookups, 1.5), make_collectives(40, seed=2))


@pytest.fixture(scope="module")
def model(local: Profile) -> ComputeModel:
    lookups = local.devices[0].lookups
    times = np.array([(each.forward.median_ms, each.backward.median_ms) for each in lookups]) / 2.0
    options = FitOptions(num_members=2, num_steps=400, batch_size=16)
    return fit_compute(LookupArrays.of([each.lookups for each in lookups]), times, 0, None, FORWARD_BACKWARD, options)


@pytest.fixture(scope="module")
def contest(local: Profile, held_out: Profile) -> Contest:
    return set_up_contest(local, [make_profile(make_lookups(60, seed=4, canary_ms=2.0))], held_out, 2.0)


def test_what_was_trained_on_is_not_tested_on(local: Profile, held_out: Profile) -> None:
    known = local.devices[0].lookups[:7]
    mixed = make_profile((*known, *held_out.devices[0].lookups))
    found = set_up_contest(local, [local], mixed, 2.0)
    assert (len(found.test), found.num_left_out) == (80, 7)
    other = make_profile(make_lookups(50, seed=3))
    assert set_up_contest(local, [other], mixed, 2.0).num_left_out == 7, "ours is adapted to the local profile"
    with pytest.raises(PlanningError, match="0 of 150 to test on") as caught:
        set_up_contest(local, [other], local, 2.0)
    assert caught.value.reason == "profile"


def test_all_models_are_scored_on_the_same_sets_at_the_speed_of_the_local_profile(
    contest: Contest, model: ComputeModel
) -> None:
    found = bench_compute_sets(contest, model, 0, ignore)
    assert set(found) >= MODELS and all(set(found[name]) >= METRICS for name in MODELS)
    assert (found["num_test"], found["num_train"], found["num_left_out"]) == (80, 60, 0)
    assert found["ours"]["mape"] < 0.12 and found["ours"]["spearman"] > 0.98
    assert found["ours_same_data"]["mape"] < 0.2
    assert found["ours"]["mape"] < found["torchrec"]["mape"] / 2
    assert found["ours_by_part"]["total"] == found["ours"]
    # The device was 1.5 times slower; without the canary all estimates are a third too small.
    assert found["ours_without_canary"]["mape"] == pytest.approx(1 / 3, abs=0.08)


def test_the_noise_floor_is_that_of_the_test_sets(contest: Contest) -> None:
    floor = noise_of(contest)
    assert floor is not None and 0.01 < floor < 0.05
    once = replace(contest, test=contest.test.take(np.arange(40)))
    assert noise_of(once) is None


def test_candidates_are_costed(contest: Contest, model: ComputeModel) -> None:
    assert measure_candidates(model, contest.test, 0) > 0


def test_collectives_are_scored_by_kind(local: Profile, held_out: Profile) -> None:
    found = bench_collectives([local], held_out)
    assert set(found) == {"all_to_all", "all_reduce"}
    for scores in found.values():
        assert all(set(scores[name]) >= METRICS for name in ("ours", "torchrec", "nnls"))
        assert scores["ours"]["mape"] < 0.02 < scores["torchrec"]["mape"], "TorchRec knows no latency"
        assert (scores["num_test"], scores["num_train"], scores["canary_ratio"]) == (20, 30, 1.0)
    later = make_profile(held_out.devices[0].lookups, make_collectives(40, seed=2, slower=1.25))
    found = bench_collectives([local], later)
    assert found["all_to_all"]["canary_ratio"] == pytest.approx(1.25)
    assert found["all_to_all"]["ours"]["mape"] == pytest.approx(0.2, abs=0.02)


def test_a_late_start_is_part_of_the_time_that_is_scored(local: Profile) -> None:
    late = tuple(
        replace(each, skew_ms=(0.0, 30.0), duration_ms=(30.0 + each.duration_ms[0], each.duration_ms[1]))
        for each in make_collectives(40, seed=2)
    )
    found = bench_collectives([local], make_profile(local.devices[0].lookups, late))
    assert found["all_to_all"]["ours"]["mape"] < 0.03
    assert found["all_to_all"]["torchrec"]["mape"] > 0.5


@pytest.fixture(scope="module")
def measured_steps(local: Profile) -> list[StepMeasurement]:
    """Plans of drawn configurations; their figures are twice the estimate of the analytic estimator."""
    found = []
    for config in draw_configs(30, seed=3)[::10]:
        result = prepare(deepcopy(config), CPU_PAIR).planned
        rows = np.zeros((2, len(STEP_COLUMNS)))
        rows[:, [STEP_COLUMNS.index(f"{phase}_ms") for phase in PHASES]] = 2 * result.cost.phases_ms.max(axis=1)
        rows[:, STEP] = 2 * result.cost.step_ms
        step = Timing(2 * result.cost.step_ms, 0.1, 40)
        columns = tuple(map(tuple, rows.tolist()))
        found.append(StepMeasurement(config, result.plan, step, STEP_COLUMNS, columns, (1.0, 1.0), (1.0, 1.0)))
    return found


def test_steps_are_priced_by_the_estimator_of_train_and_by_torchrec(
    measured_steps: list[StepMeasurement], local: Profile, model: ComputeModel, tmp_path: Path
) -> None:
    model.save(tmp_path / "cpu.npz")
    config = load_config(None, [f"planner.cost_weights={tmp_path / 'cpu.npz'}", "profile.budget_s=7"])
    asked: list[RunConfig] = []

    def find_profile(wanted: RunConfig) -> Profile:
        asked.append(wanted)
        return local

    estimates = estimate_steps(measured_steps, config, find_profile)
    kinds = [each.optimizer.sparse.kind for each in asked]
    assert sorted(kinds) == sorted({each.config.optimizer.sparse.kind for each in measured_steps})
    assert all(each.profile.budget_s == 7 and each.cluster.num_workers == 2 for each in asked)
    assert (estimates.ours_ms > 0).all() and (estimates.torchrec_ms > 0).all()
    np.testing.assert_allclose(estimates.ours_phases_ms.sum(axis=1), estimates.ours_ms)
    np.testing.assert_allclose(estimates.measured_phases_ms.sum(axis=1), estimates.measured_ms)

    found = bench_steps(replace(estimates, ours_ms=estimates.measured_ms / 2))
    assert found["ours"]["geomean_error"] == pytest.approx(0.5) and found["ours"]["bias"] == pytest.approx(-0.5)
    assert found["ours_scaled"]["scale"] == pytest.approx(2.0)
    assert found["ours_scaled"]["mean_error"] == pytest.approx(0.0, abs=1e-9)
    assert found["torchrec"]["mean_error"] > 0 and found["num_steps"] == 3
    assert set(found["phases"]) == set(PHASES)
    lookup = found["phases"]["lookup_forward"]
    assert lookup["measured_ms"] == pytest.approx(estimates.measured_phases_ms[:, 1].mean())
    assert lookup["mean_error_ms"] > 0 and 0 < lookup["mean_error_of_step"] < 10


def test_torchrecs_estimate_follows_the_plan(measured_steps: list[StepMeasurement], local: Profile) -> None:
    (measured, *_) = measured_steps
    problem = measured.problem(local.topology)

    def on(*ranks: int) -> float:
        placements = [
            TablePlacement(
                table.name,
                ShardingType.TABLE_WISE,
                (Shard(ranks[index % len(ranks)], 0, table.num_embeddings, 0, table.embedding_dim),),
            )
            for index, table in enumerate(problem.workload.tables)
        ]
        return estimate_step_ms(problem, ShardingPlan(2, tuple(placements)), local)

    assert on(0) == pytest.approx(on(1)) and on(0, 1) < on(0)
    faster = make_profile(slower(local.devices[0].lookups, 0.5), local.collectives)
    assert estimate_step_ms(problem, measured.plan, faster) < estimate_step_ms(problem, measured.plan, local)


def test_the_geometric_mean_is_below_the_mean_and_survives_a_lucky_hit() -> None:
    found = step_errors(np.array([1.0, 1.1, 0.6]), np.ones(3))
    assert found["geomean_error"] == pytest.approx((1e-4 * 0.1 * 0.4) ** (1 / 3))
    assert found["mean_error"] == pytest.approx(0.5 / 3) and found["median_error"] == pytest.approx(0.1)
    assert found["bias"] == pytest.approx(-0.3 / 3)


def test_no_scale_makes_a_single_error_vanish() -> None:
    estimated_ms, measured_ms = np.array([1.0, 2.0, 4.0]), np.array([2.0, 5.0, 7.0])
    scale = best_scale(estimated_ms, measured_ms)
    assert scale == pytest.approx((2.0 * 2.5 * 1.75) ** (1 / 3))
    assert step_errors(scale * estimated_ms, measured_ms)["geomean_error"] > 0.02


def test_held_out_configurations_are_no_others_and_know_the_cluster(tmp_path: Path) -> None:
    config = load_config(None, ["cluster.address=host:6379", f"run.dir={tmp_path}"])
    found = held_out_configs(config, 4, seed=0)
    assert [config_key(each) for each in found] == [config_key(each) for each in held_out_configs(config, 4, 0)]
    assert not {config_key(each) for each in found} & {config_key(each) for each in draw_configs(40, seed=0)}
    assert {(each.cluster.address, each.run.dir) for each in found} == {("host:6379", str(tmp_path))}


def test_impossible_figures_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        CostBenchmark(num_sets=0, num_steps=-1, seed=0, held_out=None, training=()).check()
    assert len(caught.value.faults) == 2


@pytest.mark.ray
@pytest.mark.slow
def test_real_workers_measure_every_set_twice(ray_head: Any, tmp_path: Path) -> None:
    keys = [f"cluster.address={ray_head.address}", f"run.dir={tmp_path}", "cluster.num_workers=2", "cluster.device=cpu"]
    config = load_config(None, [*keys, "profile.budget_s=2"])
    lines: list[str] = []
    found, path = measure_held_out(config, 4, 5, lines.append)
    assert path == tmp_path / "bench" / "held_out-4-5.json" and path.exists()
    (device,) = found.devices
    assert len(device.lookups) == 8 and len({each.lookups for each in device.lookups}) == 4
    assert all(each.forward.median_ms > 0 and each.canary_ms > 0 for each in device.lookups)
    assert len(found.collectives) == 2 and found.fingerprint["world_size"] == "2"


def local_path(config: RunConfig) -> Path:
    """Where the kept profile of one CPU rank of this machine is looked for."""
    facts = read_facts("local", "127.0.0.1", {"CPU": count_cores()})
    inventory = build_inventory([facts], DeviceType.CPU, config.cluster.num_workers, config.cluster.cpus_per_worker)
    return cache_path(config, take_fingerprint(config, inventory, describe_cluster(inventory, None).topology))


def test_the_command_reports_all_sections(
    local: Profile, held_out: Profile, model: ComputeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ["cluster.device=cpu", "cluster.num_workers=1", f"run.dir={tmp_path}"]
    keys.append(f"planner.cost_weights={tmp_path / 'cpu.npz'}")
    model.save(tmp_path / "cpu.npz")
    (tmp_path / "profiles").mkdir()
    keep(local, local_path(load_config(None, keys)))
    few = make_profile(make_lookups(20, seed=4, canary_ms=2.0), local.collectives)
    for name, profile in (("held_out.json", held_out), ("train.json", few)):
        keep(profile, tmp_path / name)
    words = ["bench", "cost", "--profile", str(tmp_path / "held_out.json"), "--train", str(tmp_path / "train.json")]
    assert main([*words, "--steps", "0", "--json", *keys]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"noise_floor", "compute", "comms", "step", "candidates_ms"} and found["step"] is None
    assert set(found["compute"]["ours"]) >= METRICS and found["noise_floor"] > 0
    assert "all_to_all" in found["comms"] and found["candidates_ms"] > 0
    rendered = list(render_cost(found))
    assert len(rendered) == 6 and str(rendered[-1]).startswith("4,096")
