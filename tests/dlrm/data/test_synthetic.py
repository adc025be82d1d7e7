"""Synthetic samples: as declared, the same at every seek, drifting on time, learnable."""

import numpy as np
import pytest
import torch

from dlrm.data.batches import Batch
from dlrm.data.config import DataConfig, DriftConfig, SyntheticConfig, SyntheticTableConfig
from dlrm.data.factory import open_schema, open_stream
from dlrm.data.synthetic_tables import ZipfRows, draw_tables
from dlrm.errors import DataError
from tests.dlrm.data.helpers import drain, same
from tests.dlrm.data.test_table import auc

TWO_TABLES = SyntheticConfig(
    num_samples=4096,
    num_eval_samples=1024,
    num_dense=3,
    tables=[
        SyntheticTableConfig("one", 1000, 8, 1.0, 1.1),
        SyntheticTableConfig("many", 500, 16, 6.0, 0.0),
        SyntheticTableConfig("few", 40, 16, 0.4, 1.0),
    ],
)


def batches(
    synthetic: SyntheticConfig, split: str = "train", rank: int = 0, epochs: int = 1, seed: int = 0
) -> list[Batch]:
    """All batches of 2 ranks with 256 samples each."""
    config = DataConfig(synthetic=synthetic)
    return drain(open_stream(config, open_schema(config), split, 256, rank, 2, seed=seed, num_epochs=epochs))


def test_drawn_tables_keep_to_the_ranges_and_the_seed() -> None:
    config = SyntheticConfig(num_tables=200, embedding_dims=[8, 64], min_rows=10, max_rows=10**6)
    tables = draw_tables(config)
    assert tables == draw_tables(config) and tables != draw_tables(SyntheticConfig(seed=1, num_tables=200))
    rows = np.array([table.num_embeddings for table in tables])
    assert rows.min() >= 10 and rows.max() <= 10**6 and 10**2.7 < np.median(rows) < 10**4.3
    assert {table.embedding_dim for table in tables} == {8, 64}
    assert all(1 <= table.pooling_factor <= 8 and 0.8 <= table.zipf_alpha <= 1.2 for table in tables)


def test_batches_are_as_declared() -> None:
    made = batches(TWO_TABLES)
    assert len(made) == 8
    lengths = torch.cat([batch.sparse_features.lengths().reshape(3, 256) for batch in made], dim=1).double()
    assert (lengths[0] == 1).all()
    assert lengths[1].min() >= 1 and lengths[1].std() > 1 and lengths[1].mean() == pytest.approx(6, abs=0.3)
    assert lengths[2].mean() == pytest.approx(0.4, abs=0.06)
    for batch in made:
        jagged = batch.sparse_features.to_dict()
        for name, rows in (("one", 1000), ("many", 500), ("few", 40)):
            assert jagged[name].values().min() >= 0 and jagged[name].values().max() < rows
        assert batch.dense_features.shape == (256, 3) and batch.dense_features.dtype == torch.float32
        assert set(batch.labels.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, 1.3])
def test_rows_fall_by_the_power_law(alpha: float) -> None:
    rows = ZipfRows(np.array([10**7]), np.array([alpha]))
    drawn = rows.ranks(np.random.default_rng(0).random(400_000), np.zeros(400_000, np.intp))
    assert drawn.min() >= 0 and drawn.max() < 10**7
    low, high = ((drawn >= start) & (drawn < 2 * start) for start in (1000, 100_000))
    # Between n and 2 n fall rows in proportion to n^(1 - alpha).
    expected = 100 ** (1 - alpha)
    if low.sum() > 500 and high.sum() > 500:
        assert high.sum() / low.sum() == pytest.approx(expected, rel=0.15)
    head = (drawn < 1000).mean()
    assert head == pytest.approx(float(rows.head_mass(1000)[0]), abs=0.005)


def test_ranks_seeds_splits_and_epochs_draw_different_samples() -> None:
    first = batches(TWO_TABLES, epochs=2)
    others = [
        batches(TWO_TABLES, rank=1)[0],
        batches(TWO_TABLES, seed=1)[0],
        batches(TWO_TABLES, "eval")[0],
        first[1],
        first[8],
    ]
    assert not any(same(first[0], other) for other in others)
    assert same(first[0], batches(TWO_TABLES)[0])


