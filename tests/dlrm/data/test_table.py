"""Parquet and CSV tables: columns, lists, ids, bad rows, and the real ratings."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlrm.data.bad_rows import BadRowLog
from dlrm.data.batches import Batch
from dlrm.data.config import DataConfig, TableConfig
from dlrm.data.factory import open_schema, open_stream
from dlrm.data.rows import Rows
from dlrm.data.schema import DataSchema, FeatureSpec
from dlrm.data.table import TableRows, open_table_reader
from dlrm.data.table_columns import to_numbers
from dlrm.data.table_ids import RawColumn
from dlrm.errors import DataError
from tests.dlrm.data.helpers import drain

TABLE = TableConfig(
    label="score",
    label_at_least=3,
    dense=["price"],
    dense_log=["views"],
    categorical={"user": 100, "kind": 50, "tags": 40},
    csv_lists=["tags"],
)


def sample() -> pa.Table:
    """Five rows with every sort of missing value."""
    return pa.table(
        {
            "user": pa.array([0, 98, 7, None, 99], pa.int64()),
            "score": [1.0, 3.0, 2.9, 5.0, 4.0],
            "price": pa.array([1.5, None, -2.0, 0.0, 4.0]),
            "views": pa.array([0, 9, None, -4, 99], pa.int32()),
            "kind": ["TV", "Movie", None, "TV", " TV "],
            "tags": pa.array([["a", "b"], [], ["b"], None, ["a", "c", "a"]]),
            "unused": ["x"] * 5,
        }
    )


def write_csv(table: pa.Table, path: Path) -> Path:
    """The table as CSV, lists joined by bars."""
    rows = [",".join(table.column_names)]
    for row in table.to_pylist():
        row["tags"] = "|".join(row["tags"] or [])
        rows.append(",".join("" if value is None else str(value) for value in row.values()))
    path.write_text("\n".join(rows) + "\n")
    return path


def read(path: Path, table: TableConfig = TABLE, limit: int = 0) -> tuple[Rows, BadRowLog]:
    """All good rows, and the log."""
    log = BadRowLog(limit)
    reader = open_table_reader(DataConfig(kind="table", table=table), str(path))
    return reader.encode(TableRows.concatenate(list(reader.read(log)))), log


@pytest.mark.parametrize("form", ["parquet", "csv", "csv.gz", "folder"])
def test_every_form_reads_the_same_rows(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form}"
    if form == "parquet":
        pq.write_table(sample(), path)
    elif form == "csv":
        write_csv(sample(), path)
    elif form == "csv.gz":
        with pa.CompressedOutputStream(str(path), "gzip") as file:
            file.write(write_csv(sample(), tmp_path / "plain").read_bytes())
    else:
        path = tmp_path / "parts"
        path.mkdir()
        pq.write_table(sample().slice(0, 2), path / "part-2.parquet")
        pq.write_table(sample().slice(2, 3), path / "part-10.parquet")
    rows, log = read(path)
    assert log.count == 0
    assert rows.labels.tolist() == [0, 1, 0, 1, 1]
    np.testing.assert_allclose(rows.dense[:, 0], [1.5, 0, -2, 0, 4])
    np.testing.assert_allclose(rows.dense[:, 1], np.log1p([0, 9, 0, 0, 99]), rtol=1e-6)
    user, kind, tags = rows.features
    assert user.values.tolist() == [1, 99, 8, 0, 1]
    assert kind.values[0] == kind.values[3] == kind.values[4] and kind.values[2] == 0
    assert kind.values[0] != kind.values[1]
    assert tags.lengths.tolist() == [2, 0, 1, 0, 3]
    a, b, c = tags.values[0], tags.values[1], tags.values[4]
    assert tags.values.tolist() == [a, b, b, a, c, a] and len({a, b, c, 0}) == 4
    # Fixed for ever: checkpoints rely on it.
    assert (int(kind.values[0]), int(a)) == (29, 9)


def test_pooling_factors_are_measured(tmp_path: Path) -> None:
    pq.write_table(sample(), tmp_path / "a.parquet")
    schema = open_schema(DataConfig(kind="table", path=str(tmp_path / "a.parquet"), table=TABLE))
    assert schema.dense_names == ("price", "views")
    assert [(f.name, f.num_embeddings, f.pooling_factor) for f in schema.features] == [
        ("user", 100, 1.0),
        ("kind", 50, 1.0),
        ("tags", 40, 6 / 5),
    ]


def test_an_absent_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    pq.write_table(sample(), tmp_path / "a.parquet")
    write_csv(sample(), tmp_path / "b.csv")
    table = TableConfig(label="scor", dense=["prices"], categorical={"user": 10})
    for name in ("a.parquet", "b.csv"):
        with pytest.raises(DataError) as caught:
            read(tmp_path / name, table)
        assert "'scor'; did you mean 'score'? and no column 'prices'; did you mean 'price'?" in str(caught.value)
        assert "its columns are: user, score, price, views, kind, tags, unused" in str(caught.value)
        assert caught.value.reason == "missing_column"


def test_bad_csv_rows_are_located(tmp_path: Path) -> None:
    lines = ["score,user,price", "1,5,1e3", "x,6,0", "", "2,7", "2,8,nan", "3,9,.5", ",1,1", "4,2,3,4"]
    path = tmp_path / "a.csv"
    path.write_text("\r\n".join(lines))
    table = TableConfig(label="score", label_at_least=2.5, dense=["price"], categorical={"user": 100})
    rows, log = read(path, table, limit=5)
    assert rows.features[0].values.tolist() == [6, 10] and rows.dense[:, 0].tolist() == [1000, 0.5]
    assert [row.line for row in log.examples] == [3, 5, 6, 8, 9]
    assert "b'x' is no label" in log.examples[0].why and "2 columns, the header has 3" in log.examples[1].why
    with pytest.raises(DataError, match=r"a.csv:9: .* is bad row number 5"):
        read(path, table, limit=4)


def test_without_a_threshold_only_zero_and_one_are_labels(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": [0, 1, 2, None], "user": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    rows, log = read(tmp_path / "a.parquet", TableConfig(categorical={"user": 9}), limit=2)
    assert rows.labels.tolist() == [0, 1] and [row.line for row in log.examples] == [3, 4]


def test_columns_of_the_wrong_type_are_errors(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": [1], "fraction": [0.5], "many": [[1]]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="'fraction' holds fractions"):
        read(tmp_path / "a.parquet", TableConfig(categorical={"fraction": 9}))
    with pytest.raises(DataError, match="'many' holds list"):
        read(tmp_path / "a.parquet", TableConfig(dense=["many"], categorical={"label": 9}))


def test_integers_with_missing_ones_may_be_floats(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": [1, 0, 1], "user": [3.0, float("nan"), None]}), tmp_path / "a.parquet")
    rows, _ = read(tmp_path / "a.parquet", TableConfig(categorical={"user": 9}))
    assert rows.features[0].values.tolist() == [4, 0, 0]


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"not at all")
    with pytest.raises(DataError, match=r"a.parquet cannot be read"):
        read(tmp_path / "a.parquet")


def test_large_csv_files_are_read_in_blocks(tmp_path: Path) -> None:
    count = 60_000
    table = pa.table(
        {"label": np.arange(count) % 2, "user": np.arange(count), "text": [f"a, {i}" for i in range(count)]}
    )
    pacsv.write_csv(table, tmp_path / "a.csv")
    config = DataConfig(kind="table", table=TableConfig(categorical={"user": count + 1, "text": 1000}))
    reader = open_table_reader(config, str(tmp_path / "a.csv"))
    chunks = list(reader.read(BadRowLog(0)))
    assert len(chunks) > 1
    ids = reader.encode(TableRows.concatenate(chunks)).features[0].values
    assert np.array_equal(ids, np.arange(count) + 1)


VALUES = st.one_of(st.none(), st.integers(-5, 2**63 - 1))


@given(
    rows=st.lists(st.lists(VALUES, max_size=4) | st.none(), min_size=1, max_size=12),
    kind=st.sampled_from([pa.int64(), pa.string(), pa.dictionary(pa.int32(), pa.string())]),
    data=st.data(),
)
def test_cut_permuted_and_joined_rows_encode_to_the_ids_of_the_whole(
    rows: list[list[int | None] | None], kind: pa.DataType, data: st.DataObject
) -> None:
    texts = kind != pa.int64()
    listed = [row and [str(value) if texts and value is not None else value for value in row] for row in rows]
    column = RawColumn.of(pa.array(listed, pa.list_(kind)), 50, "a")
    whole = column.encode()
    by_row = np.split(whole.values, np.cumsum(whole.lengths)[:-1])
    index = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=15)), np.intp)
    cut = data.draw(st.integers(0, len(index)))
    taken = column.take(index)
    joined = RawColumn.concatenate([taken.slice(0, cut), taken.slice(cut, len(index))]).encode()
    assert joined.lengths.tolist() == whole.lengths[index].tolist()
    assert joined.values.tolist() == [id for row in index for id in by_row[row].tolist()]


def test_files_of_one_folder_may_hold_integers_unsigned_ones_text_and_lists(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": [1, 0], "user": [7, None]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"label": [1], "user": pa.array([2**64 - 1], pa.uint64())}), tmp_path / "2.parquet")
    (tmp_path / "3.csv").write_text("label,user\n1,7\n0,some text\n0,\n")
    pq.write_table(pa.table({"label": [1], "user": pa.array([[7, 8]], pa.list_(pa.int16()))}), tmp_path / "4.parquet")
    table = TableConfig(categorical={"user": 100})
    apart = [read(path, table)[0].features[0] for path in sorted(tmp_path.iterdir())]
    together = read(tmp_path, table)[0].features[0]
    assert together.values.tolist() == [id for feature in apart for id in feature.values.tolist()]
    assert together.lengths.tolist() == [1] * 6 + [2]
    assert together.values[[0, 3, 6, 7]].tolist() == [8, 8, 8, 9] and together.values[2] == 1 + (2**64 - 1) % 99


def test_a_fraction_is_an_error_on_every_rank_whoever_would_encode_it(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": [1] * 8, "user": [1.0] * 7 + [1.5]}), tmp_path / "a.parquet")
    config = DataConfig(kind="table", path=str(tmp_path / "a.parquet"), table=TableConfig(categorical={"user": 9}))
    for rank in range(4):
        stream = open_stream(config, DataSchema((), (FeatureSpec("user", 9),)), "train", 1, rank, 4, seed=0)
        with pytest.raises(DataError, match="'user' holds fractions"), stream:
            next(stream)


ANIME = TableConfig(
    dense_log=["episodes", "members"], categorical={"user_id": 5002, "item_id": 7392, "type": 16, "genre": 128}
)


def anime_config(shared_data: Path, shuffle_rows: int) -> DataConfig:
    """The real ratings."""
    path = shared_data / "anime" / "anime_ratings_joined.parquet"
    return DataConfig(kind="table", path=str(path), table=ANIME, shuffle_rows=shuffle_rows)


def linear_model(batch: Batch, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of a logistic regression: one weight per id, averaged over a list."""
    logits = weights["bias"] + batch.dense_features @ weights["dense"]
    for name, feature in batch.sparse_features.to_dict().items():
        bag = torch.repeat_interleave(torch.arange(len(batch.labels)), feature.lengths())
        sums = torch.zeros(len(batch.labels)).index_add(0, bag, weights[name][feature.values()])
        logits = logits + sums / feature.lengths().clamp(min=1)
    return logits


