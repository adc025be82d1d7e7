"""Readers of measured costs in NeuroShard's text form.

Source: NeuroShard (arXiv 2305.01868); files of this form are in citz73/csharding (MIT).
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.cost.features import MEAN_USES
from planner.lookups import NUM_REUSE_BINS, LookupArrays

SAMPLES = 65_536
"""Samples of a batch in every measurement of these files."""

DIMS = (128, 64, 32, 16, 8, 4)
"""Widths by the first part of an id: id = index of the width x number of tables + table."""

FLOAT_BYTES = 4
"""Weights and pooled rows are fp32; the optimizer is SGD, without state."""

TABLE_COLUMNS = ("table", "num_embeddings", "pooling_factor", *(f"bin_{index}" for index in range(NUM_REUSE_BINS)))
"""Columns of a file of tables."""

COMPUTE_LINE = re.compile(r"task:\s*(?P<ids>[\d,\s]+?)\s*\|\s*cost:\s*(?P<cost>\S+)\s*$")

COMMS_FIELDS = ("dims", "skews", "forward times", "backward times")
"""What a line of communication costs holds, each a figure a rank."""


class CostFileError(Exception):
    """What is wrong with a file of costs, and on which line."""


@dataclass(frozen=True, eq=False)
class ComputeCosts:
    """Measured fused lookups.

    Attributes:
        lookups: N sets.
        cost_ms: [N], forward and backward together.
    """

    lookups: LookupArrays
    cost_ms: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CommsCosts:
    """Measured all-to-alls of W ranks in the order in which they were made, arrays [N, W].

    Attributes:
        sent_bytes: Each rank's input of the forward all-to-all: its pooled rows for all samples.
        skew_ms: How much later than the first each rank started the forward one.
        forward_ms: Durations from a rank's own start; all ranks end together.
        backward_ms: Durations of the gradients' way back; all ranks start together.
    """

    sent_bytes: NDArray[np.float64]
    skew_ms: NDArray[np.float64]
    forward_ms: NDArray[np.float64]
    backward_ms: NDArray[np.float64]


def read_compute_costs(costs: Path, tables: Path) -> ComputeCosts:
    """The sets and times of a file of lines `task: ID,ID,... | cost: MS`.

    Args:
        costs: The file.
        tables: A CSV file with the columns `TABLE_COLUMNS`, one row a table.

    Raises:
        CostFileError: A line has another form, a time is not above 0, or a table is unknown.
        OSError: A file cannot be read.
    """
    figures = read_tables(tables)
    ids: list[NDArray[np.int64]] = []
    cost_ms: list[float] = []
    for where, line in _lines(costs):
        found = COMPUTE_LINE.match(line)
        if found is None:
            raise CostFileError(f"{where}: expected `task: ID,ID,... | cost: MS`, found {line[:80]!r}")
        ids.append(np.array(_numbers(found["ids"], where, "ids"), dtype=np.int64))
        cost_ms += _positive([*_numbers(found["cost"], where, "cost")], where, "cost")
        if ids[-1].max() >= len(figures) * len(DIMS):
            raise CostFileError(
                f"{where}: id {ids[-1].max()} is beyond the {len(DIMS)} widths of the {len(figures)} tables in {tables}"
            )
    return ComputeCosts(_lookups(ids, figures), np.array(cost_ms))


def read_comms_costs(costs: Path) -> CommsCosts:
    """The collectives of a file of lines `DIMS SKEW_MS FORWARD_MS BACKWARD_MS`, each a figure a rank, by commas.

    Raises:
        CostFileError: A line has another form or another number of ranks than the first, or a time is not
            above 0.
        OSError: The file cannot be read.
    """
    rows: list[list[list[float]]] = []
    for where, line in _lines(costs):
        parts = line.split()
        if len(parts) != len(COMMS_FIELDS):
            raise CostFileError(f"{where}: expected {', '.join(COMMS_FIELDS)}, found {len(parts)} fields")
        row = [_numbers(part, where, name) for part, name in zip(parts, COMMS_FIELDS, strict=True)]
        num_ranks = len(rows[0][0]) if rows else max(2, len(row[0]))
        if any(len(values) != num_ranks for values in row):
            raise CostFileError(f"{where}: expected {num_ranks} figures a field, found {[len(each) for each in row]}")
        for values, name in zip(row[2:], COMMS_FIELDS[2:], strict=True):
            _positive(values, where, name)
        rows.append(row)
    dims, skew_ms, forward_ms, backward_ms = np.array(rows).transpose(1, 0, 2)
    return CommsCosts(dims * SAMPLES * FLOAT_BYTES, skew_ms, forward_ms, backward_ms)


def read_tables(path: Path) -> NDArray[np.float64]:
    """Figures [T, 19] of a pool of tables: rows, pooling factor, reuse bins.

    Args:
        path: A CSV file with the columns `TABLE_COLUMNS`, one row a table.

    Raises:
        CostFileError: It has other columns, a figure that is none, or no tables.
        OSError: It cannot be read.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = tuple(next(reader, ()))
        if header != TABLE_COLUMNS:
            raise CostFileError(f"{path}:1: expected the columns {','.join(TABLE_COLUMNS)}, found {','.join(header)}")
        rows = []
        for number, row in enumerate(reader, start=2):
            where = f"{path}:{number}"
            if len(row) != len(TABLE_COLUMNS):
                raise CostFileError(f"{where}: expected {len(TABLE_COLUMNS)} columns, found {len(row)}")
            rows.append(_numbers(",".join(row[1:]), where, "figures"))
            if rows[-1][0] < 1:
                raise CostFileError(f"{where}: num_embeddings is {row[1]}, expected at least 1")
    if not rows:
        raise CostFileError(f"{path}: no tables")
    return np.array(rows)


