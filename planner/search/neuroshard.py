"""NeuroShard's search as it was published, with our cost model and memory: the baseline of table and column shards.

Source: Zha et al. 2023, NeuroShard (arXiv 2305.01868), algorithms 1 and 2, and daochenzha/neuroshard,
`neurosharder.py`, from which all constants come and which settles every tie. What differs: the published score of a
plan, the largest sum of compute and communication over devices, is the estimated step here, the very objective of all
strategies; compute cost is the estimator's lookups, forward and backward; memory and constraints are the problem's.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import AdditiveEstimator
from planner.errors import InfeasibleError, PlanningError
from planner.memory import capacity_bytes, shard_bytes
from planner.plan import ShardingPlan, TablePlacement
from planner.problem import PlanningProblem
from planner.search.placement import build_units, check_total
from planner.sharding import FREE_TYPES, Shard, ShardingType
from planner.shards import TYPE_CODE, ShardArrays
from planner.tables import DIM_MULTIPLE

NUM_BEAMS = 3
"""Nodes that are split further at every level (k)."""

NUM_CANDIDATES = 10
"""Pieces of a node that are halved in turn: so many by size and so many by cost (n)."""

MAX_SPLITS = 10
"""Levels of the beam, one halving each (L)."""

CAPS = 1.0 + 0.05 * np.arange(11)
"""Columns that a device may have, over the mean of all devices: a greedy pass for each, the best counts."""

CHUNK_LOADS = 1 << 24
"""Loads of devices that are held at once, which bounds memory."""


@dataclass(frozen=True)
class NeuroShardSearch:
    """A beam over halvings of columns, each node placed by greedy passes under a cap on columns.

    It knows table_wise and column_wise alone, and takes devices for alike but for their memory and speed. A node that
    no pass can place scores as infinite: from there the beam has no slope.

    Attributes:
        estimator: Prices pieces, devices and plans.
    """

    estimator: AdditiveEstimator

    def plan(self, problem: PlanningProblem) -> ShardingPlan:
        """The best plan of all passes.

        Raises:
            InfeasibleError: No pass placed all tables.
            PlanningError: Tables are to be kept together, or may be neither whole nor cut by columns (reason
                `strategy`).
        """
        _check_expressible(problem)
        check_total(problem, build_units(problem))
        search = _Search(problem, self.estimator)
        node = search.start()
        found, beam = search.place([node])[0], [node]
        for _ in range(MAX_SPLITS):
            nodes = [split for each in beam for split in search.splits(each)]
            if not nodes:
                break
            placed = search.place(nodes)
            scores = [each.step_ms for each in placed]
            found = min(found, placed[int(np.argmin(scores))], key=lambda each: each.step_ms)
            beam = [nodes[index] for index in np.argsort(scores, kind="stable")[:NUM_BEAMS]]
        if not np.isfinite(found.step_ms):
            raise InfeasibleError(
                f"NeuroShard's search: no greedy pass placed all tables, whole or after up to {MAX_SPLITS} halvings of "
                f"columns, with at most {CAPS[-1]} times the mean columns on a device",
                shortfall_bytes=0,
            )
        return _build_plan(problem, found)


@dataclass(frozen=True, eq=False)
class _Node:
    """Tables cut into P pieces.

    Attributes:
        table: int64 [P], position of each piece's table.
        halvings: int64 [P], how often the table was halved to get it.
    """

    table: NDArray[np.int64]
    halvings: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Placed:
    """A node with the best of its passes.

    Attributes:
        node: The pieces.
        ranks: int64 [P].
        step_ms: Estimated step; infinite where no pass placed all pieces.
    """

    node: _Node
    ranks: NDArray[np.int64]
    step_ms: float


class _Search:
    """Prices of all pieces that halving can give, and the passes that place them.

    Arrays over pieces are indexed [table, halvings].
    """

    def __init__(self, problem: PlanningProblem, estimator: AdditiveEstimator) -> None:
        self.problem, self.estimator = problem, estimator
        self.capacity = capacity_bytes(problem)
        self.is_allowed = _allowed_ranks(problem)
        self.num_halvings = _num_halvings(problem)
        self.must_split = np.array([_types(problem, name) == (ShardingType.COLUMN_WISE,) for name in problem.tables])
        shards = _pieces(problem, int(self.num_halvings.max()))
        shape = (len(self.num_halvings), -1)
        loads = estimator.shard_loads(problem, shards)
        first = np.zeros(len(shards), dtype=np.int64)
        self.loads = loads.reshape(*shape, loads.shape[-1])
        self.num_bytes = shard_bytes(problem, shards).reshape(shape)
        self.cost_ms = estimator.lookup_ms(problem, loads, first).sum(axis=0).reshape(shape)
        # A kernel pools once for each feature, which is what travels.
        self.num_cols = (shards.num_cols * problem.arrays.num_features[shards.table]).reshape(shape)

    def start(self) -> _Node:
        """All tables whole."""
        num_tables = len(self.num_halvings)
        return _Node(np.arange(num_tables), np.zeros(num_tables, dtype=np.int64))

    def splits(self, node: _Node) -> list[_Node]:
        """The nodes with one more halving: of the largest and the dearest pieces, by position."""
        at = (node.table, node.halvings)
        largest, dearest = (
            np.argsort(key[at], kind="stable")[-NUM_CANDIDATES:] for key in (self.num_bytes, self.cost_ms)
        )
        candidates = np.union1d(largest, dearest)
        return [
            _halve(node, index) for index in candidates if node.halvings[index] < self.num_halvings[node.table[index]]
        ]

    def place(self, nodes: list[_Node]) -> list[_Placed]:
        """Each node with its best pass; all have equally many pieces."""
        per_node = len(CAPS) * len(self.capacity) * self.loads.shape[-1]
        size = max(1, CHUNK_LOADS // per_node)
        return [each for at in range(0, len(nodes), size) for each in self._place(nodes[at : at + size])]

    def _place(self, nodes: list[_Node]) -> list[_Placed]:
        table, halvings = (np.stack([getattr(node, name) for node in nodes]) for name in ("table", "halvings"))
        # Dearest first, of equal ones the last first.
        order = np.argsort(self.cost_ms[table, halvings], axis=1, kind="stable")[:, ::-1]
        rows = np.arange(len(nodes))[:, None]
        total = self.num_cols[table, halvings].sum(axis=1)
        caps = np.multiply.outer(total / len(self.capacity), CAPS).ravel()
        in_turn, how = (np.repeat(each[rows, order], len(CAPS), axis=0) for each in (table, halvings))
        ranks, loads, is_placed = self._pass(in_turn, how, caps)
        step_ms = np.where(is_placed, self._steps_ms(loads), np.inf)
        scores = step_ms.reshape(len(nodes), len(CAPS))
        scores[(self.must_split[table] & (halvings == 0)).any(axis=1)] = np.inf
        best = scores.argmin(axis=1)
        in_order = ranks.reshape(len(nodes), len(CAPS), -1)[rows[:, 0], best]
        placed = np.empty_like(in_order)
        placed[rows, order] = in_order
        return [_Placed(node, placed[at], float(scores[at, best[at]])) for at, node in enumerate(nodes)]

    def _pass(
        self, table: NDArray[np.int64], halvings: NDArray[np.int64], caps: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
        """Greedy passes side by side: every piece to the device of least lookup time so far that has room.

        Of equal devices the one with fewer bytes takes it, then the first.

        Args:
            table: [N, P], tables of the pieces in the order of each pass.
            halvings: [N, P], of the pieces.
            caps: [N], most columns on a device.

        Returns:
            Ranks [N, P], loads [N, W, K], and which passes [N] placed all pieces.
        """
        num_passes, num_pieces = table.shape
        shape = (num_passes, len(self.capacity))
        cost_ms, num_bytes, num_cols = np.zeros(shape), np.zeros(shape, dtype=np.int64), np.zeros(shape)
        loads = np.zeros((*shape, self.loads.shape[-1]))
        ranks = np.zeros((num_passes, num_pieces), dtype=np.int64)
        is_placed = np.ones(num_passes, dtype=bool)
        passes = np.arange(num_passes)
        for step in range(num_pieces):
            at = (table[:, step], halvings[:, step])
            has_room = self.is_allowed[table[:, step]] & (num_bytes + self.num_bytes[at][:, None] <= self.capacity)
            has_room &= num_cols + self.num_cols[at][:, None] <= caps[:, None]
            is_placed &= has_room.any(axis=1)
            rank = _least(np.where(has_room, cost_ms, np.inf), num_bytes)
            num_bytes[passes, rank] += self.num_bytes[at]
            num_cols[passes, rank] += self.num_cols[at]
            loads[passes, rank] += self.loads[at]
            cost_ms[passes, rank] = self.estimator.lookup_ms(self.problem, loads[passes, rank], rank).sum(axis=0)
            ranks[:, step] = rank
        return ranks, loads, is_placed

    def _steps_ms(self, loads: NDArray[np.float64]) -> NDArray[np.float64]:
        """Estimated steps [N] of loads [N, W, K]."""
        return np.asarray(self.estimator.phases_ms(self.problem, loads).max(axis=-1).sum(axis=-1))


def _check_expressible(problem: PlanningProblem) -> None:
    grouped = [name for group in problem.groups if len(group) > 1 for name in group]
    stuck = [name for name in problem.tables if not _types(problem, name)]
    found = [f"tables {', '.join(grouped)} are kept together"] if grouped else []
    found += [f"tables {', '.join(stuck)} may be neither {' nor '.join(FREE_TYPES)}"] if stuck else []
    if found:
        raise PlanningError(
            "strategy neuroshard: NeuroShard's search cannot express this: "
            + "; ".join(found)
            + "; use another strategy",
            reason="strategy",
        )


def _types(problem: PlanningProblem, name: str) -> tuple[ShardingType, ...]:
    """Those of the two types that the table's constraints allow."""
    allowed = problem.rules[name].sharding_types
    return tuple(each for each in FREE_TYPES if allowed is None or each in allowed)