def auc(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Area under the ROC curve by the rank sum."""
    ranks = scores.argsort().argsort().double() + 1
    positives = labels.sum().double()
    wins = ranks[labels > 0].sum() - positives * (positives + 1) / 2
    return float(wins / (positives * (len(labels) - positives)))


def test_real_ratings_are_learnt_by_a_logistic_regression(shared_data: Path) -> None:
    config = anime_config(shared_data, shuffle_rows=150_000)
    schema = open_schema(config)
    weights = {feature.name: torch.zeros(feature.num_embeddings, requires_grad=True) for feature in schema.features}
    weights |= {"bias": torch.zeros(1, requires_grad=True), "dense": torch.zeros(schema.num_dense, requires_grad=True)}
    optimizer = torch.optim.Adam(weights.values(), lr=0.03)
    for batch in drain(open_stream(config, schema, "train", 2048, 0, 1, seed=0, num_epochs=1)):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(linear_model(batch, weights), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out = drain(open_stream(config, schema, "eval", 4096, 0, 1, seed=0, num_epochs=1))
    assert sum(len(batch.labels) for batch in held_out) == 419_943 // 10
    scores = torch.cat([linear_model(batch, weights).detach() for batch in held_out])
    assert auc(scores, torch.cat([batch.labels for batch in held_out])) > 0.79


def test_the_shuffle_window_breaks_the_order_of_users(shared_data: Path) -> None:
    users = {}
    for shuffle_rows in (0, 100_000):
        config = anime_config(shared_data, shuffle_rows)
        with open_stream(config, open_schema(config), "train", 1024, 0, 1, seed=0, num_epochs=1) as stream:
            batch = next(stream)
        users[shuffle_rows] = len(set(batch.sparse_features["user_id"].values().tolist()))
        assert batch.sparse_features["genre"].lengths().float().mean() > 3
    assert users[0] < 30 and users[100_000] > 300


def test_a_number_too_large_for_a_batch_makes_a_bad_row() -> None:
    numbers = to_numbers(pa.array(["1.5", "1e300", "-1e39", "3.4e38"]), "x")
    assert numbers.is_bad.tolist() == [False, True, True, False]
