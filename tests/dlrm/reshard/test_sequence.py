"""The same for an EmbeddingCollection: one vector an id, tables all equally wide."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from torchrec.optim.keyed import CombinedOptimizer

from dlrm.config import ReshardConfig, SparseOptimizerConfig
from dlrm.reshard.migration import Migration
from planner.plan import ShardingPlan, TablePlacement
from planner.sharding import Shard, ShardingType, enumerate_options
from planner.tables import OptimizerKind
from planner.topology import Topology
from planner.torchrec_bridge import table_name
from tests.dlrm.reshard.moving import CPU, Followed, Piece, Route, deviation, pieces_of, whole_tables
from tests.dlrm.sequence_model import build_sequence_model, shard_sequence_model
from tests.dlrm.test_equivalence import LOCAL_BATCH, SEED, TABLES, cut, topology
from tests.ranks import run_ranks

EQUAL_TABLES = tuple(replace(table, embedding_dim=32) for table in TABLES)
SHAPES = {table.name: (table.num_embeddings, table.embedding_dim) for table in EQUAL_TABLES}
RATES = {"sgd": 0.05, "rowwise_adagrad": 0.05}
TOLERANCE = 1e-6
ROUTES: dict[str, Route] = {
    "sgd": ("table_wise", "row_wise", "column_wise", "table_wise", "column_wise", "row_wise", "one_rank", "row_wise"),
    "rowwise_adagrad": ("table_wise", "row_wise", "one_rank", "table_wise", "one_rank", "row_wise", "table_wise"),
}
"""SGD goes through all pairs of the first three; row-wise Adagrad through those that cut no columns."""


def plan_of(name: str, where: Topology) -> ShardingPlan:
    placements = []
    for index, table in enumerate(EQUAL_TABLES):
        if name == "one_rank":
            whole = Shard(where.world_size - 1, 0, table.num_embeddings, 0, table.embedding_dim)
            placements.append(TablePlacement(table.name, ShardingType.TABLE_WISE, (whole,)))
            continue
        option = enumerate_options(table, where, OptimizerKind.SGD, sharding_types=(ShardingType(name),))[-1]
        ranks = [(index + i) % where.world_size for i in range(option.num_shards)] if option.is_free else option.ranks
        placements.append(TablePlacement(table.name, option.sharding_type, option.shards(ranks)))
    return ShardingPlan(where.world_size, tuple(placements))


class SequenceJob:
    """One rank's model around an EmbeddingCollection."""

    def __init__(self, rank: int, where: Topology, kind: str, name: str) -> None:
        self._rank, self._where, self._name = rank, where, name
        sparse = SparseOptimizerConfig(kind=kind, learning_rate=RATES[kind])
        model = build_sequence_model(EQUAL_TABLES)
        self.model = shard_sequence_model(model, plan_of(name, where), where, sparse, CPU, SEED)
        self.optimizer = self._combine()
        self._migration = Migration(
            self.model,
            "embedding_collection",
            sparse,
            where,
            CPU,
            ReshardConfig(chunk_bytes=1 << 16),
            lambda _: self._combine(),
        )
        self.losses: list[float] = []

    def _combine(self) -> CombinedOptimizer:
        return CombinedOptimizer([("", self.model.fused_optimizer)])

    def move(self, name: str) -> None:
        old, new = plan_of(self._name, self._where), plan_of(name, self._where)
        migrated = self._migration.run(old, new, self.optimizer)
        assert migrated.fault is None
        self.optimizer, self._name = migrated.optimizer, name

    def step(self) -> None:
        part = slice(self._rank * LOCAL_BATCH, (self._rank + 1) * LOCAL_BATCH)
        batch = cut(len(self.losses), LOCAL_BATCH * self._where.world_size, part)
        self.optimizer.zero_grad()
        loss = self.model(batch.sparse_features)
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())

    def pieces(self) -> list[Piece]:
        states: Mapping = self.optimizer.state_dict()["state"]
        return [
            piece
            for key, weight in self.model.module.embedding_collection.state_dict().items()
            for piece in pieces_of(
                table_name(key.split(".")[-2]), weight, states.get(f"embedding_collection.{key}") or {}
            )
        ]


def follow(rank: int, where: Topology, kind: str, route: Route) -> Followed:
    job = SequenceJob(rank, where, kind, route[0])
    job.step()
    for before, now in pairwise(route):
        if now != before:
            job.move(now)
        job.step()
    return Followed(job.losses, job.pieces())


def go_and_come_back(rank: int, where: Topology) -> tuple[list[Piece], list[Piece]]:
    job = SequenceJob(rank, where, "rowwise_adagrad", "table_wise")
    job.step()
    before = job.pieces()
    for name in ("column_wise", "table_wise"):
        job.move(name)
    return before, job.pieces()


def run_all(rank: int, world_size: int, where: Topology) -> dict[str, tuple]:
    """One start of the ranks serves all, since importing torch takes longer than training."""
    found: dict[str, tuple] = {
        kind: (follow(rank, where, kind, route), follow(rank, where, kind, (route[0],) * len(route)))
        for kind, route in ROUTES.items()
    }
    return found | {"there_and_back": go_and_come_back(rank, where)}


@pytest.fixture(scope="module", params=[2, 4])
def found(request: pytest.FixtureRequest) -> list[dict[str, tuple]]:
    where = topology(request.param, request.param)
    return run_ranks(run_all, request.param, where)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", RATES)
def test_losses_weights_and_state_equal_the_run_that_never_moved(found: list[dict[str, tuple]], kind: str) -> None:
    moved, never_moved = ([rank[kind][at] for rank in found] for at in (0, 1))
    for mine, theirs in zip(moved, never_moved, strict=True):
        assert deviation(np.array(mine.losses), np.array(theirs.losses)) < TOLERANCE
        assert mine.losses[-1] != mine.losses[0]
    tables, expected = (whole_tables([rank.pieces for rank in each], SHAPES) for each in (moved, never_moved))
    for name in SHAPES:
        assert len(tables[name]) == len(expected[name]) == (1 if kind == "sgd" else 2)
        assert max(map(deviation, tables[name], expected[name])) < TOLERANCE


@pytest.mark.distributed
def test_cut_by_columns_and_merged_again_no_bit_has_changed(found: list[dict[str, tuple]]) -> None:
    for rank in found:
        before, after = rank["there_and_back"]
        for was, now in zip(before, after, strict=True):
            assert was.table == now.table and len(was.values) == len(now.values) == 2
            assert all(map(np.array_equal, was.values, now.values))
