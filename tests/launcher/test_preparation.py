from pathlib import Path

import pytest

from dlrm.errors import DataError
from launcher.config import ConfigError, load_config
from launcher.preparation import prepare, resolve_paths
from launcher.schema import RunConfig

ROW = "\t".join(["1", *["2"] * 13, *["68fd1e64"] * 26]) + "\n"


def config(repository: Path, *overrides: str) -> RunConfig:
    return load_config(repository / "configs" / "quickstart.yaml", list(overrides))


def criteo(path: Path, runs: Path) -> RunConfig:
    keys = ["data.kind=criteo", f"data.path={path}", "data.criteo.vocabulary=frequency", f"run.dir={runs}"]
    return load_config(None, keys)


def cpu_pair(repository: Path) -> Path:
    return repository / "configs" / "hardware" / "cpu_x2.yaml"


def test_held_out_data_too_small_is_a_fault_before_anything_starts(repository: Path) -> None:
    with pytest.raises(DataError, match="num_eval_samples = 10 is less than one global batch"):
        prepare(config(repository, "data.synthetic.num_eval_samples=10"), cpu_pair(repository))


def test_adam_is_refused_where_fbgemm_has_no_kernel(repository: Path) -> None:
    adam = "optimizer.sparse.kind=adam"
    with pytest.raises(ConfigError, match="fused into FBGEMM's lookups on GPUs only"):
        prepare(config(repository, adam), cpu_pair(repository))
    h100 = repository / "configs" / "hardware" / "h100_80gb_x8.yaml"
    plan = prepare(config(repository, adam), h100).planned.plan
    assert "data_parallel" not in {table.sharding_type for table in plan.tables}


def test_a_default_vocabulary_follows_its_files(tmp_path: Path) -> None:
    log = tmp_path / "log.tsv"
    log.write_text(ROW * 30)
    first = resolve_paths(criteo(log, tmp_path)).data.criteo.vocabulary_path
    assert resolve_paths(criteo(log, tmp_path)).data.criteo.vocabulary_path == first
    log.write_text(ROW * 40)
    assert resolve_paths(criteo(log, tmp_path)).data.criteo.vocabulary_path != first


def test_constraints_reach_the_planner(repository: Path) -> None:
    wish = "planner.constraints=[{tables: ['table_1*'], ranks: [1], together: true}]"
    plan = prepare(config(repository, wish), cpu_pair(repository)).planned.plan
    placed = {table.name: [shard.rank for shard in table.shards] for table in plan.tables}
    assert placed["table_1"] == placed["table_10"] == placed["table_11"] == [1]


def test_the_plan_of_a_preset_needs_no_run(repository: Path, tmp_path: Path) -> None:
    prepared = prepare(config(repository, f"run.dir={tmp_path}/runs"), cpu_pair(repository))
    assert prepared.inventory is None and not (tmp_path / "runs").exists()
