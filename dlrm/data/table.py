"""Parquet and CSV tables with declared label, dense and categorical columns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dlrm.data.bad_rows import BadRow, BadRowLog
from dlrm.data.config import DataConfig, TableConfig
from dlrm.data.file_source import RankShare, Split, read_head
from dlrm.data.files import list_files
from dlrm.data.rows import Rows
from dlrm.data.schema import DataSchema, FeatureSpec
from dlrm.data.table_columns import Numbers, to_numbers
from dlrm.data.table_files import SUFFIXES, TableChunk, check_columns, count_parquet_rows, read_chunks
from dlrm.data.table_ids import RawColumn, split_lists


@dataclass(frozen=True)
class TableRows:
    """N good rows.

    Attributes:
        labels: float32 [N], 0 or 1.
        dense: float32 [N, D].
        columns: the categorical columns, in the order of the configuration.
    """

    labels: npt.NDArray[np.float32]
    dense: npt.NDArray[np.float32]
    columns: tuple[RawColumn, ...]

    def __len__(self) -> int:
        """N."""
        return len(self.labels)

    def slice(self, start: int, stop: int) -> "TableRows":
        """Rows `[start, stop)`, as views."""
        columns = tuple(column.slice(start, stop) for column in self.columns)
        return TableRows(self.labels[start:stop], self.dense[start:stop], columns)

    def take(self, index: npt.NDArray[np.intp]) -> "TableRows":
        """The rows that `index` names, in its order."""
        return TableRows(self.labels[index], self.dense[index], tuple(column.take(index) for column in self.columns))

    @classmethod
    def concatenate(cls, parts: Sequence["TableRows"]) -> "TableRows":
        """The rows of all parts, in order."""
        columns = zip(*(part.columns for part in parts), strict=True)
        return cls(
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.dense for part in parts]),
            tuple(RawColumn.concatenate(column) for column in columns),
        )


@dataclass(frozen=True)
class TableReader:
    """Reads the declared columns of Parquet and CSV files."""

    files: list[Path]
    config: TableConfig

    @property
    def columns(self) -> list[str]:
        """The declared columns."""
        return list(dict.fromkeys([self.config.label, *dense_names(self.config), *self.config.categorical]))

    def read(self, bad_rows: BadRowLog) -> Iterator[TableRows]:
        """One pass over the good rows; bad ones lack a label of 0 or 1, or have a dense value that is no number."""
        for file in self.files:
            for chunk in read_chunks(file, self.columns):
                yield _to_rows(chunk, self.config, bad_rows)

    def encode(self, rows: TableRows) -> Rows:
        """The rows with ids."""
        return Rows(rows.dense, rows.labels, tuple(column.encode() for column in rows.columns))

    def check_columns(self) -> None:
        """Raise where a footer or header shows that a file lacks a declared column, or is no table."""
        for file in self.files:
            check_columns(file, self.columns)

    def count_rows(self) -> int | None:
        """The rows, good and bad, that footers tell of; None where a file is a CSV."""
        counts = [count_parquet_rows(file) for file in self.files]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None


def dense_names(config: TableConfig) -> tuple[str, ...]:
    """The dense columns: those taken as they are, then those in logarithms."""
    return (*config.dense, *config.dense_log)


def open_table_reader(config: DataConfig, path: str | None) -> TableReader:
    """The reader of the files at `path`."""
    return TableReader(list_files(path, SUFFIXES), config.table)


def describe_table(config: DataConfig) -> DataSchema:
    """The schema, with pooling factors measured on the first chunk that has rows; looks at the files' heads alone.

    Raises:
        DataError: what reading raises; `too_short` without any row to train on, or in `eval_path`.
    """
    if config.eval_path is not None:
        _read_head(config, config.eval_path)
    head = _read_head(config, config.path)
    features = tuple(
        FeatureSpec(name, column.num_embeddings, pooling_factor=len(column.values) / len(head))
        for name, column in zip(config.table.categorical, head.columns, strict=True)
    )
    return DataSchema(dense_names(config.table), features)


def find_table_shortage(config: DataConfig, split: Split, share: RankShare) -> str | None:
    """What to say where footers tell of too few rows for a batch, even if none is bad; None where they do not."""
    is_apart = config.eval_path is not None
    path = config.eval_path if is_apart and split is Split.EVAL else config.path
    num_rows = open_table_reader(config, path).count_rows()
    if num_rows is None:
        return None
    num_held_out = 0 if is_apart else num_rows // config.holdout_every
    num_split_rows = num_held_out if split is Split.EVAL and not is_apart else num_rows - num_held_out
    needed = share.least_rows(split)
    if num_split_rows >= needed:
        return None
    return (
        f"{path} has {num_rows} rows, of which at most {num_split_rows} belong to {split}, a batch needs {needed} "
        f"({share.world_size} ranks x batch size {share.batch_size}): use a smaller batch size or more data."
    )


def _read_head(config: DataConfig, path: str | None) -> TableRows:
    """The first chunk that has rows, after a look at the columns of every file."""
    reader = open_table_reader(config, path)
    reader.check_columns()
    return read_head(reader, config.max_bad_rows, str(path))


def _to_rows(chunk: TableChunk, config: TableConfig, bad_rows: BadRowLog) -> TableRows:
    """The good rows of a chunk."""
    label = to_numbers(chunk.columns[config.label], config.label)
    labels, is_bad_label = _labels(label, config.label_at_least)
    names = dense_names(config)
    dense = [to_numbers(chunk.columns[name], name) for name in names]
    is_bad = [is_bad_label, *(numbers.is_bad for numbers in dense)]
    is_good = _log_bad(chunk, (config.label, *names), is_bad, bad_rows)
    rows = TableRows(labels, _dense(dense, len(config.dense), len(labels)), _raw_columns(chunk, config))
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


def _raw_columns(chunk: TableChunk, config: TableConfig) -> tuple[RawColumn, ...]:
    """The categorical columns, in the order of the configuration."""
    columns = []
    for name, num_embeddings in config.categorical.items():
        column = chunk.columns[name]
        if name in config.csv_lists:
            column = split_lists(column, config.csv_list_separator)
        columns.append(RawColumn.of(column, num_embeddings, name))
    return tuple(columns)


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
