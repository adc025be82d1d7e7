"""The bound by levels: a linear program over the forms of all tables, branched on how much single ranks must carry.

Legend: T tables, W ranks, P phases, J columns of the program: ways a table, or a part of it, may be placed. A column is
a whole form (table_wise, row_wise, table_row_wise, data_parallel), taken once or not at all, or a column shard of some
width, taken so often that all widths taken make up the table. t_p stands for the slowest rank's time in phase p.

The program. Minimise sum_p t_p such that every table is placed, all bytes fit into all memory, and for every
`LinearBound` and phase t_p >= constant + sum over columns of its price in the total. Each legal plan is a point of it,
so no plan's phases sum up to less. But tables may be split and mixed there at no price: it knows only averages.

Levels. Phases that grow alike form a group g. Row-wise and replicated forms put a shard on every rank, and together at
least B_g of the group's own price there. What else lies on a rank comes on top: with r_g, the level, the dearest
rank's own price of all other shards,

    sum over p in g of t_p >= constant_g + B_g + r_g,     and no other shard's own price exceeds r_g.

Where the levels are known to lie in a box low <= r <= high, forms with a dearer shard than `high` can be left out, a
table needs as many column shards as the widest that is left says, and the first inequality holds with `low`. A split
of the box in two gives two programs that are tighter, and every plan belongs to one of them: the bound is the smallest
value over all boxes. The box of the smallest value is split next, in the group and at the place where its solution
uses a shard that is dearer than the level that it pays for.
Source: Land and Doig 1960, An automatic method of solving discrete programming problems, for branch and bound.

The proof does not trust the solver: a value is computed anew from the multipliers it returns, clipped to legal signs,
and holds for any multipliers. Source: Neumaier and Shcherbina 2004, Safe bounds in linear and mixed-integer linear
programming, section 2.
"""

import heapq
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.memory import capacity_bytes
from planner.search.bound_columns import Columns, build_columns
from planner.search.bound_prices import Pricing

MAX_COLUMNS = 40_000
"""Larger programs take more than a second each and are left out."""

MOST_BOXES, COLUMN_BOXES = 160, 100_000
"""Boxes of a search: at most the first, and so many that boxes x columns do not exceed the second."""

CEILING = 64.0
"""Slower steps than so many times the bound by forms are not told apart: a bound stays below."""

ALIKE = 0.995
"""Phases whose own prices point in directions with at least this cosine make one group."""

RESOLUTION = 2e-3
"""A level that is off by less than this share of the step is not split further."""


