"""A small model that trains on real ranks and is moved from plan to plan, and what it holds at the end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.optim.keyed import CombinedOptimizer

from dlrm.config import DenseOptimizerConfig, ReshardConfig, SparseOptimizerConfig
from dlrm.model import build_dlrm
from dlrm.optimizers import combine_optimizers
from dlrm.reshard.migration import Migrated, Migration
from dlrm.reshard.stages import At, no_fault
from dlrm.sharded import EMBEDDINGS_PATH, shard_model
from planner.plan import ShardingPlan, TablePlacement
from planner.sharding import Shard, ShardingType
from planner.topology import Topology
from planner.torchrec_bridge import table_name
from tests.dlrm.test_equivalence import (
    LOCAL_BATCH,
    MIXED,
    MODEL,
    NUM_DENSE,
    RATES,
    SEED,
    TABLES,
    UNEVEN,
    cut,
    make_plan,
)

CPU = torch.device("cpu")
DENSE = DenseOptimizerConfig(kind="adam", learning_rate=0.01)
EPS = {"sgd": 0.0, "rowwise_adagrad": 1e-3, "adam": 1e-2}
"""Large: where a gradient is nearly zero, a small one makes a whole step of what was rounded off, under any plan."""
ONE_RANK = "one_rank"
WHOLE_ROWS = {
    "table_wise": (ShardingType.TABLE_WISE,) * len(TABLES),
    "row_wise": (ShardingType.ROW_WISE,) * len(TABLES),
    "table_row_wise": (ShardingType.TABLE_ROW_WISE,) * len(TABLES),
    "data_parallel": (ShardingType.DATA_PARALLEL,) * len(TABLES),
    ONE_RANK: (),
}
"""Kinds of plans that cut no columns."""
CUT_COLUMNS = {"column_wise": (ShardingType.COLUMN_WISE,) * len(TABLES), "uneven": UNEVEN, "mixed": MIXED}
KINDS = WHOLE_ROWS | CUT_COLUMNS

Route = tuple[str, ...]
"""Kinds of plans, one for every step; where two that follow one another differ, the tables are moved between them."""


def plan_of(name: str, where: Topology) -> ShardingPlan:
    """The plan of a kind; of `one_rank` the last rank holds everything."""
    if name != ONE_RANK:
        return make_plan(KINDS[name], where)
    last = where.world_size - 1
    placements = (
        TablePlacement(t.name, ShardingType.TABLE_WISE, (Shard(last, 0, t.num_embeddings, 0, t.embedding_dim),))
        for t in TABLES
    )
    return ShardingPlan(where.world_size, tuple(placements))


@dataclass(frozen=True, eq=False)
class Piece:
    """A rectangle of one table with its optimizer state, copied; read through TorchRec's own state dictionaries.

    Attributes:
        table: The table.
        row_offset: Its first row.
        col_offset: Its first column.
        values: float32 [rows, columns] each: the weight, then every state; a row's single value stands in all columns.
        counter: What the optimizer counted, where it says so.
    """

    table: str
    row_offset: int
    col_offset: int
    values: tuple[np.ndarray, ...]
    counter: float | None


class Job:
    """One rank's model under a plan, with what it has lost so far.

    Attributes:
        plan: That trains.
        losses: Of all steps, of this rank's samples.
        key_orders: The order of the collection's keys in every step.
    """

    def __init__(
        self, rank: int, where: Topology, kind: str, plan: ShardingPlan, config: ReshardConfig | None = None
    ) -> None:
        self._rank, self.plan = rank, plan
        sparse = SparseOptimizerConfig(kind=kind, learning_rate=RATES[kind], eps=EPS[kind])
        model = shard_model(build_dlrm(MODEL, TABLES, NUM_DENSE, SEED), TABLES, plan, where, sparse, CPU, SEED)
        self.model, self._size = model, LOCAL_BATCH * where.world_size
        self.optimizer: CombinedOptimizer = combine_optimizers(model, sparse, DENSE)
        self._migration = Migration(
            model,
            EMBEDDINGS_PATH,
            sparse,
            where,
            CPU,
            config or ReshardConfig(chunk_bytes=1 << 16),
            lambda before: combine_optimizers(model, sparse, DENSE, before),
        )
        self.losses: list[float] = []
        self.key_orders: list[tuple[str, ...]] = []

    @property
    def collection(self) -> torch.nn.Module:
        """What stands in the model now."""
        return self.model.module.model.sparse_arch.embedding_bag_collection

    def step(self) -> None:
        """Train on the next batch."""
        part = slice(self._rank * LOCAL_BATCH, (self._rank + 1) * LOCAL_BATCH)
        batch = cut(len(self.losses), self._size, part)
        hook = self.collection.register_forward_hook(lambda _, __, out: self.key_orders.append(tuple(out.keys())))
        self.optimizer.zero_grad()
        loss, _ = self.model(batch)
        loss.backward()
        self.optimizer.step()
        hook.remove()
        self.losses.append(loss.item())

    def move(self, plan: ShardingPlan, at: At = no_fault) -> Migrated:
        """Move to another plan; where that fails this one stands."""
        migrated = self._migration.run(self.plan, plan, self.__dict__.pop("optimizer"), at)
        self.optimizer = migrated.optimizer
        if migrated.fault is None:
            self.plan = plan
        return migrated

    def scale_rates(self, factor: float) -> None:
        """Change all learning rates, as a schedule does."""
        for group in self.optimizer.param_groups:
            group["lr"] *= factor

    def pieces(self) -> list[Piece]:
        """What this rank holds."""
        states = self.optimizer.state_dict()["state"]
        found: list[Piece] = []
        for key, weight in self.collection.state_dict().items():
            name = f"{EMBEDDINGS_PATH}.{key}"
            state = states.get(name) or states.get(f"replicas.{name}") or {}
            found += pieces_of(table_name(key.split(".")[-2]), weight, state)
        return found


def pieces_of(table: str, weight: torch.Tensor, state: dict[str, torch.Tensor]) -> Iterator[Piece]:
    """The rectangles of a table on this rank, from its entries in the state of the module and of the optimizer."""
    counter = float(state["step"]) if "step" in state else None
    tensors = [value for name, value in state.items() if name != "step"]
    if not isinstance(weight, ShardedTensor):
        yield Piece(table, 0, 0, _copies([weight, *tensors]), counter)
        return
    for number, shard in enumerate(weight.local_shards()):
        row, col = shard.metadata.shard_offsets
        local = [each.local_shards()[number].tensor for each in tensors]
        yield Piece(table, row, col, _copies([shard.tensor, *local]), counter)


def _copies(tensors: Sequence[torch.Tensor]) -> tuple[np.ndarray, ...]:
    shape = tensors[0].shape
    arrays = [each.detach().numpy().reshape(shape[0], -1) for each in tensors]
    return tuple(np.broadcast_to(each, shape).copy() for each in arrays)


@dataclass(frozen=True)
class Followed:
    """What came of a route on one rank."""

    losses: list[float]
    pieces: list[Piece]
    key_orders: list[tuple[str, ...]] = field(default_factory=list)


def follow(
    rank: int,
    where: Topology,
    kind: str,
    route: Route,
    between: Callable[[Job, int], None] | None = None,
    config: ReshardConfig | None = None,
) -> Followed:
    """Train a step under every plan of a route; `between` is called with the number of each step before it."""
    job = Job(rank, where, kind, plan_of(route[0], where), config)
    for number, (before, now) in enumerate(zip((route[0], *route), route, strict=False)):
        if now != before:
            fault = job.move(plan_of(now, where)).fault
            assert fault is None, f"{kind}: {before} to {now}: {fault}"
        if between is not None:
            between(job, number)
        job.step()
    return Followed(job.losses, job.pieces(), job.key_orders)


SHAPES = {table.name: (table.num_embeddings, table.embedding_dim) for table in TABLES}


def whole_tables(
    ranks: Sequence[Sequence[Piece]], shapes: Mapping[str, tuple[int, int]] = SHAPES
) -> dict[str, list[np.ndarray]]:
    """Weight and state of every table, `[num_embeddings, embedding_dim]` each, of what all ranks hold.

    Every cell is held, and the replicas of one are all equal.
    """
    pieces = [piece for rank in ranks for piece in rank]
    tables = {}
    for name, shape in shapes.items():
        mine = [piece for piece in pieces if piece.table == name]
        tables[name] = [_whole(shape, mine, number) for number in range(len(mine[0].values))]
    return tables


def _whole(shape: tuple[int, int], pieces: Sequence[Piece], number: int) -> np.ndarray:
    whole = np.full(shape, np.nan, np.float32)
    for piece in pieces:
        rows, cols = piece.values[number].shape
        place = whole[piece.row_offset : piece.row_offset + rows, piece.col_offset : piece.col_offset + cols]
        assert (np.isnan(place) | (place == piece.values[number])).all(), piece.table
        place[:] = piece.values[number]
    assert not np.isnan(whole).any()
    return whole


def deviation(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest value that is expected."""
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))
