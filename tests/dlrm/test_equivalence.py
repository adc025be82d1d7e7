"""A plan never changes what is learned: sharded training on real gloo ranks against one process."""

import numpy as np
import pytest
import torch
from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm.config import DenseOptimizerConfig, ModelConfig, SparseOptimizerConfig
from dlrm.data.batches import Batch
from dlrm.model import build_dlrm
from dlrm.optimizers import combine_optimizers
from dlrm.sharded import shard_model
from dlrm.shards import BLOCK_ROWS, draw_block, local_shards
from dlrm.touched_rows_adam import TouchedRowsAdam
from planner.plan import ShardingPlan, TablePlacement
from planner.sharding import Shard, ShardingOption, ShardingType, enumerate_options
from planner.tables import OptimizerKind, TableSpec
from planner.topology import Device, DeviceType, Link, Topology
from planner.torchrec_bridge import module_name
from tests.ranks import run_ranks

SEED, STEPS, LOCAL_BATCH, NUM_DENSE = 5, 20, 8, 4
TABLES = (
    TableSpec("a", 50, 32, ("a",), 3.0),
    TableSpec("b", 31, 16, ("b",), 1.0),
    TableSpec("c", 1000, 64, ("c",), 5.0),
    TableSpec("d", 7, 32, ("d",), 2.0),
)
MODEL = ModelConfig(embedding_dim=32, dense_arch=[16], over_arch=[16])
RATES = {"sgd": 5.0, "rowwise_adagrad": 0.05, "adam": 0.01}
DENSE = DenseOptimizerConfig(kind="sgd", learning_rate=0.1)
TYPES = tuple(ShardingType)
UNEVEN: tuple[ShardingType, ...] = ()
MIXED = (ShardingType.TABLE_ROW_WISE, ShardingType.DATA_PARALLEL, ShardingType.COLUMN_WISE, ShardingType.TABLE_WISE)
MIXED_ROWS = (ShardingType.TABLE_ROW_WISE, ShardingType.DATA_PARALLEL, ShardingType.ROW_WISE, ShardingType.TABLE_WISE)


def topology(world_size: int, local: int) -> Topology:
    devices = tuple(
        Device(rank, f"n{rank // local}", rank % local, DeviceType.CPU, "cpu", 1 << 30, 0, 1e9, 1e9, 1e-5)
        for rank in range(world_size)
    )
    return Topology("test", devices, Link(1e9, 1e-5), Link(1e9, 1e-5))


UNEVEN_WIDTHS = {"a": (4, 28), "b": (12, 4), "c": (20, 40, 4), "d": (32,)}
"""Columns of uneven shards, as searches cut them: two of table c on one rank, one of table d."""


def make_uneven_plan(where: Topology) -> ShardingPlan:
    placements = []
    for index, table in enumerate(TABLES):
        widths = np.array(UNEVEN_WIDTHS[table.name])
        ranks = (index + np.arange(len(widths))) % 2
        shards = [
            Shard(int(rank), 0, table.num_embeddings, int(offset), int(width))
            for rank, offset, width in zip(ranks, np.cumsum(widths) - widths, widths, strict=True)
        ]
        placements.append(TablePlacement(table.name, ShardingType.COLUMN_WISE, tuple(shards)))
    return ShardingPlan(where.world_size, tuple(placements))


def make_plan(types: tuple[ShardingType, ...], where: Topology) -> ShardingPlan:
    if types == UNEVEN:
        return make_uneven_plan(where)
    placements = []
    for index, (table, kind) in enumerate(zip(TABLES, types, strict=True)):
        options = enumerate_options(table, where, OptimizerKind.SGD, sharding_types=(kind,))
        # The narrowest table has one column shard only: it stays whole.
        option = options[-1] if options else ShardingOption(table, ShardingType.TABLE_WISE, 1, where.ranks)
        ranks = [(index + i) % where.world_size for i in range(option.num_shards)] if option.is_free else option.ranks
        placements.append(TablePlacement(table.name, option.sharding_type, option.shards(ranks)))
    return ShardingPlan(where.world_size, tuple(placements))


def global_batch(step: int, size: int) -> tuple[np.ndarray, dict[str, list[np.ndarray]], np.ndarray]:
    rng = np.random.default_rng([SEED, step])
    ids = {
        t.name: [rng.integers(0, t.num_embeddings, rng.integers(0, 2 * t.pooling_factor + 1)) for _ in range(size)]
        for t in TABLES
    }
    return rng.normal(size=(size, NUM_DENSE)).astype(np.float32), ids, rng.integers(0, 2, size).astype(np.float32)


def cut(step: int, size: int, part: slice) -> Batch:
    dense, ids, labels = global_batch(step, size)
    taken = [bag for t in TABLES for bag in ids[t.name][part]]
    features = KeyedJaggedTensor(
        keys=[t.name for t in TABLES],
        values=torch.from_numpy(np.concatenate(taken).astype(np.int64)),
        lengths=torch.tensor([len(bag) for bag in taken], dtype=torch.int32),
    )
    return Batch(torch.from_numpy(dense[part]), features, torch.from_numpy(labels[part]))


