"""Forms by price alone: what each unit would take if only the sum of all work counted, and no piece may stick out.

For a level T of work on each rank, every unit takes the form of the least total price whose dearest piece costs at most
a share of T; the level is the smallest at which all units together are no more than W ranks can do. That is the
relaxation behind the lower bound, whose solutions a greedy placement then makes real: small shares cut more and pack
better, large ones cut less. Where memory is short, bytes get a price that rises until all fits.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.loads import NUM_TRAFFIC
from planner.memory import capacity_bytes
from planner.search.assignment import Assignment
from planner.search.catalogue import NOTHING, Catalogue, Form
from planner.search.greedy_batch import Forms, own_ms, placed_assignments
from planner.search.objective import Rates, feel_rates

SHARES = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Of the level that a piece may cost."""

CUTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 32)
"""Numbers of column shards that are considered."""

BISECTIONS = 30
"""Halvings of the interval in which a level or a price of memory is sought."""


class Options(NamedTuple):
    """F options of each of U units; what is not allowed costs infinitely much.

    Attributes:
        form: int64 [F], of all units.
        num_cuts: int64 [F].
        total_ms: float64 [U, F], what all pieces add to the work of their ranks.
        piece_ms: float64 [U, F], what the dearest adds.
        num_bytes: float64 [U, F], of all pieces.
    """

    form: NDArray[np.int64]
    num_cuts: NDArray[np.int64]
    total_ms: NDArray[np.float64]
    piece_ms: NDArray[np.float64]
    num_bytes: NDArray[np.float64]


def place_by_price(catalogue: Catalogue, start: Assignment, shares: Sequence[float] = SHARES) -> list[Assignment]:
    """Greedy placements of the forms that prices choose, prices being those at the average rank of a start."""
    rates = feel_rates(catalogue.problem, catalogue.estimator, start.loads)
    return placed_assignments(catalogue, rates, price_forms(catalogue, rates, start.loads.mean(axis=0), shares))


def price_forms(
    catalogue: Catalogue, rates: Rates, level: NDArray[np.float64], shares: Sequence[float] = SHARES
) -> Forms:
    """One choice of forms for each share of a level, priced on top of the average rank's loads [K]."""
    options = list_options(catalogue, rates, level)
    chosen = np.stack([_choose(catalogue, options, share) for share in shares])
    forms, num_cuts = options.form[chosen], options.num_cuts[chosen]
    return Forms(np.where(forms == Form.NODE, forms + _node_turns(catalogue, forms == Form.NODE), forms), num_cuts)


