"""Configurations that contradict themselves are refused with every problem at once."""

import re
from pathlib import Path

import pytest
import torch

from dlrm.data.config import CriteoConfig, DataConfig, DriftConfig, SyntheticConfig, TableConfig
from dlrm.data.factory import open_schema, open_stream
from dlrm.data.schema import DataSchema
from dlrm.errors import DataError
from tests.dlrm.data.helpers import numbered_rows


def problems(config: DataConfig) -> str:
    """The message that the configuration earns."""
    with pytest.raises(DataError) as caught:
        open_schema(config)
    assert caught.value.reason == "config"
    return str(caught.value)


def test_every_problem_is_named_at_once() -> None:
    message = problems(DataConfig(kind="synthetik", prefetch_batches=0, holdout_every=1, max_bad_rows=-1))
    assert "data.kind = 'synthetik': one of synthetic, criteo, table (did you mean 'synthetic'?)" in message
    assert "data.prefetch_batches = 0: it must be at least 1" in message
    assert "data.holdout_every = 1: it must be at least 2" in message
    assert "data.max_bad_rows = -1" in message


def test_criteo_problems() -> None:
    message = problems(DataConfig(kind="criteo", criteo=CriteoConfig(vocabulary="frequency", ragged="padd")))
    assert "data.path is not set" in message
    assert "data.criteo.vocabulary_path is not set" in message
    assert "(did you mean 'pad'?)" in message


def test_table_problems() -> None:
    table = TableConfig(dense=["a", "label"], categorical={"b": 1}, csv_lists=["bb"])
    message = problems(DataConfig(kind="table", path="x", table=table))
    assert "data.table.categorical.b = 1" in message
    assert "names column 'label' 2 times" in message
    assert "csv_lists names 'bb', which is not in table.categorical (did you mean 'b'?)" in message


def test_synthetic_problems() -> None:
    drift = [DriftConfig(step=1, tables=["table_77"], pooling_factor=-1.0), DriftConfig(tables=["table_1"])]
    message = problems(DataConfig(synthetic=SyntheticConfig(drift=drift)))
    assert "drift[0].tables names 'table_77', but there is no such table" in message
    assert "drift[0].pooling_factor = -1.0" in message
    assert "drift[1] changes nothing" in message
    assert "min_rows = 9 is above" in problems(DataConfig(synthetic=SyntheticConfig(min_rows=9, max_rows=8)))


def test_absent_and_empty_places_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError, match=re.escape(str(path))) as caught:
            open_schema(DataConfig(kind="table", path=str(path), table=TableConfig(categorical={"a": 2})))
        assert caught.value.reason == "missing_file"


def test_a_foreign_schema_is_refused() -> None:
    with pytest.raises(DataError, match=r"schema is not that of data\.synthetic"):
        open_stream(DataConfig(), DataSchema((), ()), "train", 8, 0, 1, seed=0)


def test_a_batch_moves_as_a_whole() -> None:
    batch = numbered_rows(0, 8).to_batch(("single", "ragged")).to(torch.device("meta"), non_blocking=True)
    devices = {batch.dense_features.device, batch.labels.device, batch.sparse_features.values().device}
    assert devices == {torch.device("meta")} and batch.batch_size == 8
