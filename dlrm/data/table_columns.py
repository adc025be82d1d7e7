"""Numeric columns of a table, labels and dense values, as floats."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm.errors import DataError

_NUMBER = r"^\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$"

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
    if is_text(kind):
        text = column.cast(pa.binary())
        is_number = pc.match_substring_regex(text, _NUMBER)
        is_empty = pc.equal(pc.binary_length(text), 0)
        is_bad = pc.fill_null(pc.and_not(pc.invert(is_number), is_empty), False).to_numpy(zero_copy_only=False)
        column = pc.utf8_trim_whitespace(pc.if_else(is_number, text, None).cast(pa.string()))
    elif not _is_numeric(kind):
        raise DataError(f"Column {name!r} holds {kind}; a label or dense column holds numbers.", "config")
    # Not "safe": an integer beyond 2^53 may lose its last digits, as any float would.
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    # Batches are float32: what overflows there would be infinite.
    return Numbers(values, is_bad | (np.abs(values) > np.finfo(np.float32).max))


def is_text(kind: pa.DataType) -> bool:
    """Text or bytes."""
    return any(is_kind(kind) for is_kind in _TEXT_KINDS)


def _is_numeric(kind: pa.DataType) -> bool:
    """Anything that casts to a float."""
    return any(is_kind(kind) for is_kind in _NUMERIC_KINDS)
