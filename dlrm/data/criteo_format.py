"""The Criteo text format, parsed with numpy a block at a time.

A line is `label, 13 integers, 26 categories of 8 hexadecimal digits`, tab-separated; an empty field is a missing value.
Source: readme.txt of the Criteo display-advertising challenge (Kaggle 2014); the Terabyte click logs are the same.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dlrm.data.bad_rows import BadRow, BadRowLog
from dlrm.data.files import LineBlock, read_line_blocks
from dlrm.errors import DataError

NUM_DENSE = 13
NUM_CATEGORIES = 26
NUM_COLUMNS = 1 + NUM_DENSE + NUM_CATEGORIES
CATEGORY_DIGITS = 8
# int32 has 10 digits; a longer number is a broken row.
MAX_INTEGER_DIGITS = 10

_TAB, _NEWLINE, _RETURN, _MINUS = b"\t\n\r-"
_NOT_HEX = 255


def _hex_values() -> npt.NDArray[np.uint8]:
    """The value of every ASCII byte as a hexadecimal digit, [256]."""
    values = np.full(256, _NOT_HEX, np.uint8)
    for digits in (b"0123456789abcdef", b"0123456789ABCDEF"):
        values[list(digits)] = np.arange(16)
    return values


_HEX_VALUES = _hex_values()


@dataclass(frozen=True)
class CriteoBlock:
    """N good rows.

    Attributes:
        labels: float32 [N].
        dense: float32 [N, 13], log(1 + max(x, 0)), missing = 0.
        categories: uint32 [N, 26].
        is_missing: bool [N, 26], the category is empty.
    """

    labels: npt.NDArray[np.float32]
    dense: npt.NDArray[np.float32]
    categories: npt.NDArray[np.uint32]
    is_missing: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        """N."""
        return len(self.labels)

    def slice(self, start: int, stop: int) -> "CriteoBlock":
        """Rows `[start, stop)`, as views."""
        return self._each(lambda column: column[start:stop])

    def take(self, index: npt.NDArray[np.intp]) -> "CriteoBlock":
        """The rows that `index` names, in its order."""
        return self._each(lambda column: column[index])

    @classmethod
    def concatenate(cls, parts: Sequence["CriteoBlock"]) -> "CriteoBlock":
        """The rows of all parts, in order."""
        columns = zip(*((part.labels, part.dense, part.categories, part.is_missing) for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def _each(self, select: Callable[[npt.NDArray], npt.NDArray]) -> "CriteoBlock":
        """The same selection of rows of every array."""
        return CriteoBlock(select(self.labels), select(self.dense), select(self.categories), select(self.is_missing))


@dataclass(frozen=True)
class _Fields:
    """Where the fields of N lines lie in the bytes of a block: `data[starts:starts + lengths]`, both [N, 40]."""

    data: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    def byte(self, columns: slice, position: int) -> npt.NDArray[np.uint8]:
        """Byte number `position` of the fields [N, columns]; anything at all where the field is shorter."""
        return self.data[np.minimum(self.starts[:, columns] + position, len(self.data) - 1)]

    def eight_bytes(self, columns: slice) -> npt.NDArray[np.uint8]:
        """The first 8 bytes of the fields, [N, columns, 8]; anything at all past the end of a shorter field."""
        padded = np.concatenate([self.data, np.zeros(CATEGORY_DIGITS, np.uint8)])
        # One 8-byte number starting at every byte: a single gather takes a whole field.
        words = np.ndarray((len(self.data),), np.uint64, buffer=padded, strides=(1,))
        taken = words[np.minimum(self.starts[:, columns], len(self.data) - 1)]
        return taken.view(np.uint8).reshape(*taken.shape, CATEGORY_DIGITS)


def read_criteo(files: list[Path], pads_ragged: bool, bad_rows: BadRowLog) -> Iterator[CriteoBlock]:
    """The good rows of all files, in order, in bounded memory.

    Args:
        files: plain or `.gz`.
        pads_ragged: a row with too few columns lacks trailing values; otherwise it is an error.
        bad_rows: takes the rows that cannot be read.

    Raises:
        DataError: `ragged` with file and line; what the log and the files raise.
    """
    for file in files:
        for block in read_line_blocks(file):
            yield _parse(block, pads_ragged, bad_rows)


def _parse(block: LineBlock, pads_ragged: bool, bad_rows: BadRowLog) -> CriteoBlock:
    """The good rows of a block; the others are logged in order."""
    lines = _Lines.of(block)
    lines.check_ragged(block, pads_ragged)
    fields = lines.fields(lines.num_fields <= NUM_COLUMNS)
    labels, is_bad_label = _labels(fields)
    integers, is_bad_integer = _integers(fields)
    categories, is_bad_category = _categories(fields)
    numbers = np.flatnonzero(lines.num_fields <= NUM_COLUMNS)
    is_bad = is_bad_label | is_bad_integer.any(1) | is_bad_category.any(1)
    found = {i: f"{n} columns, a row has {NUM_COLUMNS}" for i, n in lines.too_long()}
    for row in np.flatnonzero(is_bad):
        found[int(numbers[row])] = _why(fields, int(row), is_bad_label, is_bad_integer, is_bad_category)
    bad_rows.add(BadRow(block.path, block.first_line + int(lines.line_numbers[i]), found[i]) for i in sorted(found))
    good = ~is_bad
    dense = np.log1p(np.maximum(integers[good], 0)).astype(np.float32)
    is_missing = fields.lengths[good, 1 + NUM_DENSE :] == 0
    return CriteoBlock(labels[good], dense, categories[good], is_missing)


@dataclass(frozen=True)
class _Lines:
    """The lines of a block that are not empty.

    Attributes:
        data: the block's bytes.
        separators: positions of all tabs and newlines.
        first_separator: [L], which separator is the first of the line.
        num_fields: [L].
        starts: [L], position of the line's first byte.
        line_numbers: [L], counted from 0 in the block, empty lines included.
    """

    data: npt.NDArray[np.uint8]
    separators: npt.NDArray[np.int64]
    first_separator: npt.NDArray[np.int64]
    num_fields: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    line_numbers: npt.NDArray[np.int64]

    @staticmethod
    def of(block: LineBlock) -> "_Lines":
        """Find them."""
        data = np.frombuffer(block.data, np.uint8)
        separators = np.flatnonzero((data == _TAB) | (data == _NEWLINE))
        last = np.flatnonzero(data[separators] == _NEWLINE)
        first = np.concatenate([[0], last[:-1] + 1])
        ends = separators[last]
        starts = np.concatenate([[0], ends[:-1] + 1])
        size = ends - starts
        is_empty = (size == 0) | ((size == 1) & (data[starts] == _RETURN))
        kept = np.flatnonzero(~is_empty)
        return _Lines(data, separators, first[kept], (last - first + 1)[kept], starts[kept], kept)

    def check_ragged(self, block: LineBlock, pads_ragged: bool) -> None:
        """Raise for the first line with too few columns, unless they are to be padded."""
        short = np.flatnonzero(self.num_fields < NUM_COLUMNS)
        if pads_ragged or not len(short):
            return
        line = block.first_line + int(self.line_numbers[short[0]])
        raise DataError(
            f"{block.path}:{line}: {self.num_fields[short[0]]} columns, a row has {NUM_COLUMNS} (label, "
            f"{NUM_DENSE} integers, {NUM_CATEGORIES} categories). If empty fields at the ends of rows were stripped, "
            f"set data.criteo.ragged=pad.",
            "ragged",
        )

    def too_long(self) -> Iterator[tuple[int, int]]:
        """(line, number of columns) of the lines with too many columns."""
        for line in np.flatnonzero(self.num_fields > NUM_COLUMNS):
            yield int(line), int(self.num_fields[line])

    def fields(self, is_kept: npt.NDArray[np.bool_]) -> _Fields:
        """The 40 fields of the kept lines; those that a short line lacks are empty."""
        column = np.arange(NUM_COLUMNS)
        last = (self.num_fields[is_kept] - 1)[:, None]
        # Past a short line's last field every end is the newline, so that the lengths come out as -1: empty.
        ends = self.separators[self.first_separator[is_kept][:, None] + np.minimum(column, last)]
        starts = np.concatenate([self.starts[is_kept][:, None], ends[:, :-1] + 1], axis=1)
        lengths = np.maximum(ends - starts, 0)
        ends_in_return = (lengths > 0) & (self.data[ends] == _NEWLINE) & (self.data[ends - 1] == _RETURN)
        return _Fields(self.data, starts, lengths - ends_in_return)


def _labels(fields: _Fields) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Labels [N], and whether each is something else than 0 or 1."""
    digit = fields.byte(slice(0, 1), 0)[:, 0] - np.uint8(ord("0"))
    return digit.astype(np.float32), (fields.lengths[:, 0] != 1) | (digit > 1)


