"""Access statistics of files, of synthetic data and as declared, against what batches really hold."""

from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlrm.checkpoint_folder import describe_settings
from dlrm.config import DenseOptimizerConfig, ModelConfig, SparseOptimizerConfig, TrainConfig
from dlrm.data.access import measure_access, summarise_batches
from dlrm.data.config import (
    AccessConfig,
    DataConfig,
    DeclaredAccessConfig,
    SyntheticConfig,
    SyntheticTableConfig,
    TableConfig,
)
from dlrm.data.coverage import estimate_coverage
from dlrm.data.factory import open_schema, open_stream, read_training_rows
from dlrm.data.known_access import apply_declared, describe_synthetic_access
from dlrm.data.rows import Ragged, Rows
from dlrm.data.schema import DataSchema, FeatureSpec
from dlrm.data.sketches import FeatureSketch
from dlrm.errors import DataError
from dlrm.size import add_access, declare_tables
from planner.access import COVERAGE_ROWS, curve_reuse
from planner.occupancy import reuse_bins

NUM_ROWS = 5_000


@pytest.fixture
def ratings(tmp_path: Path) -> DataConfig:
    """Parquet rows of users (skewed) and genres (lists of 0 to 3)."""
    generator = np.random.default_rng(1)
    genres = [generator.integers(0, 20, generator.integers(0, 4)).tolist() for _ in range(NUM_ROWS)]
    users = generator.zipf(1.2, NUM_ROWS) % 3_000
    table = pa.table({"label": generator.integers(0, 2, NUM_ROWS), "user": users, "genre": genres})
    pq.write_table(table, tmp_path / "ratings.parquet")
    columns = TableConfig(categorical={"user": 4_000, "genre": 32})
    return DataConfig(kind="table", path=str(tmp_path / "ratings.parquet"), table=columns, shuffle_rows=1_000)


def test_figures_are_those_of_the_batches_that_train(ratings: DataConfig) -> None:
    schema, ratings.access.num_samples = open_schema(ratings), 1_100
    measured = measure_access(ratings, schema, batch_size=64, world_size=4, seed=9)
    assert (measured.num_batches, measured.batch_samples) == (4, 256)
    streams = [open_stream(ratings, schema, "train", 64, rank, world_size=4, seed=9) for rank in range(4)]
    distinct: dict[str, list[int]] = {name: [] for name in schema.feature_names}
    bins, lengths = np.zeros(17), []
    for _ in range(4):
        ranks = [next(stream).sparse_features for stream in streams]
        for name in distinct:
            ids = np.concatenate([rank[name].values().numpy() for rank in ranks])
            counts = np.unique(ids, return_counts=True)[1]
            distinct[name].append(len(counts))
            bins += np.bincount(reuse_bins(counts), minlength=17) * (name == "user")
        lengths += [length for rank in ranks for length in rank["genre"].lengths().tolist()]
    for stream in streams:
        stream.close()
    found = measured.statistics
    assert {name: each.distinct_rows for name, each in found.items()} == {n: np.mean(d) for n, d in distinct.items()}
    assert found["user"].reuse == pytest.approx(bins / bins.sum())
    assert found["genre"].pooling.mean == np.mean(lengths)
    assert found["genre"].pooling.max == max(lengths) and found["genre"].pooling.p50 == np.sort(lengths)[511]
    tables = add_access(declare_tables(schema, 16), found)
    assert tables[1].pooling_factor == np.mean(lengths) and tables[0].access is found["user"]


def test_rows_read_for_statistics_are_the_streams(ratings: DataConfig) -> None:
    schema = open_schema(ratings)
    with open_stream(ratings, schema, "train", 512, rank=0, world_size=1, seed=2, num_epochs=1) as stream:
        labels = [batch.labels.tolist() for batch in stream]
    assert [rows.labels.tolist() for rows in read_training_rows(ratings, schema, 512, seed=2)] == labels


def one_feature(batch_sizes: list[int]) -> Iterator[Rows]:
    for number, size in enumerate(batch_sizes):
        ragged = Ragged(np.full(size, number), np.ones(size, np.int64))
        yield Rows(np.zeros((size, 0), np.float32), np.zeros(size, np.float32), (ragged,))


@pytest.mark.parametrize(("ranks", "batches", "samples", "distinct"), [(7, 2, 24, 3.0), (2, 1, 16, 2.0)])
def test_a_part_of_a_global_batch_counts_only_where_there_is_no_whole_one(
    ranks: int, batches: int, samples: int, distinct: float
) -> None:
    schema = DataSchema((), (FeatureSpec("a", 100),))
    measured = summarise_batches(one_feature([8] * ranks), schema, world_size=3)
    assert (measured.num_batches, measured.batch_samples) == (batches, samples)
    assert measured.statistics["a"].distinct_rows == distinct