def _allowed_ranks(problem: PlanningProblem) -> NDArray[np.bool_]:
    """Whether a table may be on a rank [T, W]."""
    allowed = np.ones((len(problem.tables), problem.topology.world_size), dtype=bool)
    for index, name in enumerate(problem.tables):
        ranks = problem.rules[name].ranks
        if ranks is not None:
            allowed[index] = np.isin(problem.topology.ranks, ranks)
    return allowed


def _num_halvings(problem: PlanningProblem) -> NDArray[np.int64]:
    """How often each table [T] can be halved: as long as its parts are multiples of `DIM_MULTIPLE` columns."""
    quads = problem.arrays.num_cols.astype(np.int64) // DIM_MULTIPLE
    may_split = [ShardingType.COLUMN_WISE in _types(problem, name) for name in problem.tables]
    # The lowest bit that is set is the largest power of two that divides a number.
    return np.where(may_split, np.log2(quads & -quads).astype(np.int64), 0)


def _pieces(problem: PlanningProblem, most_halvings: int) -> ShardArrays:
    """Every table [T] after 0 to `most_halvings` halvings; those that cannot be are never placed."""
    num_tables = len(problem.tables)
    halvings = np.tile(np.arange(most_halvings + 1), num_tables)
    table = np.repeat(np.arange(num_tables), most_halvings + 1)
    whole, cut = TYPE_CODE[ShardingType.TABLE_WISE], TYPE_CODE[ShardingType.COLUMN_WISE]
    return ShardArrays(
        table=table,
        rank=np.zeros_like(table),
        type_code=np.where(halvings == 0, whole, cut),
        num_rows=problem.arrays.num_rows[table],
        num_cols=problem.arrays.num_cols[table] / 2.0**halvings,
    )


