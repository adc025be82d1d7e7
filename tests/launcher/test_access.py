"""Access statistics on their way into a plan: counted once, kept, counted anew when anything changed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dlrm.errors import DataError
from launcher.comparison import compare_strategies
from launcher.config import load_config
from launcher.preparation import Prepared, prepare
from launcher.run_dir import RunDir
from launcher.schema import RunConfig
from planner.access import AccessStatistics

NUM_LINES = 900


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Criteo rows: the first category has 7 values, the last one is another in every row."""
    path = tmp_path / "log.tsv"
    path.write_text(lines(7))
    return path


def lines(num_values: int) -> str:
    rows = (["1", *["2"] * 13, f"{i % num_values:08x}", *["68fd1e64"] * 24, f"{i:08x}"] for i in range(NUM_LINES))
    return "".join("\t".join(row) + "\n" for row in rows)


def criteo(path: Path, *overrides: str) -> RunConfig:
    keys = ["data.kind=criteo", f"data.path={path}", f"run.dir={path.parent}/runs", "train.batch_size=32"]
    return load_config(None, [*keys, *overrides])


def cpu_pair(repository: Path) -> Path:
    return repository / "configs" / "hardware" / "cpu_x2.yaml"


def access_of(prepared: Prepared, table: str) -> AccessStatistics:
    access = prepared.planned.problem.tables[table].access
    assert access is not None
    return access


def test_statistics_are_counted_once_and_reach_plan_job_and_user(repository: Path, log: Path) -> None:
    first = prepare(criteo(log), cpu_pair(repository))
    assert any(note.startswith("access statistics of 12 batches of 64 samples, counted in") for note in first.notes)
    assert access_of(first, "cat_0").distinct_rows == 7
    assert access_of(first, "cat_25").distinct_rows > 63
    assert first.job(RunDir(log.parent)).tables == first.planned.problem.workload.tables
    again = prepare(criteo(log), cpu_pair(repository))
    assert "access statistics of 12 batches of 64 samples, cached" in again.notes
    assert again.task.tables == first.task.tables


@pytest.mark.parametrize("override", ["train.batch_size=64", "data.access.num_samples=128", "data.holdout_every=5"])
def test_other_settings_are_counted_anew(repository: Path, log: Path, override: str) -> None:
    prepare(criteo(log), cpu_pair(repository))
    assert "counted" in prepare(criteo(log, override), cpu_pair(repository)).notes[-1]


def test_other_data_and_broken_files_are_counted_anew(repository: Path, log: Path) -> None:
    prepare(criteo(log), cpu_pair(repository))
    log.write_text(lines(9))
    assert access_of(prepare(criteo(log), cpu_pair(repository)), "cat_0").distinct_rows == 9
    kept = list((log.parent / "runs" / "access").iterdir())
    assert len(kept) == 2 and all(path.suffix == ".json" for path in kept)
    for path in kept:
        path.write_text(json.dumps({"tables": {"cat_0": {}}}))
    assert "counted" in prepare(criteo(log), cpu_pair(repository)).notes[-1]


def test_without_a_sample_ids_are_uniform_and_that_is_said(repository: Path, log: Path) -> None:
    prepared = prepare(criteo(log, "data.access.num_samples=0"), cpu_pair(repository))
    assert prepared.planned.problem.tables["cat_0"].access is None
    assert any("uniform" in note for note in prepared.notes)
    declared = "data.access.declared=[{tables: [cat_0], pooling_factor: 3, zipf_alpha: 1.2}]"
    prepared = prepare(criteo(log, "data.access.num_samples=0", declared), cpu_pair(repository))
    assert prepared.planned.problem.tables["cat_0"].pooling_factor == 3
    assert access_of(prepared, "cat_0").distinct_rows < 3 * 64


def test_a_declaration_of_no_table_is_a_fault_before_anything_is_read(repository: Path, log: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'cat_1'"):
        prepare(criteo(log, "data.access.declared=[{tables: [cta_1], zipf_alpha: 1}]"), cpu_pair(repository))
    assert not (log.parent / "runs").exists()


def test_compare_ranks_strategies_under_the_costs_of_plan(repository: Path, log: Path) -> None:
    planned = prepare(criteo(log), cpu_pair(repository)).planned
    outcomes = compare_strategies(criteo(log), cpu_pair(repository))
    found = {outcome.strategy: outcome.planned for outcome in outcomes}[planned.strategy]
    assert found is not None and found.cost.step_ms == planned.cost.step_ms


def test_counting_loads_no_torch(repository: Path, log: Path) -> None:
    words = ["plan", "--topology", str(cpu_pair(repository)), "data.kind=criteo", f"data.path={log}"]
    words += [f"run.dir={log.parent}/runs", "--json"]
    code = (
        f"import sys; from launcher.cli import main; code = main({words!r}); sys.exit(code or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=True, capture_output=True)
    assert list((log.parent / "runs" / "access").iterdir())


def test_the_skew_of_synthetic_data_is_known(repository: Path) -> None:
    config = load_config(repository / "configs" / "quickstart.yaml", [])
    prepared = prepare(config, cpu_pair(repository))
    arrays = prepared.planned.problem.arrays
    assert all(table.access for table in prepared.task.tables)
    ids = arrays.samples * arrays.ids_per_sample
    uniform = arrays.num_rows * -(((1 - 1 / arrays.num_rows) ** ids) - 1)
    assert (arrays.distinct_rows <= uniform * (1 + 1e-9)).all()
    assert arrays.distinct_rows.sum() < 0.8 * uniform.sum()
