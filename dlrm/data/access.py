"""Access statistics of a data set, counted on a sample of its training batches."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from dlrm.data.config import DataConfig
from dlrm.data.coverage import estimate_coverage
from dlrm.data.factory import read_training_rows
from dlrm.data.rows import Ragged, Rows
from dlrm.data.schema import DataSchema
from dlrm.data.sketches import FeatureSketch
from planner.access import AccessStatistics


@dataclass(frozen=True)
class MeasuredAccess:
    """What a sample told.

    Attributes:
        statistics: of every feature, by its name.
        num_batches: batches counted.
        batch_samples: samples of each of them: the global batch, or what there is where the data has less.
    """

    statistics: dict[str, AccessStatistics]
    num_batches: int
    batch_samples: int


def measure_access(
    config: DataConfig, schema: DataSchema, batch_size: int, world_size: int, seed: int
) -> MeasuredAccess:
    """Statistics of about `access.num_samples` samples: of the global batches that training begins with.

    Memory is bounded by what reading takes, one global batch and a sketch a feature. Torch is not loaded.

    Args:
        config: the data, of a kind that reads files.
        schema: what `open_schema` gave for it.
        batch_size: samples per rank.
        world_size: ranks.
        seed: of the shuffling: that of the run.

    Raises:
        DataError: what reading raises; `too_short` where the data has no batch of one rank.
    """
    num_batches = max(1, config.access.num_samples // (batch_size * world_size))
    # Read as batches of one rank after the other: where the data ends before a global batch, some of them are there.
    batches = read_training_rows(config, schema, batch_size, seed)
    return summarise_batches(islice(batches, num_batches * world_size), schema, world_size)


def summarise_batches(batches: Iterable[Rows], schema: DataSchema, world_size: int) -> MeasuredAccess:
    """Statistics of some batches.

    Args:
        batches: of the ranks in turn, equally large, one or more; those at the end that make no global batch are left
            out, unless there are no others.
        schema: their features.
        world_size: ranks, so many batches make a global one.
    """
    sketches: list[FeatureSketch] = []
    num_batches = batch_samples = 0
    for features in _global_batches(batches, world_size):
        samples = len(features[0].lengths)
        if samples < batch_samples:
            break
        found = [FeatureSketch.of(feature.values, feature.lengths) for feature in features]
        sketches = [a.merge(b) for a, b in zip(sketches, found, strict=True)] if sketches else found
        num_batches, batch_samples = num_batches + 1, samples
    return MeasuredAccess(_statistics(sketches, schema, batch_samples), num_batches, batch_samples)


def _global_batches(batches: Iterable[Rows], world_size: int) -> Iterator[list[Ragged]]:
    """The features of every global batch, the last one perhaps of fewer ranks."""
    ranks = iter(batches)
    while joined := [rows.features for rows in islice(ranks, world_size)]:
        yield [
            Ragged(np.concatenate([part.values for part in parts]), np.concatenate([part.lengths for part in parts]))
            for parts in zip(*joined, strict=True)
        ]


def _statistics(
    sketches: Sequence[FeatureSketch], schema: DataSchema, batch_samples: int
) -> dict[str, AccessStatistics]:
    """The statistics that sketches of the schema's features hold."""
    num_rows = np.array([feature.num_embeddings for feature in schema.features])
    used_rows, coverage = estimate_coverage(sketches, num_rows)
    return {
        name: AccessStatistics(
            samples=batch_samples,
            pooling=sketch.pooling.pooling(),
            distinct_rows=sketch.reuse.distinct_rows,
            reuse=sketch.reuse.shares(),
            used_rows=float(used),
            coverage=tuple(curve.tolist()),
        )
        for name, sketch, used, curve in zip(schema.feature_names, sketches, used_rows, coverage, strict=True)
    }
