"""Access statistics that need no counting: of synthetic data, and what the user declares."""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from math import lgamma, sqrt

import numpy as np
import numpy.typing as npt

from dlrm.data.config import AccessConfig, DeclaredAccessConfig, SyntheticConfig
from dlrm.data.schema import DataSchema, FeatureSpec
from dlrm.data.synthetic_tables import ZipfRows, draw_tables
from dlrm.errors import DataError
from planner.access import COVERAGE_ROWS, AccessStatistics, Pooling, curve_reuse
from planner.text import did_you_mean

Floats = npt.NDArray[np.float64]


def describe_synthetic_access(config: SyntheticConfig, samples: int) -> dict[str, AccessStatistics]:
    """Statistics of synthetic tables before any drift, by name, from the distributions that they are drawn from.

    Args:
        config: the tables.
        samples: samples of a global batch.
    """
    tables = draw_tables(config)
    num_rows = np.array([table.num_embeddings for table in tables])
    coverage = _zipf_coverage(num_rows, np.array([table.zipf_alpha for table in tables]))
    poolings = [_synthetic_pooling(table.pooling_factor, samples) for table in tables]
    return _infer([table.name for table in tables], poolings, num_rows.astype(np.float64), coverage, samples)


def apply_declared(
    config: AccessConfig, schema: DataSchema, found: Mapping[str, AccessStatistics], samples: int
) -> dict[str, AccessStatistics]:
    """The statistics with what the user declared in place of what was found; of two declarations the later wins.

    Args:
        config: the declarations.
        schema: the features, each with a table of its name.
        found: by name; a table may be absent, then its ids are uniform but for what is declared.
        samples: samples of a global batch.

    Raises:
        DataError: `config`, with one line for every fault of the declarations.
    """
    check_declared(config, schema)
    statistics = dict(found)
    for declared in config.declared:
        chosen = [feature for feature in schema.features if _is_meant(feature.name, declared.tables)]
        statistics |= _declare(declared, chosen, [statistics.get(feature.name) for feature in chosen], samples)
    return statistics


def check_declared(config: AccessConfig, schema: DataSchema) -> None:
    """Raise where a declaration names no table of the data, or says nothing of it.

    Raises:
        DataError: `config`, with one line for every fault.
    """
    faults = [fault for index in range(len(config.declared)) for fault in _faults(config, index, schema.feature_names)]
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise DataError(f"The data configuration is wrong:\n{lines}", "config")


def _faults(config: AccessConfig, index: int, names: Sequence[str]) -> Iterator[str]:
    """Faults of one declaration."""
    declared, key = config.declared[index], f"data.access.declared[{index}]"
    for pattern in declared.tables:
        if not any(_is_meant(name, [pattern]) for name in names):
            yield f"{key}.tables names {pattern!r}, but there is no such table{did_you_mean(pattern, names)}"
    if not declared.tables or (declared.pooling_factor is None and declared.zipf_alpha is None):
        yield f"{key} declares nothing: name tables, and pooling_factor or zipf_alpha"


def _is_meant(name: str, patterns: Sequence[str]) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


def _declare(
    declared: DeclaredAccessConfig,
    features: Sequence[FeatureSpec],
    found: Sequence[AccessStatistics | None],
    samples: int,
) -> dict[str, AccessStatistics]:
    """The statistics of some features under one declaration, in place of those found."""
    num_rows = np.array([feature.num_embeddings for feature in features])
    used_rows, coverage = num_rows.astype(np.float64), _zipf_coverage(num_rows, np.zeros(len(features)))
    if declared.zipf_alpha is not None:
        coverage = _zipf_coverage(num_rows, np.full(len(features), declared.zipf_alpha))
    poolings = []
    for index, (feature, known) in enumerate(zip(features, found, strict=True)):
        if known is not None and declared.zipf_alpha is None:
            used_rows[index], coverage[index] = known.used_rows, known.coverage
        mean = feature.pooling_factor if known is None else known.pooling.mean
        pooling = Pooling(mean, mean, mean, mean, mean) if known is None else known.pooling
        poolings.append(pooling if declared.pooling_factor is None else pooling.scaled_to(declared.pooling_factor))
    return _infer([feature.name for feature in features], poolings, used_rows, coverage, samples)


def _infer(
    names: Sequence[str], poolings: Sequence[Pooling], used_rows: Floats, coverage: Floats, samples: int
) -> dict[str, AccessStatistics]:
    """Statistics by name, for batches as their coverage curves [F, C] let expect them."""
    ids = samples * np.array([pooling.mean for pooling in poolings])
    rows = curve_reuse(coverage, used_rows, ids)
    columns = (names, poolings, rows.distinct_rows, rows.reuse, used_rows, coverage)
    return {
        name: AccessStatistics(
            samples, pooling, float(distinct), tuple(reuse.tolist()), float(used), tuple(curve.tolist())
        )
        for name, pooling, distinct, reuse, used, curve in zip(*columns, strict=True)
    }


def _zipf_coverage(num_rows: npt.NDArray[np.int64], alphas: Floats) -> Floats:
    """Coverage curves [F, C] of tables of `num_rows` [F] rows and skew `alphas` [F]."""
    zipf = ZipfRows(num_rows, alphas)
    shares = np.stack([zipf.head_mass(int(rows)) for rows in COVERAGE_ROWS], axis=1)
    return np.where(num_rows[:, None] <= COVERAGE_ROWS, 1.0, shares)


def _synthetic_pooling(mean: float, samples: int) -> Pooling:
    """The figures of the ids of a synthetic sample; as the most, what one of so many samples exceeds on average."""
    levels = np.array([0.5, 0.9, 0.99, 1 - 1 / samples])
    quantiles = 1 + _poisson_quantiles(mean - 1, levels) if mean > 1 else (levels > 1 - mean).astype(np.float64)
    return Pooling(mean, *quantiles.tolist())


def _poisson_quantiles(mean: float, levels: Floats) -> Floats:
    """The numbers that a Poisson variable does not exceed with the chances `levels`, all below 1 - 1e-12."""
    most = int(mean + 10 * sqrt(mean)) + 20
    hits = np.arange(most + 1)
    factorials = np.array([lgamma(hit + 1) for hit in hits])
    up_to = np.cumsum(np.exp(hits * np.log(mean) - mean - factorials))
    return np.minimum(np.searchsorted(up_to, levels), most).astype(np.float64)
