"""Configurations that contradict themselves are refused with every problem at once."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dlrm.data.check import config_problems
from dlrm.data.config import (
    CriteoConfig,
    DataConfig,
    DriftConfig,
    SyntheticConfig,
    SyntheticTableConfig,
    TableConfig,
)
from dlrm.data.factory import check_size, open_schema, open_stream
from dlrm.data.schema import DataSchema
from dlrm.errors import DataError
from dlrm.options import limit_faults
from tests.dlrm.data.helpers import numbered_rows


def problems(config: DataConfig) -> str:
    """The message that the configuration earns."""
    with pytest.raises(DataError) as caught:
        open_schema(config)
    assert caught.value.reason == "config"
    return str(caught.value)


def test_every_problem_is_named_at_once() -> None:
    message = problems(DataConfig(kind="synthetik", prefetch_batches=0, holdout_every=1, max_bad_rows=-1))
    assert "data.kind: 'synthetik' is not one of synthetic, criteo, table; did you mean 'synthetic'?" in message
    assert "data.prefetch_batches: 0 is below the least value, 1" in message
    assert "data.holdout_every: 1 is below the least value, 2" in message
    assert "data.max_bad_rows: -1" in message


def test_criteo_problems() -> None:
    message = problems(DataConfig(kind="criteo", criteo=CriteoConfig(vocabulary="frequenzy", ragged="padd")))
    assert "data.path is not set" in message
    assert "; did you mean 'frequency'?" in message and "; did you mean 'pad'?" in message


def test_a_vocabulary_needs_a_place(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("\t".join(["0"] + [""] * 39) + "\n")
    criteo = CriteoConfig(vocabulary="frequency")
    assert "vocabulary_path, a .npz file" in problems(
        DataConfig(kind="criteo", path=str(tmp_path / "a.tsv"), criteo=criteo)
    )


def test_table_problems() -> None:
    table = TableConfig(dense=["a", "label"], categorical={"b": 1}, csv_lists=["bb"])
    message = problems(DataConfig(kind="table", path="x", table=table))
    assert "data.table.categorical.b = 1" in message
    assert "names column 'label' 2 times" in message
    assert "csv_lists names 'bb', which is not in table.categorical; did you mean 'b'?" in message


def test_synthetic_problems() -> None:
    drift = [DriftConfig(step=1, tables=["table_77"], pooling_factor=-1.0), DriftConfig(tables=["table_1"])]
    message = problems(DataConfig(synthetic=SyntheticConfig(drift=drift)))
    assert "drift[0].tables names 'table_77', but there is no such table" in message
    assert "drift[0].pooling_factor = -1.0" in message
    assert "drift[1] changes nothing" in message
    assert "min_rows = 9 is above" in problems(DataConfig(synthetic=SyntheticConfig(min_rows=9, max_rows=8)))


def test_limits_and_contradictions_come_as_two_lists_of_keys() -> None:
    config = DataConfig(kind="table", shuffle_rows=-1, synthetic=SyntheticConfig(min_rows=0))
    assert list(limit_faults(config, "data.")) == [
        "data.shuffle_rows: -1 is below the least value, 0",
        "data.synthetic.min_rows: 0 is below the least value, 1",
    ]
    contradictions = config_problems(config)
    assert [problem.split()[0] for problem in contradictions] == ["data.path", "data.table.categorical"]
    assert [*limit_faults(DataConfig()), *config_problems(DataConfig())] == []
    # Limits that are broken must not break the search for contradictions.
    for synthetic in (SyntheticConfig(num_tables=-1, seed=-1), SyntheticConfig(min_rows=-1, min_zipf_alpha=-1.0)):
        config_problems(DataConfig(synthetic=synthetic))


def test_limits_hold_for_listed_tables_and_changes() -> None:
    tables = [SyntheticTableConfig("a", embedding_dim=0), SyntheticTableConfig("a")]
    drift = [DriftConfig(step=-1, tables=["a"], hot_rows_shift=0.5)]
    config = DataConfig(synthetic=SyntheticConfig(tables=tables, drift=drift, embedding_dims=[8, 0]))
    assert list(limit_faults(config, "data.")) == [
        "data.synthetic.embedding_dims[1]: 0 is below the least value, 1",
        "data.synthetic.tables[0].embedding_dim: 0 is below the least value, 1",
        "data.synthetic.drift[0].step: -1 is below the least value, 0",
    ]
    assert config_problems(config) == ["data.synthetic.tables has 2 tables named 'a': names are unique"]
    config = DataConfig(synthetic=SyntheticConfig(embedding_dims=[]))
    assert list(limit_faults(config, "data.")) == ["data.synthetic.embedding_dims: the list needs 1 element or more"]
    assert config_problems(config) == []


@pytest.mark.parametrize("kind", ["criteo", "table"])
def test_evaluation_files_are_looked_at_before_training(tmp_path: Path, kind: str) -> None:
    good, bad = tmp_path / "train.csv", tmp_path / "eval.csv"
    good.write_text("\t".join(["0"] + [""] * 39) + "\n" if kind == "criteo" else "label,a\n1,2\n")
    config = DataConfig(kind=kind, path=str(good), eval_path=str(bad), table=TableConfig(categorical={"a": 9}))
    with pytest.raises(DataError, match=r"eval\.csv is not on this machine") as caught:
        open_schema(config)
    assert caught.value.reason == "missing_file"
    bad.write_text("other,columns\n1,2\n")
    with pytest.raises(DataError, match=r"eval\.csv") as caught:
        open_schema(config)
    assert caught.value.reason == ("ragged" if kind == "criteo" else "missing_column")
    bad.write_text("")
    with pytest.raises(DataError, match=r"eval\.csv holds no row"):
        open_schema(config)
    bad.write_bytes(good.read_bytes())
    open_schema(config)


def test_every_file_of_a_folder_has_the_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("label,a\n1,2\n")
    pq.write_table(pa.table({"label": [1], "b": [2]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet has no column 'a'"):
        open_schema(DataConfig(kind="table", path=str(tmp_path), table=TableConfig(categorical={"a": 9})))


def test_synthetic_samples_below_a_global_batch_are_known_at_once() -> None:
    config = DataConfig(synthetic=SyntheticConfig(num_samples=1000, num_eval_samples=63))
    check_size(config, batch_size=15, world_size=4)
    with pytest.raises(DataError, match=r"num_eval_samples = 63 is less than one global batch of 64 ") as caught:
        check_size(config, batch_size=16, world_size=4)
    assert caught.value.reason == "too_short" and "num_samples = 1000" not in str(caught.value)
    with pytest.raises(DataError, match=r"num_samples = 1000 .*\n.*num_eval_samples = 63 "):
        check_size(config, batch_size=1024, world_size=1)


def test_parquet_footers_tell_of_too_few_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": [0, 1] * 20, "a": range(40)}), tmp_path / "a.parquet")
    config = DataConfig(kind="table", path=str(tmp_path / "a.parquet"), table=TableConfig(categorical={"a": 9}))
    check_size(config, batch_size=9, world_size=4)
    with pytest.raises(DataError, match=r"has 40 rows, of which at most 36 belong to train, a batch needs 40"):
        check_size(config, batch_size=10, world_size=4)
    with pytest.raises(DataError, match=r"at most 4 belong to eval, a batch needs 5"):
        check_size(config, batch_size=1, world_size=5)
    config.eval_path = config.path
    check_size(config, batch_size=10, world_size=4)
    (tmp_path / "b.csv").write_text("label,a\n1,2\n")
    check_size(DataConfig(kind="table", path=str(tmp_path), table=config.table), batch_size=10**6, world_size=1)


def test_absent_and_empty_places_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError, match=re.escape(str(path))) as caught:
            open_schema(DataConfig(kind="table", path=str(path), table=TableConfig(categorical={"a": 2})))
        assert caught.value.reason == "missing_file"


def test_a_foreign_schema_is_refused() -> None:
    with pytest.raises(DataError, match=r"schema is not that of data\.synthetic"):
        open_stream(DataConfig(), DataSchema((), ()), "train", 8, 0, 1, seed=0)


def test_a_batch_moves_as_a_whole() -> None:
    batch = numbered_rows(np.arange(8)).to_batch(("single", "ragged")).to(torch.device("meta"), non_blocking=True)
    devices = {batch.dense_features.device, batch.labels.device, batch.sparse_features.values().device}
    assert devices == {torch.device("meta")} and len(batch.labels) == 8