def test_held_out_samples_are_the_same_in_every_pass() -> None:
    twice = batches(TWO_TABLES, "eval", epochs=2)
    assert len(twice) == 4
    assert same(twice[0], twice[2]) and same(twice[1], twice[3])


def test_a_seek_far_ahead_gives_what_the_run_would_have_met() -> None:
    config = DataConfig(synthetic=TWO_TABLES)
    whole = batches(TWO_TABLES, epochs=3)
    stream = open_stream(config, open_schema(config), "train", 256, 0, 2, seed=0, num_epochs=3)
    stream.seek({"epoch": 2, "batch": 5})
    rest = drain(stream)
    assert len(rest) == 3 and all(same(a, b) for a, b in zip(rest, whole[21:], strict=True))
    stream = open_stream(config, open_schema(config), "train", 256, 0, 2, seed=0, num_epochs=3)
    stream.seek({"epoch": 1_000_000, "batch": 9})
    assert drain(stream) == []


def test_drift_comes_at_its_step_to_its_tables() -> None:
    drift = [
        DriftConfig(step=10, tables=["many"], pooling_factor=20.0),
        DriftConfig(step=4, tables=["one"], hot_rows_shift=0.5),
    ]
    settings = {**vars(TWO_TABLES), "drift": drift}
    still, moved = batches(TWO_TABLES, epochs=2), batches(SyntheticConfig(**settings), epochs=2)
    assert all(same(a, b) for a, b in zip(still[:4], moved[:4], strict=True))
    rows = [batch.sparse_features["one"].values() for batch in moved]
    hot_share = [((row >= 500) & (row < 520)).double().mean().item() for row in rows]
    assert max(hot_share[:4]) < 0.05 and min(hot_share[4:]) > 0.3
    pooling = [batch.sparse_features["many"].lengths().double().mean().item() for batch in moved]
    assert max(pooling[:10]) < 7 and min(pooling[10:]) > 18
    assert all(
        same(a, b)
        for a, b in zip(batches(TWO_TABLES, "eval"), batches(SyntheticConfig(**settings), "eval"), strict=True)
    )


def test_huge_tables_cost_nothing() -> None:
    tables = [SyntheticTableConfig(f"t{i}", 10**10, 128, 2.0, 1.05) for i in range(4)]
    made = batches(SyntheticConfig(num_samples=512, tables=tables, num_dense=1))
    assert made[0].sparse_features.values().max() > 2**31


def test_the_length_of_an_epoch_is_known_at_once() -> None:
    config = DataConfig(synthetic=TWO_TABLES)
    stream = open_stream(config, open_schema(config), "train", 300, 0, 2, seed=0)
    assert stream.num_batches == 4096 // 600
    assert stream.report().num_dropped_rows == 4096 % 600


def test_an_epoch_below_a_global_batch_is_an_error() -> None:
    with pytest.raises(
        DataError, match=r"num_samples = 100 is less than one global batch of 512 samples \(2 ranks x batch size 256\)"
    ):
        batches(SyntheticConfig(num_samples=100))


def test_the_teacher_can_be_learnt_in_a_few_hundred_steps() -> None:
    config = DataConfig(synthetic=SyntheticConfig(num_eval_samples=8192))
    schema = open_schema(config)
    tables = torch.nn.ModuleList(
        torch.nn.EmbeddingBag(feature.num_embeddings, 1, mode="sum", include_last_offset=True)
        for feature in schema.features
    )
    for table in tables:
        torch.nn.init.zeros_(table.weight)
    dense = torch.nn.Linear(schema.num_dense, 1)
    optimizer = torch.optim.Adagrad([*tables.parameters(), *dense.parameters()], lr=0.1)

    def logits(batch: Batch) -> torch.Tensor:
        features = batch.sparse_features.to_dict().values()
        bags = [table(feature.values(), feature.offsets()) for table, feature in zip(tables, features, strict=True)]
        return (dense(batch.dense_features) + torch.stack(bags).sum(0))[:, 0]

    with open_stream(config, schema, "train", 1024, 0, 1, seed=0) as stream:
        for _ in range(200):
            batch = next(stream)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits(batch), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    held_out = drain(open_stream(config, schema, "eval", 1024, 0, 1, seed=0, num_epochs=1))
    scores = torch.cat([logits(batch).detach() for batch in held_out])
    # A linear learner, without the interaction: a DLRM does better.
    assert auc(scores, torch.cat([batch.labels for batch in held_out])) > 0.75
