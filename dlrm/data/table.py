"""Parquet and CSV tables with declared label, dense and categorical columns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dlrm.data.bad_rows import BadRow, BadRowLog
from dlrm.data.config import DataConfig, TableConfig
from dlrm.data.files import list_files
from dlrm.data.rows import Ragged, Rows
from dlrm.data.schema import DataSchema, FeatureSpec
from dlrm.data.table_columns import Numbers, split_lists, to_ids, to_numbers
from dlrm.data.table_files import SUFFIXES, TableChunk, read_chunks
from dlrm.errors import DataError


@dataclass(frozen=True)
class TableReader:
    """Reads the declared columns of Parquet and CSV files."""

    files: list[Path]
    config: TableConfig

    def read(self, bad_rows: BadRowLog) -> Iterator[Rows]:
        """One pass over the good rows; bad ones lack a label of 0 or 1, or have a dense value that is no number."""
        columns = list(dict.fromkeys([self.config.label, *dense_names(self.config), *self.config.categorical]))
        for file in self.files:
            for chunk in read_chunks(file, columns):
                yield _to_rows(chunk, self.config, bad_rows)


def dense_names(config: TableConfig) -> tuple[str, ...]:
    """The dense columns: those taken as they are, then those in logarithms."""
    return (*config.dense, *config.dense_log)


def open_table_reader(config: DataConfig, path: str | None) -> TableReader:
    """The reader of the files at `path`."""
    return TableReader(list_files(path, SUFFIXES), config.table)


def describe_table(config: DataConfig) -> DataSchema:
    """The schema, with pooling factors measured on the first chunk that has rows.

    Raises:
        DataError: what reading raises; `too_short` without any row.
    """
    reader = open_table_reader(config, config.path)
    head = next((rows for rows in reader.read(BadRowLog(config.max_bad_rows)) if len(rows)), None)
    if head is None:
        raise DataError(f"{config.path} holds no row: there is nothing to train on.", "too_short")
    features = tuple(
        FeatureSpec(name, num_embeddings, pooling_factor=len(column.values) / len(head))
        for (name, num_embeddings), column in zip(config.table.categorical.items(), head.features, strict=True)
    )
    return DataSchema(dense_names(config.table), features)


def _to_rows(chunk: TableChunk, config: TableConfig, bad_rows: BadRowLog) -> Rows:
    """The good rows of a chunk."""
    label = to_numbers(chunk.columns[config.label], config.label)
    labels, is_bad_label = _labels(label, config.label_at_least)
    names = dense_names(config)
    dense = [to_numbers(chunk.columns[name], name) for name in names]
    is_bad = [is_bad_label, *(numbers.is_bad for numbers in dense)]
    is_good = _log_bad(chunk, (config.label, *names), is_bad, bad_rows)
    rows = Rows(_dense(dense, len(config.dense), len(labels)), labels, _features(chunk, config))
    return rows if is_good.all() else rows.take(np.flatnonzero(is_good))


def _labels(label: Numbers, at_least: float | None) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Labels [N], and whether each is missing or, without a threshold, something else than 0 or 1."""
    values = label.values
    is_bad = label.is_bad | np.isnan(values)
    if at_least is not None:
        return (values >= at_least).astype(np.float32), is_bad
    return values.astype(np.float32), is_bad | ((values != 0) & (values != 1))


def _dense(columns: Sequence[Numbers], num_plain: int, num_rows: int) -> npt.NDArray[np.float32]:
    """Dense values [N, D]; missing = 0; from column `num_plain` on log(1 + max(x, 0))."""
    dense = np.zeros((num_rows, len(columns)), np.float32)
    for i, column in enumerate(columns):
        # A bad row is dropped later; its value must not warn here.
        values = np.where(column.is_bad | np.isnan(column.values), 0.0, column.values)
        dense[:, i] = values if i < num_plain else np.log1p(np.maximum(values, 0))
    return dense


def _features(chunk: TableChunk, config: TableConfig) -> tuple[Ragged, ...]:
    """The categorical columns, in the order of the configuration."""
    features = []
    for name, num_embeddings in config.categorical.items():
        column = chunk.columns[name]
        if name in config.csv_lists:
            column = split_lists(column, config.csv_list_separator)
        features.append(to_ids(column, num_embeddings, name))
    return tuple(features)


def _log_bad(
    chunk: TableChunk, names: Sequence[str], is_bad: Sequence[npt.NDArray[np.bool_]], bad_rows: BadRowLog
) -> npt.NDArray[np.bool_]:
    """Log the chunk's bad rows in the order of the file; True for the good ones, [N]."""
    found = list(chunk.broken)
    bad = np.stack(is_bad, axis=1)
    is_row_bad = np.asarray(bad.any(axis=1), bool)
    for row in np.flatnonzero(is_row_bad):
        name = names[int(np.flatnonzero(bad[row])[0])]
        what = "no label" if name == names[0] else "no finite number"
        why = f"column {name!r}: {chunk.columns[name][int(row)].as_py()!r} is {what}"
        found.append(BadRow(chunk.path, int(chunk.lines[row]), why))
    bad_rows.add(sorted(found, key=lambda row: row.line))
    return ~is_row_bad