def level_bound_ms(pricing: Pricing, form_ms: float) -> float:
    """Milliseconds that the phases of every legal plan sum up to at least; 0 where there are too many columns.

    Args:
        pricing: Prices of shards.
        form_ms: The bound by forms, above 0 and finite: the unit of the program.
    """
    columns = build_columns(pricing)
    if len(columns) > MAX_COLUMNS:
        return 0.0
    program = _Program(pricing, columns, form_ms)
    num_boxes = min(MOST_BOXES, max(1, COLUMN_BOXES // len(columns)))
    return form_ms * min(CEILING, _branch(program, num_boxes))


@dataclass(frozen=True, eq=False)
class _Box:
    """Levels [G] between two corners, and the next split of it.

    Attributes:
        low: float64 [G].
        high: float64 [G].
        value: No plan in the box is shorter.
        group: Which group to split; -1 where the solution pays for all that it uses.
        at: Where.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    value: float
    group: int
    at: float

    def halves(self) -> tuple[tuple[NDArray[np.float64], NDArray[np.float64]], ...]:
        """The corners of both parts."""
        low, high = self.low.copy(), self.high.copy()
        low[self.group] = high[self.group] = self.at
        return (self.low, high), (low, self.high)


def _branch(program: "_Program", num_boxes: int) -> float:
    """The smallest value over boxes that hold all plans, after so many programs."""
    num_groups = len(program.own)
    first = program.solve(np.zeros(num_groups), np.full(num_groups, np.inf), 0.0)
    order = count()
    heap = [(first.value, next(order), first)]
    for _ in range(num_boxes // 2):
        _, _, box = heap[0]
        if box.group < 0 or box.value >= CEILING:
            break
        heapq.heappop(heap)
        for low, high in box.halves():
            part = program.solve(low, high, box.value)
            heapq.heappush(heap, (part.value, next(order), part))
    return heap[0][0]


class _Program:
    """The linear program of this module's docstring, times in units of `unit_ms`, bytes in shares of all memory.

    Its variables are the J columns, P phases, and for each table a share that is not placed at a prohibitive price,
    so that every program has a solution.

    Attributes:
        own: float64 [G, J], own price of a column's dearest shard; for forms on every rank, of its cheapest.
    """

    def __init__(self, pricing: Pricing, columns: Columns, unit_ms: float) -> None:
        from scipy import sparse

        self._columns = columns
        total, own, constant = columns.total_ms / unit_ms, columns.own_ms / unit_ms, pricing.constant_ms / unit_ms
        self._num_phases = constant.shape[1]
        self._num_tables = len(pricing.problem.workload.tables)
        mean_rows, mean_limits = _mean_rows(pricing, total, constant)
        memory = columns.num_bytes / max(1, int(capacity_bytes(pricing.problem).clip(0).sum()))
        groups, bound_of = _group_phases(pricing, own, constant, columns)
        members = np.array([np.isin(np.arange(self._num_phases), group) for group in groups])
        members = members.reshape(-1, self._num_phases).astype(np.float64)
        self.own = members @ own[:, pricing.view[bound_of, 1 + np.arange(self._num_phases)]].T
        group_rows = np.concatenate([self.own * columns.is_on_all, -members], axis=1)
        memory_row = np.concatenate([memory, np.zeros(self._num_phases)])[None]
        self._rows = sparse.csr_matrix(self._padded(np.concatenate([mean_rows, memory_row, group_rows])))
        self._members = members
        self._group_constant = members @ constant[bound_of, np.arange(self._num_phases)]
        self._fixed_limits = np.concatenate([mean_limits, [1.0]])
        placed = sparse.csr_matrix((columns.share, (columns.table, np.arange(len(columns)))))
        others = sparse.csr_matrix((self._num_tables, self._num_phases))
        self._placed = sparse.hstack([placed, others, sparse.eye(self._num_tables)]).tocsr()
        self._costs = np.concatenate(
            [np.zeros(len(columns)), np.ones(self._num_phases), np.full(self._num_tables, CEILING)]
        )
        self._most = np.concatenate(
            [1.0 / columns.share, np.full(self._num_phases, CEILING), np.ones(self._num_tables)]
        )

    def solve(self, low: NDArray[np.float64], high: NDArray[np.float64], known: float) -> _Box:
        """The box of these corners [G], whose value is known to be at least `known`."""
        from scipy import sparse
        from scipy.optimize import linprog

        columns = self._columns
        fits = columns.is_on_all | (self.own <= high[:, None]).all(axis=0)
        most = self._most * np.concatenate([fits, np.ones(self._num_phases + self._num_tables)])
        counts = self._count_rows(fits & columns.is_column_shard)
        rows = sparse.vstack([self._rows, counts]).tocsr()
        limits = np.concatenate([self._fixed_limits, -self._group_constant - low, np.zeros(counts.shape[0])])
        needed = np.ones(self._num_tables)
        found = linprog(
            self._costs, rows, limits, self._placed, needed, np.stack([np.zeros_like(most), most], axis=1), "highs"
        )
        if found.status != 0:
            return _Box(low, high, known, -1, 0.0)
        # Whatever the multipliers are, legal signs make this a bound.
        of_rows, of_tables = np.minimum(found.ineqlin.marginals, 0.0), found.eqlin.marginals
        reduced = self._costs - rows.T @ of_rows - self._placed.T @ of_tables
        value = float(limits @ of_rows + of_tables.sum() + (np.minimum(reduced, 0.0) * most).sum())
        return _Box(low, high, max(known, value), *self._next_split(found.x, value))

    def _next_split(self, solution: NDArray[np.float64], value: float) -> tuple[int, float]:
        """The group whose level falls most short of a shard in use, and a level between the two; -1 for none."""
        columns = self._columns
        placed, phases = solution[: len(columns)], solution[len(columns) :][: self._num_phases]
        levels = self._members @ phases - self._group_constant - self.own @ (placed * columns.is_on_all)
        # A shard that is hardly in use costs little to forbid.
        in_use = np.minimum(1.0, 4.0 * placed * columns.share) * ~columns.is_on_all
        short = (self.own - levels[:, None]) * in_use
        if not short.size or short.max() < RESOLUTION * value:
            return -1, 0.0
        group, column = np.unravel_index(int(short.argmax()), short.shape)
        return int(group), float((max(levels[group], 0.0) + self.own[group, column]) / 2)

    def _count_rows(self, is_usable: NDArray[np.bool_]) -> Any:
        """Sparse rows: a table by columns has at least as many shards as its widest usable one fits in, rounded up."""
        from scipy import sparse

        at = np.flatnonzero(is_usable)
        table, share = self._columns.table[at], self._columns.share[at]
        widest = np.full(self._num_tables, 1.0)
        widest[np.unique(table)] = 0.0
        np.maximum.at(widest, table, share)
        fewest = np.ceil(1.0 / widest - 1e-9)
        row_of = np.cumsum(fewest > 1) - 1
        kept = fewest[table] > 1
        at, table, share = at[kept], table[kept], share[kept]
        shape = (int((fewest > 1).sum()), self._rows.shape[1])
        return sparse.csr_matrix((fewest[table] * share - 1.0, (row_of[table], at)), shape=shape)

    def _padded(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([rows, np.zeros((len(rows), self._num_tables))], axis=1)


def _mean_rows(
    pricing: Pricing, total: NDArray[np.float64], constant: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows [M, J + P] and limits [M]: no phase takes less than the average rank's part of all prices."""
    num_phases = constant.shape[1]
    best: dict[tuple[int, int], float] = {}
    for views, constants in zip(pricing.view[:, 1:].tolist(), constant.tolist(), strict=True):
        for key, value in zip(enumerate(views), constants, strict=True):
            best[key] = max(value, best.get(key, -np.inf))
    phase, view = np.array(list(best)).T
    return np.concatenate([total[:, view].T, -np.eye(num_phases)[phase]], axis=1), -np.array(list(best.values()))


def _group_phases(
    pricing: Pricing, own: NDArray[np.float64], constant: NDArray[np.float64], columns: Columns
) -> tuple[list[list[int]], NDArray[np.int64]]:
    """Phases that grow alike with single shards, and for each phase the bound [P] whose own prices are taken.

    That is the bound which proves most for a rank with its part of all tables, each counted whole where it may be.
    """
    view, num_phases = pricing.view[:, 1:], constant.shape[1]
    is_single = ~columns.is_on_all
    is_whole = is_single & ~columns.is_column_shard
    mean = own[is_whole].sum(axis=0) / pricing.problem.topology.world_size
    bound_of = (constant + mean[view]).argmax(axis=0)
    phases = own[is_single][:, view[bound_of, np.arange(num_phases)]].T
    lengths = np.linalg.norm(phases, axis=1)
    groups: list[list[int]] = []
    for phase in np.flatnonzero(lengths > 0).tolist():
        for group in groups:
            if phases[phase] @ phases[group[0]] >= ALIKE * lengths[phase] * lengths[group[0]]:
                group.append(phase)
                break
        else:
            groups.append([phase])
    return groups, bound_of
