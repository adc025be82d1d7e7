"""How the rows of a table are looked up: what was measured, and what follows for a batch of any size."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.errors import PlanningError
from planner.occupancy import REUSE_EDGES, bin_chances

COVERAGE_ROWS = np.unique(np.concatenate([2.0 ** np.arange(37), 3 * 2.0 ** np.arange(35)]))
"""Numbers of hottest rows at which a coverage curve is taken: two steps an octave, 1, 2, 3, 4, 6, 8 ... 2^36.

Between two of them rows count as equally hot: on power laws of exponent 0 to 2 that changes distinct rows by
less than 1 %.
"""

CHUNK_TABLES = 512
"""Curves evaluated at once, which bounds the memory of the arrays."""


@dataclass(frozen=True)
class Pooling:
    """Ids of one sample in one feature.

    Attributes:
        mean: Mean, the pooling factor.
        p50: Median.
        p90: 90 % of the samples have so many or fewer.
        p99: The same for 99 %.
        max: The most.
    """

    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    def scaled_to(self, mean: float) -> "Pooling":
        """The same distribution stretched to another mean; all its figures are the mean where there were no ids."""
        if not self.mean:
            return Pooling(mean, mean, mean, mean, mean)
        factor = mean / self.mean
        return Pooling(mean, *(factor * each for each in (self.p50, self.p90, self.p99, self.max)))


@dataclass(frozen=True)
class AccessStatistics:
    """How the rows of one table are looked up.

    Attributes:
        samples: Samples of the batches that `distinct_rows` and `reuse` are means over.
        pooling: Ids of one sample in one feature of the table.
        distinct_rows: Rows that such a batch looks up at least once, by all features of the table.
        reuse: Shares of these rows by how often the batch looks them up; bins as in
            `planner.lookups.NUM_REUSE_BINS`. All 0 where no row is looked up.
        used_rows: Rows that are looked up at all, in however many batches: where the coverage curve ends.
        coverage: Share of all lookups that fall on the `COVERAGE_ROWS` hottest rows, one figure for each of these
            numbers; 1 from `used_rows` on.

    Raises:
        PlanningError: Figures that are too few, too many or out of range (reason `workload`).
    """

    samples: int
    pooling: Pooling
    distinct_rows: float
    reuse: tuple[float, ...]
    used_rows: float
    coverage: tuple[float, ...]

    def __post_init__(self) -> None:
        """Checks lengths and ranges."""
        found = []
        for name, length in (("reuse", len(REUSE_EDGES) + 1), ("coverage", len(COVERAGE_ROWS))):
            figures = getattr(self, name)
            if len(figures) != length:
                found.append(f"{name} has {len(figures)} figures, expected {length}")
            if not all(0.0 <= figure <= 1.0 for figure in figures):
                found.append(f"{name} has a figure outside 0 to 1, expected shares")
        least = {"samples": (self.samples, 1), "distinct_rows": (self.distinct_rows, 0)}
        least |= {"used_rows": (self.used_rows, 1), "pooling.mean": (self.pooling.mean, 0)}
        found += [
            f"{name} is {figure}, expected a finite number >= {limit}"
            for name, (figure, limit) in least.items()
            if not limit <= figure < float("inf")
        ]
        if found:
            raise PlanningError("access statistics: " + "; ".join(found), reason="workload")

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {**asdict(self), "reuse": list(self.reuse), "coverage": list(self.coverage)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AccessStatistics":
        """What `to_dict` gave; raises PlanningError (reason `workload`) where these are other values."""
        try:
            return cls(
                samples=int(values["samples"]),
                pooling=Pooling(**values["pooling"]),
                distinct_rows=float(values["distinct_rows"]),
                reuse=tuple(values["reuse"]),
                used_rows=float(values["used_rows"]),
                coverage=tuple(values["coverage"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PlanningError(f"access statistics: cannot be read ({error!r})", reason="workload") from error


@dataclass(frozen=True, eq=False)
class BatchRows:
    """The rows that a batch looks up in T tables.

    Attributes:
        distinct_rows: float64 [T], rows looked up at least once.
        reuse: float64 [T, bins], shares of them by how often; all 0 where there are none.
    """

    distinct_rows: NDArray[np.float64]
    reuse: NDArray[np.float64]


def uniform_reuse(num_rows: NDArray[np.float64], ids: NDArray[np.float64]) -> BatchRows:
    """The rows that `ids` [T] ids look up in tables of `num_rows` [T] equally hot rows.

    >>> uniform_reuse(np.array([1.0, 1e9]), np.array([4.0, 4.0])).distinct_rows.round(6).tolist()
    [1.0, 4.0]
    """
    hit = bin_chances(1.0 / num_rows, ids) * num_rows[:, None]
    return _batch_rows(hit)


def curve_reuse(coverage: NDArray[np.float64], num_rows: NDArray[np.float64], ids: NDArray[np.float64]) -> BatchRows:
    """The rows that `ids` [T] ids look up in tables of `num_rows` [T] used rows with coverage curves [T, C].

    Ids are taken as independent, rows between two points of a curve as equally hot.
    """
    hit = np.zeros((len(num_rows), len(REUSE_EDGES) + 1))
    for start in range(0, len(num_rows), CHUNK_TABLES):
        part = slice(start, start + CHUNK_TABLES)
        hit[part] = _curve_hits(coverage[part], num_rows[part], ids[part])
    return _batch_rows(hit)


def batch_rows(
    access: Sequence[AccessStatistics | None],
    num_rows: NDArray[np.float64],
    ids_per_sample: NDArray[np.float64],
    samples: int,
) -> BatchRows:
    """The rows that a batch of `samples` looks up: as measured on such batches, else from the curve, else uniform.

    Args:
        access: T statistics; None where nothing is known but the number of ids.
        num_rows: [T].
        ids_per_sample: [T], over all features of a table.
        samples: Samples of the batch.
    """
    ids = samples * ids_per_sample
    found = uniform_reuse(num_rows, ids)
    known = [(index, each) for index, each in enumerate(access) if each is not None]
    measured = [(index, each) for index, each in known if each.samples == samples]
    inferred = [(index, each) for index, each in known if each.samples != samples]
    if inferred:
        at = np.array([index for index, _ in inferred])
        used = np.array([each.used_rows for _, each in inferred])
        rows = curve_reuse(np.array([each.coverage for _, each in inferred]), used, ids[at])
        found.distinct_rows[at], found.reuse[at] = rows.distinct_rows, rows.reuse
    for index, each in measured:
        found.distinct_rows[index], found.reuse[index] = each.distinct_rows, each.reuse
    return found


def _curve_hits(
    coverage: NDArray[np.float64], num_rows: NDArray[np.float64], ids: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Rows [T, bins] by how often they are looked up."""
    rows = np.diff(np.minimum(COVERAGE_ROWS, num_rows[:, None]), prepend=0.0, axis=1)
    shares = np.diff(coverage, prepend=0.0, axis=1)
    table, step = np.nonzero((rows > 0) & (shares > 0))
    rows, shares = rows[table, step], shares[table, step]
    hit = bin_chances(shares / rows, ids[table]) * rows[:, None]
    return np.stack([np.bincount(table, column, minlength=len(num_rows)) for column in hit.T], axis=1)


def _batch_rows(hit: NDArray[np.float64]) -> BatchRows:
    """From rows [T, bins] by how often they are looked up to their number and shares."""
    distinct = hit.sum(axis=1)
    return BatchRows(distinct, np.divide(hit, distinct[:, None], out=np.zeros_like(hit), where=distinct[:, None] > 0))