def mean_uses(reuse: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean uses [T] of a distinct row in a batch, of shares [T, NUM_REUSE_BINS] of rows by their uses.

    A bin stands for `planner.cost.features.MEAN_USES`, as it does for the model.
    """
    return np.asarray(reuse @ MEAN_USES)


def _lookups(ids: list[NDArray[np.int64]], figures: NDArray[np.float64]) -> LookupArrays:
    every = np.concatenate(ids)
    dim_index, table = np.divmod(every, len(figures))
    num_rows, pooling_factor, reuse = figures[table, 0], figures[table, 1], figures[table, 2:]
    uses = mean_uses(reuse)
    # Tables without a single id in the sampled batch have no bins either.
    distinct_rows = np.where(uses > 0, SAMPLES * pooling_factor / np.where(uses > 0, uses, 1.0), 0.0)
    ones = np.ones(len(every))
    return LookupArrays(
        num_sets=len(ids),
        set_index=np.repeat(np.arange(len(ids)), [len(each) for each in ids]),
        samples=SAMPLES * ones,
        num_rows=num_rows,
        num_cols=np.array(DIMS, dtype=np.float64)[dim_index],
        ids_per_sample=pooling_factor,
        num_features=ones,
        distinct_rows=np.minimum(distinct_rows, num_rows),
        weight_bytes=FLOAT_BYTES * ones,
        state_bytes=0.0 * ones,
        reuse=reuse,
    )


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Every line that is not blank with its place, `file:line`."""
    is_empty = True
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                is_empty = False
                yield f"{path}:{number}", line.strip()
    if is_empty:
        raise CostFileError(f"{path}: no lines")


def _numbers(text: str, where: str, what: str) -> list[float]:
    """Finite numbers of at least 0, separated by commas."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise CostFileError(f"{where}: {what}: {error}; expected numbers separated by commas") from error
    if not np.isfinite(values).all() or min(values) < 0:
        raise CostFileError(f"{where}: {what}: expected finite numbers of at least 0, found {text[:80]}")
    return values


def _positive(values: list[float], where: str, what: str) -> list[float]:
    if min(values) <= 0:
        raise CostFileError(f"{where}: {what}: expected milliseconds above 0, found {min(values)}")
    return values