def _integers(fields: _Fields) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Integers [N, 13], missing = 0, and whether each field is no integer."""
    columns = slice(1, 1 + NUM_DENSE)
    lengths = fields.lengths[:, columns]
    is_negative = (lengths > 0) & (fields.byte(columns, 0) == _MINUS)
    num_digits = lengths - is_negative
    is_bad = (num_digits > MAX_INTEGER_DIGITS) | (is_negative & (num_digits == 0))
    values = np.zeros(lengths.shape, np.int64)
    for position in range(min(int(lengths.max(initial=0)), MAX_INTEGER_DIGITS + 1)):
        digit = fields.byte(columns, position) - np.uint8(ord("0"))
        is_digit = (position < lengths) & ~(is_negative & (position == 0))
        is_bad |= is_digit & (digit > 9)
        values = np.where(is_digit, values * 10 + digit, values)
    return np.where(is_negative, -values, values), is_bad


def _categories(fields: _Fields) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """Categories [N, 26] as numbers, missing = 0, and whether each field is neither empty nor 8 hexadecimal digits."""
    columns = slice(1 + NUM_DENSE, NUM_COLUMNS)
    lengths = fields.lengths[:, columns]
    is_full = lengths == CATEGORY_DIGITS
    digits = _HEX_VALUES[fields.eight_bytes(columns)]
    # Eight digits tested as one number: a byte that is no digit has its upper half set.
    has_other = (digits & 0xF0).view(np.uint64)[:, :, 0] != 0
    is_bad = (is_full & has_other) | ((lengths != 0) & ~is_full)
    octets = (digits[:, :, 0::2] << 4) | digits[:, :, 1::2]
    values = octets.view(">u4")[:, :, 0].astype(np.uint32)
    return np.where(is_full, values, np.uint32(0)), is_bad


def _why(
    fields: _Fields,
    row: int,
    is_bad_label: npt.NDArray[np.bool_],
    is_bad_integer: npt.NDArray[np.bool_],
    is_bad_category: npt.NDArray[np.bool_],
) -> str:
    """What is wrong with the first wrong field of a row."""
    is_bad = np.concatenate([[is_bad_label[row]], is_bad_integer[row], is_bad_category[row]])
    column = int(np.flatnonzero(is_bad)[0])
    start, length = int(fields.starts[row, column]), int(fields.lengths[row, column])
    text = bytes(fields.data[start : start + min(length, 20)]).decode("utf-8", "backslashreplace")
    if column == 0:
        return f"column 1: label {text!r}, expected 0 or 1"
    expected = "an integer" if column <= NUM_DENSE else f"{CATEGORY_DIGITS} hexadecimal digits"
    return f"column {column + 1}: {text!r}, expected {expected} or nothing"