def _halve(node: _Node, index: int) -> _Node:
    """The node with one piece halved: one half in its place, the other at the end."""
    halvings = node.halvings.copy()
    halvings[index] += 1
    return _Node(np.append(node.table, node.table[index]), np.append(halvings, halvings[index]))


def _least(cost_ms: NDArray[np.float64], num_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The position [N] of the least cost [N, W], of equal ones that of the fewest bytes."""
    is_least = cost_ms == cost_ms.min(axis=1, keepdims=True)
    return np.where(is_least, num_bytes, np.iinfo(np.int64).max).argmin(axis=1)


def _build_plan(problem: PlanningProblem, found: _Placed) -> ShardingPlan:
    """The plan of a node's best pass; pieces of a table lie side by side, widest first."""
    placements = []
    for index, table in enumerate(problem.workload.tables):
        pieces = np.flatnonzero(found.node.table == index)
        pieces = pieces[np.argsort(found.node.halvings[pieces], kind="stable")]
        sharding_type = ShardingType.TABLE_WISE if len(pieces) == 1 else ShardingType.COLUMN_WISE
        widths = table.embedding_dim >> found.node.halvings[pieces]
        starts = np.cumsum(widths) - widths
        ranks = found.ranks[pieces]
        shards = tuple(
            Shard(int(rank), 0, table.num_embeddings, int(start), int(width))
            for rank, start, width in zip(ranks, starts, widths, strict=True)
        )
        placements.append(TablePlacement(table.name, sharding_type, shards))
    return ShardingPlan(problem.topology.world_size, tuple(placements))
