"""Synthetic tables: drawn or listed, how their rows are hit, and how that drifts."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dlrm.data.config import DriftConfig, SyntheticConfig, SyntheticTableConfig

# Within this distance of 1 the power law is integrated as a logarithm: the general form divides by 1 - alpha.
_ALPHA_TOLERANCE = 1e-6


@dataclass(frozen=True)
class TableTraffic:
    """How the T tables are hit during some steps.

    Attributes:
        pooling_factors: float64 [T], mean ids per sample.
        first_rows: int64 [T], the hottest row; the others follow in falling order, around the table's end.
    """

    pooling_factors: npt.NDArray[np.float64]
    first_rows: npt.NDArray[np.int64]


def draw_tables(config: SyntheticConfig) -> list[SyntheticTableConfig]:
    """The listed tables or, where none is listed, `num_tables` drawn ones: the same for the same seed.

    Rows and pooling factors are log-uniform, dims a choice, skew uniform.
    """
    if config.tables:
        return list(config.tables)
    generator = np.random.default_rng([config.seed, 0])
    return [_draw_table(generator, config, f"table_{i}") for i in range(config.num_tables)]


class ZipfRows:
    """Draws ranks of rows, 0 the hottest, with probability falling like (rank + 1)^-alpha.

    The continuous power law on [1, N + 1] is inverted and rounded down, which needs no table of N probabilities.
    Source: inverse transform of a bounded Pareto law. Rank k gets the area over [k + 1, k + 2], which is Zipf's mass
    but for a lighter head: for alpha = 1 the area is 0.69 of Zipf's for the hottest row, 0.81 for the next.
    """

    def __init__(self, num_embeddings: npt.NDArray[np.int64], alphas: npt.NDArray[np.float64]) -> None:
        """Take rows [T] and skews [T]."""
        self._num_embeddings = num_embeddings
        self._is_log = np.abs(1 - alphas) < _ALPHA_TOLERANCE
        self._power = np.where(self._is_log, 1.0, 1 - alphas).astype(np.float64)
        self._mass = self._integral(num_embeddings + 1.0)

    def head_mass(self, num_rows: int) -> npt.NDArray[np.float64]:
        """Share of the ids that fall on the `num_rows` hottest rows, [T]."""
        return self._integral(np.minimum(num_rows, self._num_embeddings) + 1.0) / self._mass

    def ranks(self, uniforms: npt.NDArray[np.float64], table: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
        """Ranks of uniform numbers in [0, 1), each for the table that `table` names."""
        area = uniforms * self._mass[table]
        power = self._power[table]
        with np.errstate(over="ignore"):
            place = np.where(self._is_log[table], np.exp(area), (1 + power * area) ** (1 / power))
        # Rounding may reach N + 1 itself.
        return np.minimum(place.astype(np.int64) - 1, self._num_embeddings[table] - 1)

    def _integral(self, end: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Integral of x^-alpha from 1 to `end`, [T]."""
        return np.where(self._is_log, np.log(end), (end**self._power - 1) / self._power)


class DriftSchedule:
    """Which traffic holds at which step."""

    def __init__(self, tables: Sequence[SyntheticTableConfig], drift: Sequence[DriftConfig]) -> None:
        """Apply the changes in the order of their steps; equal steps in the order given."""
        index = {table.name: i for i, table in enumerate(tables)}
        rows = np.array([table.num_embeddings for table in tables], np.int64)
        pooling = np.array([table.pooling_factor for table in tables], np.float64)
        first_rows = np.zeros(len(tables), np.int64)
        self._steps = [-1]
        self._traffic = [TableTraffic(pooling, first_rows)]
        for change in sorted(drift, key=lambda change: change.step):
            changed = [index[name] for name in change.tables]
            pooling, first_rows = pooling.copy(), first_rows.copy()
            if change.pooling_factor is not None:
                pooling[changed] = change.pooling_factor
            if change.hot_rows_shift is not None:
                first_rows[changed] = (change.hot_rows_shift * rows[changed]).astype(np.int64)
            self._steps.append(change.step)
            self._traffic.append(TableTraffic(pooling, first_rows))

    def at(self, step: int) -> TableTraffic:
        """The traffic of a step."""
        return self._traffic[bisect.bisect_right(self._steps, step) - 1]

    def before_drift(self) -> TableTraffic:
        """The traffic as declared."""
        return self._traffic[0]


def _draw_table(generator: np.random.Generator, config: SyntheticConfig, name: str) -> SyntheticTableConfig:
    """One table of the declared ranges."""
    return SyntheticTableConfig(
        name=name,
        num_embeddings=round(_log_uniform(generator, config.min_rows, config.max_rows)),
        embedding_dim=int(generator.choice(config.embedding_dims)),
        pooling_factor=round(_log_uniform(generator, config.min_pooling_factor, config.max_pooling_factor), 2),
        zipf_alpha=float(generator.uniform(config.min_zipf_alpha, config.max_zipf_alpha)),
    )


def _log_uniform(generator: np.random.Generator, low: float, high: float) -> float:
    """A number between the bounds, uniform in its logarithm."""
    return float(np.exp(generator.uniform(np.log(low), np.log(high))))