@pytest.mark.parametrize(("num_rows", "alpha"), [(2_000, 1.0), (60_000, 0.9), (60_000, 0.0), (400_000, 1.1)])
def test_a_sample_foretells_distinct_rows_of_other_batches(num_rows: int, alpha: float) -> None:
    generator = np.random.default_rng(8)
    chances = np.arange(1, num_rows + 1.0) ** -alpha
    limits = np.cumsum(chances / chances.sum())

    def draw(ids: int) -> np.ndarray:
        return np.minimum(np.searchsorted(limits, generator.random(ids)), num_rows - 1)

    batches = [FeatureSketch.of(draw(10_000), np.ones(10_000, np.int64)) for _ in range(6)]
    used, coverage = estimate_coverage([reduce(FeatureSketch.merge, batches)], np.array([num_rows]))
    for ids in (1_000, 10_000, 60_000, 120_000):
        real = np.mean([len(np.unique(draw(ids))) for _ in range(3)])
        foretold = curve_reuse(coverage, used, np.array([float(ids)])).distinct_rows[0]
        assert foretold == pytest.approx(real, rel=0.05), ids


def test_rows_that_nobody_asks_for_are_not_in_use() -> None:
    ids = np.random.default_rng(0).integers(0, 390, 30_000) * 101
    used, coverage = estimate_coverage([FeatureSketch.of(ids, np.ones(30_000, np.int64))], np.array([100_000]))
    assert used[0] == pytest.approx(390, abs=2)
    assert (coverage[0][COVERAGE_ROWS >= 400] == 1.0).all()
    assert coverage[0][COVERAGE_ROWS == 192] == pytest.approx(192 / 390, rel=0.1)


def test_synthetic_statistics_are_those_of_the_batches_drawn() -> None:
    tables = [
        SyntheticTableConfig("hot", 3_000, 16, pooling_factor=4.5, zipf_alpha=1.3),
        SyntheticTableConfig("flat", 200, 16, pooling_factor=1.0, zipf_alpha=0.0),
        SyntheticTableConfig("rare", 50_000, 16, pooling_factor=0.3, zipf_alpha=0.9),
    ]
    config = DataConfig(synthetic=SyntheticConfig(tables=tables))
    schema, samples = open_schema(config), 2_048
    known = describe_synthetic_access(config.synthetic, samples)
    with open_stream(config, schema, "train", samples, rank=0, world_size=1, seed=3) as stream:
        drawn = [next(stream).sparse_features for _ in range(8)]
    for name, each in known.items():
        counts = [np.unique(batch[name].values().numpy(), return_counts=True)[1] for batch in drawn]
        lengths = np.concatenate([batch[name].lengths().numpy() for batch in drawn])
        assert each.samples == samples
        assert each.distinct_rows == pytest.approx(np.mean([len(c) for c in counts]), rel=0.03)
        bins = np.bincount(reuse_bins(np.concatenate(counts)), minlength=17)
        assert each.reuse == pytest.approx(bins / bins.sum(), abs=0.02)
        assert each.pooling.mean == pytest.approx(lengths.mean(), rel=0.05)
        assert [each.pooling.p50, each.pooling.p90] == np.quantile(lengths, [0.5, 0.9]).tolist()
        assert abs(each.pooling.max - lengths.max()) <= 3


SCHEMA = DataSchema((), (FeatureSpec("user_a", 1_000, 2.0), FeatureSpec("user_b", 1_000), FeatureSpec("item", 64)))


def test_what_is_declared_wins_over_what_was_found() -> None:
    synthetic = [SyntheticTableConfig("user_a", 1_000, 16, 2.0, 1.2), SyntheticTableConfig("item", 64, 16, 1.0, 0.0)]
    found = describe_synthetic_access(SyntheticConfig(tables=synthetic), 128)
    declared = [
        DeclaredAccessConfig(["user_*"], pooling_factor=6.0),
        DeclaredAccessConfig(["user_b"], zipf_alpha=0.0),
    ]
    merged = apply_declared(AccessConfig(declared=declared), SCHEMA, found, 128)
    assert merged["item"] == found["item"]
    assert merged["user_a"].pooling.mean == merged["user_b"].pooling.mean == 6.0
    assert merged["user_a"].pooling.max == pytest.approx(3 * found["user_a"].pooling.max)
    assert merged["user_a"].coverage == found["user_a"].coverage
    assert merged["user_a"].distinct_rows > found["user_a"].distinct_rows
    uniform = 1_000 * (1 - (1 - 1 / 1_000) ** (128 * 6))
    assert merged["user_b"].distinct_rows == pytest.approx(uniform)


def test_declarations_of_nothing_are_told_at_once() -> None:
    declared = [DeclaredAccessConfig(["usr_a", "item"], pooling_factor=1.0), DeclaredAccessConfig(["item"])]
    with pytest.raises(DataError) as error:
        apply_declared(AccessConfig(declared=declared), SCHEMA, {}, 128)
    assert "declared[0].tables names 'usr_a', but there is no such table; did you mean 'user_a'?" in str(error.value)
    assert "declared[1] declares nothing: name tables, and pooling_factor or zipf_alpha" in str(error.value)
    assert error.value.reason == "config"


def test_a_run_may_be_resumed_with_other_statistics() -> None:
    def settings(access: AccessConfig) -> dict[str, object]:
        others = (SparseOptimizerConfig(), DenseOptimizerConfig(), TrainConfig())
        return describe_settings(ModelConfig(), DataConfig(access=access), *others, world_size=2)

    other = AccessConfig(num_samples=7, declared=[DeclaredAccessConfig(["a"], 2.0)])
    assert settings(AccessConfig()) == settings(other)
