"""Categorical columns of a table: raw values that can be cut and permuted, and the ids they encode to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm.data.hashing import hash_bytes
from dlrm.data.rows import Ragged
from dlrm.data.table_columns import is_text
from dlrm.errors import DataError

# Row 0 of every table stands for a missing value.
MISSING_ROW = 0

# The longest run of digits that always fits int64.
_MAX_DIGITS = 18
# Texts whose ids are remembered, as frequent ones come back in every batch; about 10 MiB.
_NUM_CACHED_TEXTS = 2**16


@dataclass(frozen=True)
class RawColumn:
    """A categorical column of N rows as it was read.

    Attributes:
        values: int64, uint64 or large_binary (text) values of all rows, one row after the other; null = missing.
        offsets: int64 [N + 1]; row i holds `values[offsets[i]:offsets[i + 1]]`; `offsets[0]` is 0.
        num_embeddings: rows of its table.
    """

    values: pa.Array
    offsets: npt.NDArray[np.int64]
    num_embeddings: int

    @staticmethod
    def of(column: pa.Array, num_embeddings: int, name: str) -> RawColumn:
        """A column of integers, text or lists of them; an empty or missing list has no value.

        Raises:
            DataError: `config` where the column is of another type, or holds fractions.
        """
        kind = column.type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
            return RawColumn(_plain_values(column.flatten(), name), _offsets_of(lengths), num_embeddings)
        return RawColumn(_plain_values(column, name), np.arange(len(column) + 1), num_embeddings)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Values of each row, [N]."""
        return np.diff(self.offsets)

    def slice(self, start: int, stop: int) -> RawColumn:
        """Rows `[start, stop)`."""
        offsets = self.offsets[start : stop + 1]
        return RawColumn(self.values[offsets[0] : offsets[-1]], offsets - offsets[0], self.num_embeddings)

    def take(self, index: npt.NDArray[np.intp]) -> RawColumn:
        """The rows that `index` names, in its order."""
        lengths = self.lengths
        if len(self.values) == len(lengths) and bool((lengths == 1).all()):
            return RawColumn(self.values.take(pa.array(index)), np.arange(len(index) + 1), self.num_embeddings)
        taken = lengths[index]
        offsets = _offsets_of(taken)
        # Position within the row, plus where the row starts in the old values.
        source = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][index] - offsets[:-1], taken)
        return RawColumn(self.values.take(pa.array(source)), offsets, self.num_embeddings)

    @staticmethod
    def concatenate(parts: Sequence[RawColumn]) -> RawColumn:
        """The rows of all parts, in order; files of a folder may hold integers here and text there."""
        if len({part.values.type for part in parts}) > 1:
            parts = [part._as_integers() for part in parts]
        values = pa.concat_arrays([part.values for part in parts])
        return RawColumn(values, _offsets_of(np.concatenate([part.lengths for part in parts])), parts[0].num_embeddings)

    def encode(self) -> Ragged:
        """The ids.

        A missing value has id 0. An integer v has id 1 + v mod (num_embeddings - 1), so that integers from 0 to
        num_embeddings - 2 never collide. Text that is an integer counts as that integer; other text is hashed.
        """
        ids = _text_ids if is_text(self.values.type) else _integer_ids
        return Ragged(ids(self.values, self.num_embeddings), self.lengths)

    def _as_integers(self) -> RawColumn:
        """A column of integers that encodes to the same ids."""
        ids = self.encode().values
        return RawColumn(pa.array(ids - 1, mask=ids == MISSING_ROW), self.offsets, self.num_embeddings)


def split_lists(column: pa.Array, separator: str) -> pa.Array:
    """Text as lists of text; empty text is the empty list. What holds lists already, as a Parquet column may, stays."""
    if not is_text(column.type):
        return column
    text = column.cast(pa.binary())
    is_empty = pc.equal(pc.binary_length(text), 0)
    return pc.split_pattern(pc.if_else(is_empty, None, text), separator.encode())


def _plain_values(values: pa.Array, name: str) -> pa.Array:
    """The values as int64, uint64 or large_binary."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if is_text(kind):
        return values.cast(pa.large_binary())
    if pa.types.is_floating(kind):
        # How pandas writes integers when some are missing.
        return _whole_numbers(values, name)
    if pa.types.is_boolean(kind):
        return values.cast(pa.int8()).cast(pa.int64())
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        return values if pa.types.is_uint64(kind) else values.cast(pa.int64())
    raise DataError(f"Column {name!r} holds {kind}; a categorical column holds integers, text or lists.", "config")


def _integer_ids(values: pa.Array, num_embeddings: int) -> npt.NDArray[np.int64]:
    """Ids of integers."""
    integers = _filled(values, 0)
    ids = 1 + (integers % integers.dtype.type(num_embeddings - 1)).astype(np.int64)
    if values.null_count:
        ids[values.is_null().to_numpy(zero_copy_only=False)] = MISSING_ROW
    return ids


def _text_ids(values: pa.Array, num_embeddings: int) -> npt.NDArray[np.int64]:
    """Ids of text: each distinct one is looked at once."""
    encoded = values.dictionary_encode()
    distinct = [_text_id(value, num_embeddings) for value in encoded.dictionary.to_pylist()]
    return np.array([*distinct, MISSING_ROW], np.int64)[_filled(encoded.indices, len(distinct))]


def _filled(integers: pa.Array, value: int) -> npt.NDArray[np.integer]:
    """The integers, with a value in place of null; batches are small, where a needless call into Arrow shows."""
    return (pc.fill_null(integers, value) if integers.null_count else integers).to_numpy()


@lru_cache(maxsize=_NUM_CACHED_TEXTS)
def _text_id(value: bytes, num_embeddings: int) -> int:
    """The id of one text; blanks around it do not count."""
    value = value.strip()
    if not value:
        return MISSING_ROW
    digits = value.removeprefix(b"-")
    is_canonical = digits.isdigit() and len(digits) <= _MAX_DIGITS and str(int(value)).encode() == value
    number = int(value) if is_canonical else hash_bytes(value)
    return 1 + number % (num_embeddings - 1)


def _whole_numbers(values: pa.Array, name: str) -> pa.Array:
    """Floats that are all integers, as integers; NaN counts as missing."""
    known = pc.if_else(pc.is_nan(values), None, values)
    try:
        return known.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise DataError(
            f"Column {name!r} holds fractions ({error}); a categorical one integers or text.", "config"
        ) from error


def _offsets_of(lengths: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Where each row's values start, [N + 1], from the lengths [N]."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
