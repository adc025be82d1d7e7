"""Measured steps: drawn configurations, their file, and real measurements on two ranks."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from dlrm.step_columns import STEP_COLUMNS
from launcher.bench.step_configs import STRATEGIES, draw_configs
from launcher.bench.step_measurement import MeasurementFile, StepMeasurement, config_key
from launcher.bench.steps import describe, measure_steps
from launcher.preparation import prepare
from launcher.schema import RunConfig
from planner.check import check
from planner.cost.estimator import PHASES
from planner.profile import Timing

NUM_STEPS, NUM_WARMUP = 13, 10


@pytest.fixture(scope="module")
def configs() -> list[RunConfig]:
    return draw_configs(40, seed=3)


@pytest.fixture
def measurement(configs: list[RunConfig], repository: Path) -> StepMeasurement:
    """A plan that was made for a drawn configuration, with figures that nobody measured."""
    pair = repository / "configs" / "hardware" / "cpu_x2.yaml"
    config = next(config for config in configs if config.planner.constraints)
    plan = prepare(deepcopy(config), pair).planned.plan
    rows = tuple(tuple(float(10 * rank + column) for column in range(len(STEP_COLUMNS))) for rank in range(2))
    return StepMeasurement(config, plan, Timing(9.0, 1.0, 40), STEP_COLUMNS, rows, (1.0, 1.1), (1.2, 1.3))


def test_configurations_differ_and_stay_the_same_for_a_seed(configs: list[RunConfig]) -> None:
    assert draw_configs(5, seed=3) == configs[:5] != draw_configs(5, seed=4)
    assert len({config_key(config) for config in configs}) == len(configs)
    assert {config.model.arch for config in configs} == {"dlrm", "dlrm_dcn"}
    assert {config.planner.strategy for config in configs} == set(STRATEGIES)
    forced = {kind for config in configs for wish in config.planner.constraints for kind in wish.sharding_types or ()}
    assert forced == {"row_wise", "column_wise", "data_parallel"}
    sizes = [len(config.data.synthetic.tables) for config in configs]
    assert 3 <= min(sizes) < 6 and 18 < max(sizes) <= 24


def test_a_drawn_configuration_gets_the_plan_it_asks_for(measurement: StepMeasurement) -> None:
    types = {table.name: table.sharding_type for table in measurement.plan.tables}
    for wish in measurement.config.planner.constraints:
        assert [types[name] for name in wish.tables] == wish.sharding_types


def test_where_a_cluster_is_and_what_it_measured_do_not_name_a_configuration(configs: list[RunConfig]) -> None:
    elsewhere, other = deepcopy(configs[0]), deepcopy(configs[0])
    elsewhere.cluster.address, elsewhere.run.dir, elsewhere.profile.enabled = "host:6379", "/elsewhere", True
    other.data.synthetic.tables[0].zipf_alpha += 0.01
    assert config_key(elsewhere) == config_key(configs[0]) != config_key(other)


def test_a_line_gives_the_measurement_again(measurement: StepMeasurement) -> None:
    again = StepMeasurement.from_json(measurement.to_json())
    assert again == measurement and again.key == measurement.key
    assert again.phases_ms.shape == (len(PHASES), 2)
    assert again.phases_ms[PHASES.index("lookup_forward")].tolist() == [3.0, 13.0]
    assert describe(again).startswith(f"{len(again.plan.tables)} tables, batch {again.config.train.batch_size}")


def test_the_problem_is_built_again_from_a_line_alone(measurement: StepMeasurement, repository: Path) -> None:
    pair = repository / "configs" / "hardware" / "cpu_x2.yaml"
    prepared = prepare(deepcopy(measurement.config), pair)
    problem = StepMeasurement.from_json(measurement.to_json()).problem(prepared.topology)
    assert problem == prepared.planned.problem
    check(measurement.plan, problem)


def test_a_line_cut_short_is_measured_again(measurement: StepMeasurement, tmp_path: Path) -> None:
    file = MeasurementFile(tmp_path / "new" / "steps.jsonl")
    assert list(file.read()) == []
    file.append(measurement)
    file.path.write_text(file.path.read_text() + measurement.to_json()[:100])
    assert list(file.read()) == [measurement]
    file.append(measurement)
    assert list(file.read()) == [measurement] * 2


@pytest.mark.parametrize("line", ["{}", "torn", "columns"])
def test_a_foreign_line_is_named(measurement: StepMeasurement, tmp_path: Path, line: str) -> None:
    values = {**json.loads(measurement.to_json()), "columns": ["step_ms"]}
    file = MeasurementFile(tmp_path / "steps.jsonl")
    file.append(measurement)
    file.path.write_text(file.path.read_text() + (json.dumps(values) if line == "columns" else line) + "\n")
    with pytest.raises(ValueError, match=r"steps.jsonl:2 is no measurement"):
        list(file.read())


def small(config: RunConfig, address: str) -> RunConfig:
    """The same configuration with small tables and few steps."""
    config = deepcopy(config)
    config.cluster.address = address
    config.train.batch_size, config.train.steps, config.train.window_steps = 32, NUM_STEPS, NUM_STEPS
    for table in config.data.synthetic.tables:
        table.num_embeddings = min(table.num_embeddings, 2_000)
    return config


@pytest.mark.ray
@pytest.mark.slow
def test_steps_are_measured_once(configs: list[RunConfig], ray_head: Any, tmp_path: Path) -> None:
    free = next(config for config in configs if not config.planner.constraints)
    mixed = next(config for config in configs if len(config.planner.constraints) > 2)
    wanted, path = [small(each, ray_head.address) for each in (free, mixed)], tmp_path / "steps.jsonl"
    lines: list[str] = []
    (first,) = measure_steps(wanted[:1], path, lines.append)
    both = measure_steps(wanted, path, lines.append)
    assert both[0] == first and both == measure_steps(wanted, path, lines.append)
    assert len(path.read_text().splitlines()) == 2 and len(lines) == 4
    assert [each.config for each in both] == wanted
    for measured in both:
        assert measured.step.num_repeats == NUM_STEPS - NUM_WARMUP and measured.step.median_ms > 0
        assert (measured.phases_ms > 0).all() and measured.phases_ms.shape == (len(PHASES), 2)
        assert measured.phases_ms.sum(axis=0).max() < 3 * measured.step.median_ms
        assert min(*measured.canary_before_ms, *measured.canary_after_ms) > 0
