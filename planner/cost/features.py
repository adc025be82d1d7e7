"""What a cost model is told about a shard: work in physical units, and features that correct it."""

import numpy as np
from numpy.typing import NDArray

from planner.lookups import LookupArrays
from planner.memory import FLOAT_BYTES

CACHE_BYTES = 32e6
"""A table of this size finds half of its rows in a processor's last cache; only the order of magnitude matters."""

MEAN_USES = np.array([1, 2, *(0.75 * 2.0 ** np.arange(2, 17))])
"""Uses of a row in each reuse bin (2^(i-1), 2^i]: its middle, and 49,152 in the open last one."""

VECTOR_WIDTHS = (8, 16)
"""Floats in a vector register. Source: AVX2 and AVX-512; FBGEMM generates code for both."""

WORK_TERMS = ("shards", "bags", "pooled", "ids", "gathered", "cold", "touched", "updated")
"""Columns of `work_terms`: what takes time in a lookup, each proportional to it.

shards: one each. bags: pooled rows. pooled: bytes of pooled rows. ids: ids. gathered: bytes of rows read for
ids. cold: of these, bytes of tables larger than a cache. touched: distinct rows. updated: bytes of distinct
rows and their optimizer state, read and written once.
"""

_UNITS = np.array([1.0, 1e-6, 1e-9 / 4, 1e-6, 1e-8 / 4, 1e-8 / 4, 1e-6, 1e-8 / 8])
"""Brings the terms of common shards to the order of 1, so that their prices are of one order as well."""


def work_terms(lookups: LookupArrays) -> NDArray[np.float64]:
    """Work of shards [S, len(WORK_TERMS)], linear in the batch and in the rows that it touches."""
    bags = lookups.samples * lookups.num_features
    ids = lookups.samples * lookups.ids_per_sample
    row_bytes = lookups.num_cols * lookups.weight_bytes
    gathered = ids * row_bytes
    table_bytes = lookups.num_rows * row_bytes
    terms = (
        np.ones(len(lookups)),
        bags,
        bags * lookups.num_cols * FLOAT_BYTES,
        ids,
        gathered,
        gathered * table_bytes / (table_bytes + CACHE_BYTES),
        lookups.distinct_rows,
        2 * lookups.distinct_rows * (row_bytes + lookups.state_bytes),
    )
    return np.stack(terms, axis=1) * _UNITS


def shard_features(lookups: LookupArrays) -> NDArray[np.float64]:
    """Features of shards [S, F]: sizes, most as logarithms, and both views of reuse.

    Logarithms of rows, columns, ids, bytes gathered, distinct rows, bytes of distinct rows, table bytes, bags, state
    bytes and ids a bag; columns rounded up to whole vectors, over columns; columns, ids a sample, bytes gathered and
    bytes of distinct rows as they are, since large shards differ by more than their logarithms tell; the reuse
    histogram as shares of the distinct rows and of the ids.
    Source: AutoShard (arXiv 2208.06399), section 4, for columns, rows, pooling factor, size and reuse bins.
    """
    ids = lookups.samples * lookups.ids_per_sample
    row_bytes = lookups.num_cols * lookups.weight_bytes
    logs = (
        lookups.num_rows,
        lookups.num_cols,
        ids,
        ids * row_bytes,
        lookups.distinct_rows,
        lookups.distinct_rows * row_bytes,
        lookups.num_rows * row_bytes,
        lookups.samples * lookups.num_features,
        lookups.state_bytes,
        lookups.ids_per_sample / np.maximum(lookups.num_features, 1),
    )
    uses = lookups.reuse * MEAN_USES
    ids_by_bin = uses / np.maximum(uses.sum(axis=1, keepdims=True), 1e-9)
    lanes = [width * np.ceil(lookups.num_cols / width) / lookups.num_cols for width in VECTOR_WIDTHS]
    plain = (*lanes, lookups.num_cols, lookups.ids_per_sample, ids * row_bytes, lookups.distinct_rows * row_bytes)
    columns = np.concatenate([np.log1p(np.stack(logs, axis=1)), np.stack(plain, axis=1)], axis=1)
    return np.concatenate([columns, lookups.reuse, ids_by_bin], axis=1)
