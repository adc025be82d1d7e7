"""Columns of a table as numbers: labels and dense values as floats, categorical values and lists as ids."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm.data.hashing import hash_bytes
from dlrm.data.rows import Ragged, offsets_of, single_valued
from dlrm.errors import DataError

# Row 0 of every table stands for a missing value.
MISSING_ROW = 0

_NUMBER = r"^\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$"
# The longest run of digits that always fits int64.
_MAX_DIGITS = 18

_TEXT_KINDS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
_NUMERIC_KINDS = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_boolean,
    pa.types.is_decimal,
    pa.types.is_null,
)


@dataclass(frozen=True)
class Numbers:
    """A numeric column of N rows.

    Attributes:
        values: float64 [N]; NaN where missing.
        is_bad: bool [N]; the value is there but no finite number.
    """

    values: npt.NDArray[np.float64]
    is_bad: npt.NDArray[np.bool_]


def to_numbers(column: pa.Array, name: str) -> Numbers:
    """A column of numbers, booleans, or text that holds numbers.

    Raises:
        DataError: `config` where the column is of another type.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return to_numbers(column.dictionary_decode(), name)
    is_bad = np.zeros(len(column), bool)
    if _is_text(kind):
        text = column.cast(pa.binary())
        is_number = pc.match_substring_regex(text, _NUMBER)
        is_empty = pc.equal(pc.binary_length(text), 0)
        is_bad = pc.fill_null(pc.and_not(pc.invert(is_number), is_empty), False).to_numpy(zero_copy_only=False)
        column = pc.utf8_trim_whitespace(pc.if_else(is_number, text, None).cast(pa.string()))
    elif not _is_numeric(kind):
        raise DataError(f"Column {name!r} holds {kind}; a label or dense column holds numbers.", "config")
    # Not "safe": an integer beyond 2^53 may lose its last digits, as any float would.
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return Numbers(values, is_bad | np.isinf(values))


def to_ids(column: pa.Array, num_embeddings: int, name: str) -> Ragged:
    """The ids of a categorical column; a list column gives each row as many ids as it has values.

    A missing value has id 0, an empty or missing list no id. An integer v has id 1 + v mod (num_embeddings - 1), so
    that integers from 0 to num_embeddings - 2 never collide. Text that is an integer counts as that integer; other text
    is hashed.

    Raises:
        DataError: `config` where the column is neither text nor integers nor lists of them.
    """
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        return Ragged(_ids(column.flatten(), num_embeddings, name), offsets_of(lengths))
    return single_valued(_ids(column, num_embeddings, name))


def split_lists(column: pa.Array, separator: str) -> pa.Array:
    """Text as lists of text; empty text is the empty list. What holds lists already, as a Parquet column may, stays."""
    if not _is_text(column.type):
        return column
    text = column.cast(pa.binary())
    is_empty = pc.equal(pc.binary_length(text), 0)
    return pc.split_pattern(pc.if_else(is_empty, None, text), separator.encode())


def _ids(values: pa.Array, num_embeddings: int, name: str) -> npt.NDArray[np.int64]:
    """The id of every value."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        values = values.dictionary_decode()
        kind = values.type
    if _is_text(kind):
        return _text_ids(values.cast(pa.large_binary()), num_embeddings)
    if pa.types.is_floating(kind):
        # How pandas writes integers when some are missing.
        values = _whole_numbers(values, name)
    elif pa.types.is_boolean(kind):
        values = values.cast(pa.int8())
    elif pa.types.is_null(kind):
        values = values.cast(pa.int64())
    elif not pa.types.is_integer(kind):
        raise DataError(f"Column {name!r} holds {kind}; a categorical column holds integers, text or lists.", "config")
    integers = pc.fill_null(values, 0).to_numpy(zero_copy_only=False)
    ids = 1 + (integers % np.asarray(num_embeddings - 1).astype(_wide(integers.dtype))).astype(np.int64)
    return np.where(values.is_null().to_numpy(zero_copy_only=False), MISSING_ROW, ids)


def _wide(dtype: np.dtype) -> type[np.integer]:
    """The 64-bit type in which the remainder is taken."""
    return np.uint64 if dtype.kind == "u" else np.int64


def _text_ids(values: pa.Array, num_embeddings: int) -> npt.NDArray[np.int64]:
    """Ids of text: each distinct value of the chunk is hashed once."""
    encoded = values.dictionary_encode()
    distinct = [_text_id(value, num_embeddings) for value in encoded.dictionary.to_pylist()]
    index = pc.fill_null(encoded.indices.cast(pa.int64()), len(distinct)).to_numpy(zero_copy_only=False)
    return np.array([*distinct, MISSING_ROW], np.int64)[index]


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


def _is_text(kind: pa.DataType) -> bool:
    """Text or bytes."""
    return any(is_kind(kind) for is_kind in _TEXT_KINDS)


def _is_numeric(kind: pa.DataType) -> bool:
    """Anything that casts to a float."""
    return any(is_kind(kind) for is_kind in _NUMERIC_KINDS)
