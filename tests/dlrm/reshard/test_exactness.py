"""A move never changes what is learned: from every kind of plan to every other one, on real gloo ranks."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from dlrm.config import ReshardConfig
from dlrm.model import build_dlrm
from dlrm.shards import draw_block
from planner.topology import Topology
from planner.torchrec_bridge import module_name
from tests.dlrm.reshard.moving import (
    CUT_COLUMNS,
    DENSE,
    EPS,
    KINDS,
    ONE_RANK,
    WHOLE_ROWS,
    Followed,
    Job,
    Piece,
    Route,
    deviation,
    follow,
    plan_of,
    whole_tables,
)
from tests.dlrm.test_equivalence import LOCAL_BATCH, MODEL, NUM_DENSE, RATES, SEED, TABLES, cut, topology
from tests.ranks import run_ranks

TOLERANCE = 1e-6
# Adam divides by the root of what a weight's gradients squared came to, and so makes more of their last bits, which
# differ where ranks add up the parts of a bag in another order.
TOLERANCES = {"sgd": TOLERANCE, "rowwise_adagrad": TOLERANCE, "adam": 2 * TOLERANCE}
RATE_STEP, RATE_FACTOR = 3, 0.5


def star_routes() -> Iterator[Route]:
    """Out and back from every kind to each later one, those that cut columns by themselves."""
    for number, hub in enumerate(KINDS):
        for group in (WHOLE_ROWS, CUT_COLUMNS):
            partners = [each for each in list(KINDS)[number + 1 :] if each in group]
            if partners:
                yield (hub, *(each for partner in partners for each in (partner, hub)))


ROUTES = tuple(star_routes())
ORDER_KEEPING: Route = ("table_wise", "column_wise", "uneven", ONE_RANK, "uneven", "table_wise", "column_wise")
"""Plans under which every sum has its terms in the same order: no row is pooled on several ranks, none replicated."""


MOVED = (*ROUTES, ORDER_KEEPING)


def never_moved(route: Route) -> Route:
    """As many steps under one plan."""
    return ("table_wise",) * len(route)


def are_whole_rows(route: Route) -> bool:
    return set(route) <= set(WHOLE_ROWS)


def lower_rates(job: Job, step: int) -> None:
    if step == RATE_STEP:
        job.scale_rates(RATE_FACTOR)


def follow_all(rank: int, world_size: int, where: Topology) -> dict[tuple[str, Route], Followed]:
    """One start of the ranks serves all, since importing torch takes longer than training."""
    return {
        (kind, route): follow(rank, where, kind, route, lower_rates)
        for kind in RATES
        for route in dict.fromkeys((*MOVED, *map(never_moved, MOVED)))
    }


Found = tuple[Topology, list[dict[tuple[str, Route], Followed]]]


@pytest.fixture(scope="module", params=[(2, 2), (4, 2)], ids=["2_ranks", "4_ranks_on_2_nodes"])
def followed(request: pytest.FixtureRequest) -> Found:
    world_size, local = request.param
    where = topology(world_size, local)
    return where, run_ranks(follow_all, world_size, where, local_world_size=local)


def test_routes_hold_every_ordered_pair_of_kinds() -> None:
    pairs = {pair for route in ROUTES for pair in pairwise(route) if pair[0] != pair[1]}
    assert pairs == {(old, new) for old in KINDS for new in KINDS if old != new}


def worst(ranks: list, kind: str, route: Route) -> tuple[float, list[float]]:
    """Deviation of a route from the run that never moved: of losses, and of weights and state of each table."""
    found, wanted = ([rank[kind, each] for rank in ranks] for each in (route, never_moved(route)))
    losses = deviation(*(np.array([rank.losses for rank in each]) for each in (found, wanted)))
    tables, references = (whole_tables([rank.pieces for rank in each]) for each in (found, wanted))
    values = [max(map(deviation, tables[name], references[name])) for name in tables]
    return losses, values


@pytest.mark.distributed
@pytest.mark.parametrize("route", ROUTES, ids="-".join)
@pytest.mark.parametrize("kind", RATES)
def test_losses_weights_and_state_equal_the_run_that_never_moved(followed: Found, kind: str, route: Route) -> None:
    if kind == "rowwise_adagrad" and not are_whole_rows(route):
        pytest.skip("a value for each row and column shard is another algorithm: held against its rule below")
    losses, values = worst(followed[1], kind, route)
    assert losses < TOLERANCE and max(values) < TOLERANCES[kind]


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_where_sums_keep_their_order_every_bit_is_the_same(followed: Found, kind: str) -> None:
    assert worst(followed[1], kind, ORDER_KEEPING) == (0.0, [0.0] * len(TABLES))


@pytest.mark.distributed
def test_steps_that_adam_counts_survive_every_move(followed: Found) -> None:
    for route in ROUTES:
        counters = [p.counter for rank in followed[1] for p in rank["adam", route].pieces if p.counter is not None]
        assert set(counters) <= {len(route)}
    # Replicas tell their counter; that of shards is seen in the bias correction of every later step.
    assert any(p.counter for route in ROUTES for p in followed[1][0]["adam", route].pieces)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", RATES)
def test_the_order_of_features_changes_on_the_way(followed: Found, kind: str) -> None:
    orders = {order for route in ROUTES for order in followed[1][0][kind, route].key_orders}
    assert len(orders) > 1 and {order_without_cuts(order) for order in orders} == {tuple(t.name for t in TABLES)}


def order_without_cuts(order: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(order)))


@pytest.mark.distributed
def test_a_rank_starts_and_ends_empty(followed: Found) -> None:
    where, ranks = followed
    for kind in RATES:
        for route in ROUTES:
            if route[-1] == ONE_RANK:
                assert [bool(rank[kind, route].pieces) for rank in ranks] == [False] * (where.world_size - 1) + [True]


class PartwiseAdagrad:
    """Row-wise Adagrad of one process with one value for each row and part of the columns, as a plan cuts them.

    The value stands in all columns of its part: cutting copies it, and merging takes the mean weighted by widths.
    """

    def __init__(self, tables: dict[str, nn.Parameter], route: Route, where: Topology) -> None:
        self._tables, self._route, self._where, self._rate = tables, route, where, RATES["rowwise_adagrad"]
        self.sums = {name: torch.zeros_like(weight) for name, weight in tables.items()}

    @torch.no_grad()
    def step(self, number: int) -> None:
        if number == RATE_STEP:
            self._rate *= RATE_FACTOR
        plan = plan_of(self._route[number], self._where)
        for placement in plan.tables:
            weight, sums = self._tables[placement.name], self.sums[placement.name]
            assert weight.grad is not None
            for left, right in sorted(
                {(each.col_offset, each.col_offset + each.num_cols) for each in placement.shards}
            ):
                # A part that was not cut otherwise has one value, which is its own mean.
                mean = sums[:, left:right].mean(dim=1, keepdim=True)
                sums[:, left:right] = mean + weight.grad[:, left:right].square().mean(dim=1, keepdim=True)
            weight -= self._rate * weight.grad / (sums.sqrt() + EPS["rowwise_adagrad"])


def train_partwise(route: Route, where: Topology) -> tuple[list[float], dict[str, list[np.ndarray]]]:
    """Losses, and weights and state of every table, after a route in this process."""
    torch.manual_seed(0)
    model, size = build_dlrm(MODEL, TABLES, NUM_DENSE, SEED), LOCAL_BATCH * where.world_size
    bags = model.model.sparse_arch.embedding_bag_collection.to_empty(device="cpu").embedding_bags
    with torch.no_grad():
        for table in TABLES:
            bags[module_name(table.name)].weight.copy_(draw_block(SEED, table, 0))
    tables = {table.name: bags[module_name(table.name)].weight for table in TABLES}
    others = [p for name, p in model.named_parameters() if "embedding_bags" not in name]
    sparse, dense, losses = PartwiseAdagrad(tables, route, where), torch.optim.Adam(others, DENSE.learning_rate), []
    for number in range(len(route)):
        if number == RATE_STEP:
            dense.param_groups[0]["lr"] *= RATE_FACTOR
        model.zero_grad()
        loss, _ = model(cut(number, size, slice(0, size)))
        loss.backward()
        sparse.step(number)
        dense.step()
        losses.append(loss.item())
    return losses, {name: [weight.detach().numpy(), sparse.sums[name].numpy()] for name, weight in tables.items()}


@pytest.mark.distributed
@pytest.mark.parametrize("route", [each for each in ROUTES if not are_whole_rows(each)], ids="-".join)
def test_rowwise_adagrad_goes_by_the_rule_where_columns_are_cut(followed: Found, route: Route) -> None:
    where, ranks = followed
    losses, expected = train_partwise(route, where)
    found = [rank["rowwise_adagrad", route] for rank in ranks]
    assert deviation(np.mean([rank.losses for rank in found], axis=0), np.array(losses)) < TOLERANCE
    tables = whole_tables([rank.pieces for rank in found])
    assert max(max(map(deviation, tables[name], expected[name])) for name in tables) < TOLERANCE


ROUND_TRIPS = [(old, new) for old in ("table_wise", "data_parallel", "uneven") for new in KINDS if new != old]


def go_and_come_back(rank: int, world_size: int, where: Topology) -> dict[tuple, tuple[list[Piece], list[Piece]]]:
    """What a rank holds before a move there and back at once, and after."""
    found = {}
    for kind in ("rowwise_adagrad", "adam"):
        for old, new in ROUND_TRIPS:
            job = Job(rank, where, kind, plan_of(old, where), ReshardConfig(chunk_bytes=1 << 16, staging="device"))
            job.step()
            before = job.pieces()
            for name in (new, old):
                assert job.move(plan_of(name, where)).fault is None
            found[kind, old, new] = before, job.pieces()
    return found


@pytest.fixture(scope="module")
def round_trips() -> list[dict[tuple, tuple[list[Piece], list[Piece]]]]:
    return run_ranks(go_and_come_back, 2, topology(2, 2))


def parts_are_equal(kind: str, old: str, new: str) -> bool:
    """Whether no value of a row is the mean of unequal ones on the way there and back."""
    return kind == "adam" or old not in CUT_COLUMNS


@pytest.mark.distributed
@pytest.mark.parametrize(("old", "new"), ROUND_TRIPS)
@pytest.mark.parametrize("kind", ["rowwise_adagrad", "adam"])
def test_there_and_back_changes_no_bit(round_trips: list, kind: str, old: str, new: str) -> None:
    for rank in round_trips:
        before, after = rank[kind, old, new]
        assert [(p.table, p.row_offset, p.col_offset) for p in before] == [
            (p.table, p.row_offset, p.col_offset) for p in after
        ]
        for was, now in zip(before, after, strict=True):
            assert len(was.values) == len(now.values) == (3 if kind == "adam" else 2)
            assert np.array_equal(was.values[0], now.values[0])
            if parts_are_equal(kind, old, new):
                assert all(map(np.array_equal, was.values, now.values))


@pytest.mark.distributed
def test_parts_that_met_have_the_mean_of_their_widths(round_trips: list) -> None:
    before, after = (
        whole_tables([rank["rowwise_adagrad", "uneven", "table_wise"][at] for rank in round_trips]) for at in (0, 1)
    )
    for name, (_, sums) in before.items():
        means = np.broadcast_to(sums.astype(np.float64).mean(axis=1, keepdims=True), sums.shape)
        np.testing.assert_allclose(after[name][1], means, rtol=TOLERANCE)
    assert any(not np.array_equal(before[name][1], after[name][1]) for name in before)
