"""Chunks of declared columns from Parquet and CSV files, in bounded memory, with the place of every row."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from dlrm.data.bad_rows import BadRow
from dlrm.data.files import LineBlock, read_line_blocks
from dlrm.errors import DataError
from planner.text import did_you_mean

SUFFIXES = (".parquet", ".csv", ".csv.gz")

# Rows of a Parquet chunk; a row group is decoded at most this far ahead.
CHUNK_ROWS = 65_536


@dataclass(frozen=True)
class TableChunk:
    """Some rows of one file.

    Attributes:
        path: the file.
        columns: the declared columns by name, each N values.
        lines: [N], line in the file (CSV) or row (Parquet), counted from 1.
        broken: rows that have no columns at all, by number.
    """

    path: str
    columns: dict[str, pa.Array]
    lines: npt.NDArray[np.int64]
    broken: list[BadRow] = field(default_factory=list)


def read_chunks(path: Path, columns: Sequence[str]) -> Iterator[TableChunk]:
    """The declared columns of a file, chunk by chunk.

    Raises:
        DataError: `missing_column`, with the columns there are; `unreadable` where the file is not what its name says.
    """
    with _named(path):
        yield from _read_parquet(path, columns) if _is_parquet(path) else _read_csv(path, columns)


def check_columns(path: Path, columns: Sequence[str]) -> None:
    """Raise for what the file's footer or first line already shows to be wrong.

    Raises:
        DataError: `missing_column`; `unreadable` where the file is not what its name says.
    """
    with _named(path):
        if _is_parquet(path):
            _check_columns(path, pq.read_schema(path).names, columns)
        elif (first := next(read_line_blocks(path), None)) is not None:
            _check_columns(path, _header(first)[0], columns)


def count_parquet_rows(path: Path) -> int | None:
    """The rows that a Parquet file's footer tells of; None for a CSV, which would have to be read."""
    with _named(path):
        return pq.read_metadata(path).num_rows if _is_parquet(path) else None


def _is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet"


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What goes wrong within names the file."""
    try:
        yield
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "unreadable") from error


def _check_columns(path: Path, found: Sequence[str], columns: Sequence[str]) -> None:
    """Raise for every declared column that the file lacks, at once."""
    missing = [f"{name!r}{did_you_mean(name, found)}" for name in columns if name not in found]
    if missing:
        raise DataError(
            f"{path} has no column {' and no column '.join(missing)}; its columns are: {', '.join(found)}. "
            "Correct data.table.",
            "missing_column",
        )


def _read_parquet(path: Path, columns: Sequence[str]) -> Iterator[TableChunk]:
    """Batches of rows."""
    with pq.ParquetFile(path) as file:
        _check_columns(path, file.schema_arrow.names, columns)
        first = 1
        for batch in file.iter_batches(batch_size=CHUNK_ROWS, columns=list(columns), use_threads=False):
            lines = np.arange(first, first + batch.num_rows)
            yield TableChunk(str(path), {name: batch.column(name) for name in columns}, lines)
            first += batch.num_rows


def _read_csv(path: Path, columns: Sequence[str]) -> Iterator[TableChunk]:
    """Blocks of lines; the file's first line names the columns, and no value holds a newline."""
    header: list[str] = []
    for block in read_line_blocks(path):
        if not header:
            header, block = _header(block)
            _check_columns(path, header, columns)
        if block.data.strip():
            yield _parse_csv(block, header, columns)


def _header(block: LineBlock) -> tuple[list[str], LineBlock]:
    """The columns that a file's first line names, and the lines of its first block after it."""
    first, _, rest = block.data.partition(b"\n")
    names = next(csv.reader([first.decode("utf-8-sig").rstrip("\r")]), [])
    return names, LineBlock(block.path, block.first_line + 1, rest)


def _parse_csv(block: LineBlock, header: list[str], columns: Sequence[str]) -> TableChunk:
    """A block's declared columns as bytes; rows with another number of columns than the header are broken."""
    lines = [block.first_line + i for i, line in enumerate(block.data.split(b"\n")) if line not in (b"", b"\r")]
    broken: dict[int, BadRow] = {}

    def keep_place(row: pacsv.InvalidRow) -> str:
        why = f"{row.actual_columns} columns, the header has {row.expected_columns}"
        broken[row.number - 1] = BadRow(block.path, lines[row.number - 1], why)
        return "skip"

    table = pacsv.read_csv(
        pa.BufferReader(block.data),
        read_options=pacsv.ReadOptions(column_names=header, use_threads=False, block_size=len(block.data) + 1),
        parse_options=pacsv.ParseOptions(invalid_row_handler=keep_place),
        convert_options=pacsv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.binary()),
            include_columns=list(columns),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        ),
    ).combine_chunks()
    kept = np.array([line for row, line in enumerate(lines) if row not in broken], np.int64)
    arrays = {name: _single_array(table.column(name)) for name in columns}
    return TableChunk(block.path, arrays, kept, [broken[row] for row in sorted(broken)])


def _single_array(column: pa.ChunkedArray) -> pa.Array:
    """The column in one piece."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])
