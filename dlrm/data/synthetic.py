"""Synthetic samples, each batch made from its number alone: no files, no state, any position in no time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dlrm.data.config import SyntheticConfig
from dlrm.data.file_source import RankShare, Split
from dlrm.data.schema import DataSchema, FeatureSpec
from dlrm.data.stream import ReadReport
from dlrm.data.synthetic_tables import DriftSchedule, TableTraffic, ZipfRows, draw_tables
from dlrm.data.teacher import LEARNABLE_ROWS, Teacher
from dlrm.errors import DataError

if TYPE_CHECKING:
    from dlrm.data.batches import Batch

_SPLIT_NUMBER = {Split.TRAIN: 0, Split.EVAL: 1}


def describe_synthetic(config: SyntheticConfig) -> DataSchema:
    """The schema, with the pooling factors before any drift."""
    features = tuple(
        FeatureSpec(table.name, table.num_embeddings, table.pooling_factor, table.embedding_dim)
        for table in draw_tables(config)
    )
    return DataSchema(tuple(f"dense_{i}" for i in range(config.num_dense)), features)


class SyntheticSource:
    """One rank's synthetic batches.

    Training drifts as declared; evaluation stays as it was, so that its figures compare over the whole run.
    """

    def __init__(self, config: SyntheticConfig, split: Split, share: RankShare, seed: int) -> None:
        """Prepare.

        Raises:
            DataError: `too_short` where an epoch is less than a global batch.
        """
        tables = draw_tables(config)
        num_embeddings = np.array([table.num_embeddings for table in tables], np.int64)
        self._names = [table.name for table in tables]
        self._num_embeddings = num_embeddings
        self._num_dense = config.num_dense
        self._label_scale = config.label_scale
        self._zipf = ZipfRows(num_embeddings, np.array([table.zipf_alpha for table in tables]))
        self._teacher = Teacher(config.seed, config.num_dense, self._zipf.head_mass(LEARNABLE_ROWS))
        self._drift = DriftSchedule(tables, config.drift)
        self._split, self._share, self._seed = split, share, seed
        shortage = find_synthetic_shortage(config, split, share)
        if shortage:
            raise DataError(shortage, "too_short")
        _, num_samples = _num_samples(config, split)
        self.num_batches = num_samples // share.global_rows
        self._num_dropped_rows = num_samples % share.global_rows

    def read_epoch(self, epoch: int, first_batch: int) -> Iterator[Batch]:
        """The batches of an epoch from number `first_batch` on."""
        if first_batch > self.num_batches:
            raise DataError(
                f"The saved position is batch {first_batch} of epoch {epoch}, but an epoch has {self.num_batches}: "
                f"data.synthetic, the batch size or the number of ranks is not what it was.",
                "position",
            )
        for number in range(first_batch, self.num_batches):
            yield self.make_batch(epoch, number)

    def report(self) -> ReadReport:
        """Nothing can be bad; rows beyond the last whole global batch are not made."""
        return ReadReport(self.num_batches * self._share.global_rows, num_dropped_rows=self._num_dropped_rows)

    def make_batch(self, epoch: int, number: int) -> Batch:
        """Batch `number` of an epoch for this rank; held-out samples are the same in every epoch."""
        # Planning reads schemas through this module: torch and TorchRec are loaded where tensors are first made.
        from dlrm.data.batches import Batch

        is_train = self._split is Split.TRAIN
        epoch = epoch if is_train else 0
        entropy = [self._seed, _SPLIT_NUMBER[self._split], epoch, number, self._share.rank]
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
        traffic = self._drift.at(epoch * self.num_batches + number) if is_train else self._drift.before_drift()
        lengths = _draw_lengths(generator, traffic.pooling_factors, self._share.batch_size)
        table, rows = self._draw_rows(generator, lengths, traffic)
        dense = generator.standard_normal((self._share.batch_size, self._num_dense), dtype=np.float32)
        logits = self._label_scale * self._teacher.logits(dense, table, rows, lengths)
        labels = generator.random(self._share.batch_size) < 1 / (1 + np.exp(-logits))
        return Batch.from_arrays(dense, self._names, rows, lengths.ravel(), labels.astype(np.float32))

    def _draw_rows(
        self, generator: np.random.Generator, lengths: npt.NDArray[np.int64], traffic: TableTraffic
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
        """The table and the row of every id, [V] each, table after table."""
        table = np.repeat(np.arange(len(lengths)), lengths.sum(axis=1))
        ranks = self._zipf.ranks(generator.random(len(table)), table)
        return table, (ranks + traffic.first_rows[table]) % self._num_embeddings[table]


def find_synthetic_shortage(config: SyntheticConfig, split: Split, share: RankShare) -> str | None:
    """What to say where an epoch has not a single whole global batch; None where it has one."""
    key, num_samples = _num_samples(config, split)
    if num_samples >= share.global_rows:
        return None
    return (
        f"data.synthetic.{key} = {num_samples} is less than one global batch of {share.global_rows} samples "
        f"({share.world_size} ranks x batch size {share.batch_size}): raise it or lower the batch size."
    )


def _num_samples(config: SyntheticConfig, split: Split) -> tuple[str, int]:
    """The key that says how many samples an epoch has, and what it says."""
    key = "num_samples" if split is Split.TRAIN else "num_eval_samples"
    return key, getattr(config, key)


def _draw_lengths(
    generator: np.random.Generator, pooling_factors: npt.NDArray[np.float64], batch_size: int
) -> npt.NDArray[np.int64]:
    """Ids per table and sample, [T, B]: 1 + Poisson(p - 1) for a mean p above 1, else 1 with probability p."""
    lengths = np.ones((len(pooling_factors), batch_size), np.int64)
    for row, pooling_factor in zip(lengths, pooling_factors, strict=True):
        if pooling_factor > 1:
            row += generator.poisson(pooling_factor - 1, batch_size)
        elif pooling_factor < 1:
            row[:] = generator.random(batch_size) < pooling_factor
    return lengths
