from pathlib import Path

import pytest

from launcher.config import ConfigError, list_keys, load_config, render_config
from launcher.config_docs import render_reference
from launcher.schema import RunConfig


def faults(path: Path | None, overrides: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return caught.value.faults


def test_command_line_wins_over_file_wins_over_default(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("train: {batch_size: 64, window_steps: 3}\n")
    config = load_config(file, ["train.batch_size=32"])
    assert (config.train.batch_size, config.train.window_steps, config.train.epochs) == (32, 3, 1)


def test_every_fault_is_told_at_once_with_the_near_key(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("train: {batchsize: 64, epochs: many}\nmodle: {arch: dlrm}\n")
    found = faults(file, ["model.arch=dlmr", "train.window_steps=0", "steps=4", "oops"])
    text = "\n".join(found)
    assert len(found) == 7
    assert "there is no key train.batchsize; did you mean train.batch_size?" in text
    assert "did you mean model?" in text
    assert "train.epochs" in text and "many" in text
    assert "model.arch: 'dlmr' is not one of dlrm, dlrm_dcn; did you mean 'dlrm'?" in text
    assert "train.window_steps: 0 is below the least value, 1" in text
    assert "there is no key steps; did you mean train.steps?" in text
    assert "'oops' is neither an option nor key=value" in text


def test_a_missing_file_names_the_near_one(repository: Path) -> None:
    assert "quickstart.yaml?" in faults(repository / "configs" / "quickstrat.yaml", [])[0]


def test_broken_yaml_is_a_fault_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("train:\n  steps: [1\n")
    assert "line" in faults(file, [])[0]


def test_a_section_given_a_value_is_a_fault() -> None:
    assert "train should hold keys, found 5" in faults(None, ["train=5"])[0]


def test_lists_and_mappings_come_in_from_the_command_line() -> None:
    config = load_config(
        None, ["data.table.dense=[a,b]", "data.table.categorical.user=10", "data.table.categorical.item=20"]
    )
    assert config.data.table.dense == ["a", "b"]
    assert config.data.table.categorical == {"user": 10, "item": 20}


def test_lists_of_sections_are_typed(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("planner:\n  constraints:\n    - {tables: [a], ranks: [0], together: true}\n")
    constraint = load_config(file, []).planner.constraints[0]
    assert constraint.tables == ["a"] and constraint.ranks == [0] and constraint.together
    file.write_text("planner:\n  constraints:\n    - {table: [a]}\n")
    assert "table" in faults(file, [])[0]


def test_the_resolved_config_loads_to_the_same(tmp_path: Path) -> None:
    config = load_config(
        None, ["data.synthetic.drift=[{step: 3, tables: [table_0], pooling_factor: 2.0}]", "train.steps=7"]
    )
    file = tmp_path / "config.yaml"
    file.write_text(render_config(config))
    assert load_config(file, []) == config


@pytest.mark.parametrize("name", ["quickstart", "criteo_kaggle", "anime", "mlperf_dlrm_v2"])
def test_shipped_configs_load(repository: Path, name: str) -> None:
    load_config(repository / "configs" / f"{name}.yaml", ["data.path=somewhere"])


def test_files_that_are_not_named_are_a_fault(repository: Path) -> None:
    assert faults(repository / "configs" / "anime.yaml", [])[0].startswith("data.path is not set")


def test_limits_hold_inside_lists_and_for_numbers_that_are_none() -> None:
    found = "\n".join(
        faults(
            None,
            [
                "planner.constraints=[{tables: [a], sharding_types: [rowwise]}]",
                "model.dense_arch=[64, 0]",
                "model.over_arch=[]",
                "model.embedding_dim=6",
                "optimizer.sparse.learning_rate=nan",
                "train.steps=10000000000000000000000",
            ],
        )
    )
    assert "planner.constraints[0].sharding_types[0]: 'rowwise' is not one of" in found and "mean 'row_wise'?" in found
    assert "model.dense_arch[1]: 0 is below the least value, 1" in found
    assert "model.over_arch: the list needs 1 element or more" in found
    assert "model.embedding_dim: 6 is not a multiple of 4" in found
    assert "optimizer.sparse.learning_rate: nan is not a number that can be used" in found
    assert "train.steps: 10000000000000000000000 is not a number" in found


def test_what_values_mean_together_is_told_before_anything_starts() -> None:
    found = faults(None, ["planner.strategy=size_gredy", "run.name=a/../../b", "data.kind=table", "data.path=x"])
    text = "\n".join(found)
    assert "there is no strategy 'size_gredy'; did you mean 'size_greedy'?" in text
    assert "run.name: 'a/../../b' is not the name of a folder" in text and "data.table.categorical is empty" in text


def test_the_reference_is_the_one_that_is_committed(repository: Path) -> None:
    assert (repository / "configs" / "README.md").read_text() == render_reference()


def test_every_key_is_explained() -> None:
    assert [key for key, field in list_keys(RunConfig) if not field.metadata.get("help")] == []


def test_steps_to_profile_are_no_time_of_day(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("profiler: {steps: 50:52}\noptimizer: {dense: {learning_rate: 1e-3}}\n")
    for config in (load_config(None, ["profiler.steps=50:52"]), load_config(tmp_path / "c.yaml", [])):
        assert config.profiler.steps == "50:52" and config.optimizer.dense.learning_rate == 1e-3
    with pytest.raises(ConfigError, match=r"profiler.steps: found '52:50'"):
        load_config(None, ["profiler.steps=52:50"])


@pytest.mark.parametrize("section", ["telemetry", "imbalance"])
def test_resharding_without_what_it_looks_at_is_a_fault(section: str) -> None:
    with pytest.raises(ConfigError, match=rf"{section}\.enabled is false.*set {section}\.enabled=true"):
        load_config(None, ["resharding.enabled=true", f"{section}.enabled=false"])
    assert load_config(None, ["resharding.enabled=false", f"{section}.enabled=false"])
