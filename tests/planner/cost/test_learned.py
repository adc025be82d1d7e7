"""The estimator of a measured cluster, on profiles whose laws are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planner.cost.dense import DenseModel, fit_dense
from planner.cost.learned import LearnedLookups, learn_compute, learn_estimator, lookup_arrays, measured_kernels
from planner.errors import PlanningError
from planner.problem import PlanningProblem
from planner.profile import DenseMeasurement, Profile, Timing
from planner.search.bound import lower_bound_ms
from planner.search.registry import SearchSettings, find_plan
from planner.sharding import ShardingType
from planner.shards import whole_tables
from planner.tables import OptimizerKind, TableSpec, Workload
from tests.launcher.made_profiles import make_collectives, make_lookups, make_profile, slower

TABLES = tuple(
    TableSpec(f"table_{index}", 1000 * (index + 1), 16 * (1 + index % 4), (f"feature_{index}",), 1.0 + index)
    for index in range(8)
)
WORKLOAD = Workload(TABLES, 512, OptimizerKind.ROWWISE_ADAGRAD, dense_parameters=5000, dense_layers=6)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return make_profile(make_lookups(200, seed=3), make_collectives(40, seed=4))


@pytest.fixture(scope="module")
def problem(profile: Profile) -> PlanningProblem:
    return PlanningProblem(replace(WORKLOAD, dense_activations=400.0), profile.topology)


def test_plans_are_found_checked_and_bounded(profile: Profile, problem: PlanningProblem) -> None:
    estimator = learn_estimator(profile.topology, profile)
    for strategy in ("longest_processing_time", "size_greedy"):
        found = find_plan(problem, strategy, SearchSettings(estimator))
        assert 0 < found.lower_bound_ms <= found.cost.step_ms
    assert lower_bound_ms(problem, estimator) > 0


def test_a_device_that_is_slower_throughout_looks_up_slower(profile: Profile, problem: PlanningProblem) -> None:
    (device,) = profile.devices
    canary = replace(device.lookup_canary, median_ms=3 * device.lookup_canary.median_ms)
    slow_device = replace(device, lookups=slower(device.lookups, 3.0), lookup_canary=canary)
    half_speed = replace(profile, devices=(slow_device,))
    plan = find_plan(problem, "size_greedy").plan
    fast, slow = (
        measured_kernels(each.topology, each, learn_compute(each)).estimate(problem, plan)
        for each in (profile, half_speed)
    )
    assert slow.lookup_ms == pytest.approx(3 * fast.lookup_ms, rel=1e-3)
    assert slow.phase("dense_forward") == pytest.approx(fast.phase("dense_forward"))


def test_a_profile_of_other_devices_is_refused(profile: Profile) -> None:
    topology = replace(
        profile.topology, devices=tuple(replace(device, kind="other") for device in profile.topology.devices)
    )
    with pytest.raises(PlanningError, match="no device kind other, only cpu_core") as caught:
        learn_estimator(topology, profile)
    assert caught.value.reason == "profile"


def test_too_few_sets_without_shipped_weights_are_refused(tmp_path: Path) -> None:
    gpus = make_profile(make_lookups(20, seed=0), hardware=Path("configs/hardware/h100_80gb_x8.yaml"))
    with pytest.raises(PlanningError, match="20 sets, 150 are needed"):
        learn_compute(gpus)


def test_shards_become_lookups(profile: Profile, problem: PlanningProblem) -> None:
    whole = lookup_arrays(problem, whole_tables(problem, ShardingType.TABLE_WISE))
    copies = lookup_arrays(problem, whole_tables(problem, ShardingType.DATA_PARALLEL))
    assert (whole.samples == 1024).all() and (copies.samples == 512).all()
    assert (copies.distinct_rows < whole.distinct_rows).all()
    assert whole.ids_per_sample.tolist() == [table.pooling_factor for table in TABLES]
    half = whole_tables(problem, ShardingType.ROW_WISE)
    half = lookup_arrays(problem, replace(half, num_rows=half.num_rows / 2))
    assert half.distinct_rows == pytest.approx(whole.distinct_rows / 2)
    assert half.ids_per_sample == pytest.approx(whole.ids_per_sample / 2)


def test_a_second_kernel_costs_a_base(profile: Profile, problem: PlanningProblem) -> None:
    model = learn_compute(profile)
    lookups = LearnedLookups(model, np.array([2.0, 2.0]))
    loads = lookups.shard_loads(problem, whole_tables(problem, ShardingType.TABLE_WISE)).sum(axis=0)
    both = np.stack([loads, loads])
    one, two = (lookups.times_ms(problem, both, np.full(2, count), np.arange(2)) for count in (1, 2))
    assert (two - one)[:, 0] == pytest.approx(2.0 * model.base)


def test_dense_layers_of_a_known_law() -> None:
    measured = [
        DenseMeasurement(samples, sizes, Timing(time := 1e-6 * samples * sizes[0] * sizes[1] + 0.1, 0, 9),
                         Timing(2 * time, 0, 9), 2.0)
        for samples in (64, 256, 1024)
        for sizes in ((16, 32), (256, 512), (1024, 8))
    ]  # fmt: skip
    cost = fit_dense(measured)
    workload = replace(WORKLOAD, dense_layers=1, dense_flops_per_sample=2.0 * 128 * 128, dense_activations=256.0)
    workload = replace(workload, dense_parameters=128 * 128)
    problem = PlanningProblem(workload, make_profile(make_lookups(1, 0)).topology)
    expected = 1e-6 * 512 * 128 * 128 + 0.1
    times = DenseModel(cost, np.array([2.0])).times_ms(problem)
    assert times[0] == pytest.approx(expected, rel=0.1) and times[1] == pytest.approx(2 * expected, rel=0.1)