def train_sharded(
    rank: int, world_size: int, plan: ShardingPlan, where: Topology, kind: str
) -> tuple[DistributedModelParallel, CombinedOptimizer]:
    """The model after all steps under a plan, and its optimizer."""
    sparse = SparseOptimizerConfig(kind=kind, learning_rate=RATES[kind])
    device = torch.device("cpu")
    model = shard_model(build_dlrm(MODEL, TABLES, NUM_DENSE, SEED), TABLES, plan, where, sparse, device, SEED)
    optimizer = combine_optimizers(model, sparse, DENSE)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss, _ = model(cut(step, LOCAL_BATCH * world_size, slice(rank * LOCAL_BATCH, (rank + 1) * LOCAL_BATCH)))
        loss.backward()
        optimizer.step()
    return model, optimizer


def train_rank(rank: int, world_size: int, plan: ShardingPlan, where: Topology, kind: str) -> dict:
    model, _ = train_sharded(rank, world_size, plan, where, kind)
    shards = [(s.table, s.row_offset, s.col_offset, s.weight.detach().numpy().copy()) for s in local_shards(model)]
    dense = {n: p.detach().numpy().copy() for n, p in model.named_parameters() if "embedding_bags" not in n}
    return {"shards": shards, "dense": dense}


def reference_optimizer(tables: list[nn.Parameter], kind: str) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(tables, RATES[kind])
    if kind == "rowwise_adagrad":
        return RowWiseAdagrad(tables, RATES[kind], eps=1e-8)
    return TouchedRowsAdam(tables, RATES[kind], (0.9, 0.999), eps=1e-8)


def train_reference(size: int, kind: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model and its tables' optimizer after all steps in this process; a step's batch has `size` samples."""
    torch.manual_seed(0)
    model = build_dlrm(MODEL, TABLES, NUM_DENSE, SEED)
    collection = model.model.sparse_arch.embedding_bag_collection.to_empty(device="cpu")
    with torch.no_grad():
        for t in TABLES:
            assert t.num_embeddings <= BLOCK_ROWS
            first = draw_block(SEED, t, 0)
            collection.embedding_bags[module_name(t.name)].weight.copy_(first)
    others = [p for name, p in model.named_parameters() if "embedding_bags" not in name]
    sparse = reference_optimizer(list(collection.parameters()), kind)
    dense = torch.optim.SGD(others, DENSE.learning_rate)
    for step in range(STEPS):
        sparse.zero_grad()
        dense.zero_grad()
        model(cut(step, size, slice(0, size)))[0].backward()
        sparse.step()
        dense.step()
    return model, sparse


CASES = {
    f"{kind}-{name}": (kind, types)
    for kind in RATES
    for name, types in {
        **{t.value: (t,) * len(TABLES) for t in TYPES},
        "mixed": MIXED,
        "mixed_rows": MIXED_ROWS,
        "uneven_columns": UNEVEN,
    }.items()
    # Row-wise Adagrad keeps one accumulator a row and column shard: split columns are another algorithm, by design.
    if not (kind == "rowwise_adagrad" and (ShardingType.COLUMN_WISE in types or types == UNEVEN))
}


def train_every_case(rank: int, world_size: int, where: Topology) -> dict[str, dict]:
    """One start of the ranks serves all cases, since importing torch takes longer than training."""
    return {
        name: train_rank(rank, world_size, make_plan(types, where), where, kind)
        for name, (kind, types) in CASES.items()
    }


@pytest.fixture(scope="module", params=[(2, 2), (4, 2)], ids=["2_ranks", "4_ranks_on_2_nodes"])
def trained(request: pytest.FixtureRequest) -> tuple[Topology, list[dict]]:
    world_size, local = request.param
    where = topology(world_size, local)
    return where, run_ranks(train_every_case, world_size, where, local_world_size=local)


@pytest.fixture(scope="module")
def references() -> dict[tuple[int, str], nn.Module]:
    return {(size, kind): train_reference(LOCAL_BATCH * size, kind)[0] for size in (2, 4) for kind in RATES}


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_weights_equal_the_single_process_reference(trained: tuple, references: dict, case: str) -> None:
    where, ranks = trained
    kind, types = CASES[case]
    reference = references[where.world_size, kind]
    bags = reference.model.sparse_arch.embedding_bag_collection.embedding_bags
    num_elements = 0
    for rank in ranks:
        for name, row, col, weight in rank[case]["shards"]:
            rows, cols = weight.shape
            expected = bags[module_name(name)].weight.detach().numpy()[row : row + rows, col : col + cols]
            np.testing.assert_allclose(weight, expected, rtol=0, atol=1e-5)
            num_elements += weight.size
        for name, value in rank[case]["dense"].items():
            expected = dict(reference.named_parameters())[name.removeprefix("module.")].detach().numpy()
            np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5)
    plan = make_plan(types, where)
    replicas = {p.name for p in plan.tables if p.sharding_type is ShardingType.DATA_PARALLEL}
    copies = {t.name: where.world_size if t.name in replicas else 1 for t in TABLES}
    assert num_elements == sum(t.num_embeddings * t.embedding_dim * copies[t.name] for t in TABLES)


def test_training_moves_the_weights() -> None:
    trained, _ = train_reference(2 * LOCAL_BATCH, "sgd")
    for t in TABLES:
        first = draw_block(SEED, t, 0)
        weight = trained.model.sparse_arch.embedding_bag_collection.embedding_bags[module_name(t.name)].weight
        assert (weight - first).abs().max() > 1e-3