def _node_turns(catalogue: Catalogue, is_node: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Nodes [B, U], which take turns since they cost the same: of each unit those that it may stand on."""
    may_stand = catalogue.fixed[:, Form.NODE :, 0] != NOTHING
    allowed_first = np.argsort(~may_stand, axis=1, kind="stable")
    turn = np.cumsum(is_node, axis=1) % np.maximum(may_stand.sum(axis=1), 1)
    return allowed_first[np.arange(len(may_stand)), turn]


def list_options(catalogue: Catalogue, rates: Rates, level: NDArray[np.float64]) -> Options:
    """The options of all units with what they cost on top of loads [K]."""
    price_ms = marginal_ms(catalogue, rates, level)
    units = np.arange(len(catalogue.units))
    columns = [_columns(catalogue, price_ms, units, cuts) for cuts in CUTS]
    fixed = [(form, _fixed(catalogue, price_ms, form)) for form in (Form.ROWS, Form.COPIES, Form.NODE)]
    listed = [(int(Form.FREE), cuts, figures) for cuts, figures in zip(CUTS, columns, strict=True)]
    listed += [(int(form), 1, figures) for form, figures in fixed]
    figures = np.stack([figures for _, _, figures in listed], axis=-1)
    return Options(np.array([form for form, _, _ in listed]), np.array([cuts for _, cuts, _ in listed]), *figures)


def marginal_ms(catalogue: Catalogue, rates: Rates, level: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each row [R] of the catalogue adds to the time of an average rank that carries loads [K]."""
    added = catalogue.prices.loads
    ranks = np.zeros(len(added), dtype=np.int64)
    more = own_ms(catalogue, rates, level + added, ranks) - own_ms(catalogue, rates, level[None], ranks[:1])
    return np.asarray(more / rates.slowness[0])


def marginal_phases_ms(catalogue: Catalogue, rates: Rates, level: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each row adds to the phases [R, P] of an average rank that carries loads [K]."""
    problem, estimator, added = catalogue.problem, catalogue.estimator, catalogue.prices.loads
    ranks = np.zeros(len(added), dtype=np.int64)
    more = estimator.lookup_ms(problem, level + added, ranks) - estimator.lookup_ms(problem, level[None], ranks[:1])
    return np.asarray((more / rates.slowness[0]).T @ rates.lookup.T + added[:, :NUM_TRAFFIC] @ rates.traffic.T)


def _columns(
    catalogue: Catalogue, price_ms: NDArray[np.float64], units: NDArray[np.int64], cuts: int
) -> NDArray[np.float64]:
    """Total and dearest price and bytes [3, U] of units in so many column shards."""
    size, rest = np.divmod(catalogue.num_granules, cuts)
    small, large = catalogue.rows(units, size), catalogue.rows(units, size + (rest > 0))
    total = (cuts - rest) * price_ms[small] + rest * price_ms[large]
    num_bytes = (cuts - rest) * catalogue.prices.num_bytes[small] + rest * catalogue.prices.num_bytes[large]
    is_legal = (size > 0) & (catalogue.may_move.sum(axis=1) >= cuts)
    is_legal &= catalogue.may_cut if cuts > 1 else (catalogue.may_be_whole | catalogue.may_cut)
    return np.where(is_legal, np.stack([total, price_ms[large], num_bytes.astype(np.float64)]), np.inf)


def _fixed(catalogue: Catalogue, price_ms: NDArray[np.float64], form: Form) -> NDArray[np.float64]:
    """Total and dearest price and bytes [3, U] of units in a form on given ranks."""
    if form == Form.NODE:
        block, last = catalogue.fixed[:, Form.NODE :].max(axis=1).T
        size = max(map(len, catalogue.node_ranks))
    else:
        block, last = catalogue.fixed[:, form].T
        size = catalogue.world_size
    num_bytes = (size - 1) * catalogue.prices.num_bytes[block] + catalogue.prices.num_bytes[last]
    total = (size - 1) * price_ms[block] + price_ms[last]
    dearest = np.maximum(price_ms[block], price_ms[last])
    return np.where(block != 0, np.stack([total, dearest, num_bytes.astype(np.float64)]), np.inf)


def _choose(catalogue: Catalogue, options: Options, share: float) -> NDArray[np.int64]:
    """The option [U] of each unit at the smallest level that holds all, memory priced where it is short."""
    room = float(capacity_bytes(catalogue.problem).sum())
    chosen = _at_price(catalogue, options, share, 0.0)
    every = np.arange(len(chosen))
    if options.num_bytes[every, chosen].sum() <= room:
        return chosen
    least, most = 0.0, 2 * options.total_ms[every, chosen].sum() / room
    for _ in range(BISECTIONS):
        price = (least + most) / 2
        found = _at_price(catalogue, options, share, price)
        if options.num_bytes[every, found].sum() <= room:
            most, chosen = price, found
        else:
            least = price
    return chosen


def _at_price(catalogue: Catalogue, options: Options, share: float, byte_ms: float) -> NDArray[np.int64]:
    """The option [U] of each unit at the smallest level, when a byte of memory costs so many milliseconds."""
    memory_ms = byte_ms * np.where(np.isinf(options.num_bytes), 0.0, options.num_bytes)
    priced, smallest = options.total_ms + memory_ms, (options.piece_ms + memory_ms).argmin(axis=1)
    least = np.where(np.isinf(options.piece_ms), np.inf, priced).argmin(axis=1)
    every = np.arange(len(least))
    low, high = 0.0, float(options.total_ms[every, least].sum() / share)
    chosen = least
    for _ in range(BISECTIONS):
        level = (low + high) / 2
        at = np.where(options.piece_ms <= share * level, priced, np.inf).argmin(axis=1)
        fits = np.isfinite(priced[every, at]) & (options.piece_ms[every, at] <= share * level)
        # A unit that cannot be so small takes its smallest pieces.
        at = np.where(fits, at, smallest)
        if options.total_ms[every, at].sum() <= catalogue.world_size * level:
            high, chosen = level, at
        else:
            low = level
    return chosen
