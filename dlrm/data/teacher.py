"""The planted teacher: which click probability a synthetic sample has, so that learning is visible."""

import numpy as np
import numpy.typing as npt

from dlrm.data.hashing import GOLDEN, mix

# Only tables whose ids fall on few rows can be learnt in a short run: a table counts by what these rows receive.
LEARNABLE_ROWS = 1000

# Shares of the logit's variance; the interaction is what a linear model cannot learn.
DENSE_SHARE, ROW_SHARE, INTERACTION_SHARE = 0.3, 0.5, 0.2


class Teacher:
    """Logits of unit variance: a dense direction, the rows' effects, and products of neighbouring tables' effects.

    A row's effect is a hash of (seed, table, row), uniform with mean 0 and variance 1: nothing is stored.
    """

    def __init__(self, seed: int, num_dense: int, head_mass: npt.NDArray[np.float64]) -> None:
        """Plant it.

        Args:
            seed: same seed, same teacher.
            num_dense: D; the dense columns are standard normal.
            head_mass: [T], share of each table's ids on its `LEARNABLE_ROWS` hottest rows.
        """
        direction = np.random.default_rng([seed, 1]).standard_normal(num_dense)
        self._direction = direction / max(float(np.linalg.norm(direction)), 1e-12)
        self._weights = head_mass / max(float(np.linalg.norm(head_mass)), 1e-12)
        pair = head_mass[:-1] * head_mass[1:]
        self._pair_weights = pair / max(float(np.linalg.norm(pair)), 1e-12)
        self._salts = mix(np.arange(len(head_mass), dtype=np.uint64) + (np.uint64(seed) << np.uint64(32)))

    def row_effects(self, table: npt.NDArray[np.intp], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The latent effect of each row of the tables that `table` names."""
        hashed = mix(rows.astype(np.uint64) * GOLDEN ^ self._salts[table])
        uniform = (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return (uniform - 0.5) * np.sqrt(12.0)

    def logits(
        self,
        dense: npt.NDArray[np.float32],
        table: npt.NDArray[np.intp],
        rows: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float64]:
        """Logits [B] of samples.

        Args:
            dense: [B, D].
            table: [V], the table of every id, ascending.
            rows: [V], the ids, sample after sample within a table.
            lengths: [T, B].
        """
        # A sum over n independent effects has variance n.
        bag = np.repeat(np.arange(lengths.size), lengths.ravel())
        sums = np.bincount(bag, self.row_effects(table, rows), minlength=lengths.size).reshape(lengths.shape)
        pooled = sums / np.sqrt(np.maximum(lengths, 1))
        linear = self._weights @ pooled
        interaction = self._pair_weights @ (pooled[:-1] * pooled[1:])
        logits = np.sqrt(DENSE_SHARE) * (dense @ self._direction) + np.sqrt(ROW_SHARE) * linear
        logits += np.sqrt(INTERACTION_SHARE) * interaction
        return logits
