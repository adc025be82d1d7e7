"""The kinds of made-up runs: what is planted into a fleet, and what ought to be found."""

from collections.abc import Callable

import numpy as np

from cluster.imbalance.verdict import Cause
from launcher.bench.detect_synthetic import (
    CLEAN_STEPS,
    FAULT_STEPS,
    OWN_PHASES,
    TABLES_PER_RANK,
    Fleet,
    Floats,
    draw_fleet,
    make_trace,
    table_name,
)
from launcher.bench.detect_traces import Fault, Trace
from planner.cost.estimator import LOOKUP_PHASES

SLOWDOWN = 1.2
HOT_GROWTH = (0.25, 0.6)
"""By how much a rank's ids grow; its lookups by nine tenths of that, as rows in a cache are looked up again."""
LOOKUPS_PER_IDS = 0.9

LINK_DELAY_MS = (2.0, 4.0)
"""By which what a rank sends comes late, three times a step of some 25 ms: a fifth and more, as of the other faults. In
a large fleet a delay under 1 ms is no loss: it is over before the slowest rank is there."""

HOGGED = (1.4, 2.0)
"""Work of a rank that shares its core takes so many times as long, from step to step as the scheduler has it."""

FLEET_SLOWDOWN = (1.2, 2.0)
SPIKE_PERIOD, SPIKE_LENGTH, SPIKE = 50, (1, 3), (2.0, 10.0)
BURST_GAP, BURST_LENGTH, BURST = (25, 60), (2, 9), (1.3, 3.0)
"""Steps between bursts of a noisy neighbour and in one, and by how much a rank's work is longer then."""

Plant = Callable[[np.random.Generator, Fleet, int, int], tuple[Cause | None, tuple[str, ...]]]
"""Plants a fault into a fleet on a rank from a step's index on; gives what ought to be found."""


def slow_lookups(_: np.random.Generator, fleet: Fleet, rank: int, begin: int) -> tuple[Cause | None, tuple[str, ...]]:
    """A rank's lookups take 20 % longer."""
    fleet.slow_work(LOOKUP_PHASES, _factor(fleet, rank, begin, SLOWDOWN))
    return Cause.SLOW_DEVICE, ()


def slow_device(_: np.random.Generator, fleet: Fleet, rank: int, begin: int) -> tuple[Cause | None, tuple[str, ...]]:
    """All of a rank's work takes 20 % longer."""
    fleet.slow_work(OWN_PHASES, _factor(fleet, rank, begin, SLOWDOWN))
    return Cause.SLOW_DEVICE, ()


def hot_table(
    generator: np.random.Generator, fleet: Fleet, rank: int, begin: int
) -> tuple[Cause | None, tuple[str, ...]]:
    """One of a rank's tables is looked up more often."""
    table = int(generator.integers(TABLES_PER_RANK))
    growth = generator.uniform(*HOT_GROWTH)
    of_rank = fleet.ids[:, rank].sum(axis=1).mean()
    more = 1 + growth * of_rank / fleet.ids[:, rank, table].mean()
    fleet.ids[begin:, rank, table] = np.round(fleet.ids[begin:, rank, table] * more)
    fleet.slow_work(LOOKUP_PHASES, _factor(fleet, rank, begin, 1 + LOOKUPS_PER_IDS * growth))
    # The more of all ids are this rank's, the longer is their exchange.
    fleet.transfer_ms["input_dist"][begin:] *= 1 + growth * of_rank / fleet.ids[:begin].sum(axis=(1, 2)).mean()
    return Cause.HOT_TABLE, (table_name(rank, table),)


def slow_link(
    generator: np.random.Generator, fleet: Fleet, rank: int, begin: int
) -> tuple[Cause | None, tuple[str, ...]]:
    """What a rank sends comes later."""
    fleet.send_delay_ms[begin:, rank] = generator.uniform(*LINK_DELAY_MS)
    return Cause.SLOW_LINK, ()


def hogged_core(
    generator: np.random.Generator, fleet: Fleet, rank: int, begin: int
) -> tuple[Cause | None, tuple[str, ...]]:
    """Another process has a part of the core that a rank computes on."""
    for phase in OWN_PHASES:
        fleet.work_ms[phase][begin:, rank] *= generator.uniform(*HOGGED, fleet.num_steps - begin)
    return Cause.SLOW_DEVICE, ()


def clean(*_: object) -> tuple[Cause | None, tuple[str, ...]]:
    """Nothing."""
    return None, ()


def checkpoint_spikes(
    generator: np.random.Generator, fleet: Fleet, rank: int, _: int
) -> tuple[Cause | None, tuple[str, ...]]:
    """1 to 3 long steps in every 50, on one rank or on all."""
    ranks = slice(None) if generator.random() < 0.5 else slice(rank, rank + 1)
    length = int(generator.integers(SPIKE_LENGTH[0], SPIKE_LENGTH[1] + 1))
    is_long = np.arange(fleet.num_steps) % SPIKE_PERIOD < length
    factor = np.ones((fleet.num_steps, fleet.num_ranks))
    factor[is_long, ranks] = generator.uniform(*SPIKE)
    fleet.slow_work(OWN_PHASES, factor)
    return None, ()


def fleet_slowdown(
    generator: np.random.Generator, fleet: Fleet, _: int, begin: int
) -> tuple[Cause | None, tuple[str, ...]]:
    """Everything takes longer on all ranks, work and transfers."""
    factor = generator.uniform(*FLEET_SLOWDOWN)
    for times_ms in (*fleet.work_ms.values(), *fleet.transfer_ms.values()):
        times_ms[begin:] *= factor
    return None, ()


def bursts(generator: np.random.Generator, fleet: Fleet, rank: int, _: int) -> tuple[Cause | None, tuple[str, ...]]:
    """A noisy neighbour makes a rank slow, now and then, for fewer steps than a watch takes to be sure."""
    factor = np.ones((fleet.num_steps, fleet.num_ranks))
    begin = 0
    while (begin := begin + int(generator.integers(*BURST_GAP))) < fleet.num_steps:
        length = int(generator.integers(BURST_LENGTH[0], BURST_LENGTH[1] + 1))
        factor[begin : begin + length, rank] = generator.uniform(*BURST)
        begin += length
    fleet.slow_work(OWN_PHASES, factor)
    return None, ()


KINDS: dict[str, Plant] = {
    plant.__name__: plant
    for plant in (
        slow_lookups,
        slow_device,
        hot_table,
        slow_link,
        hogged_core,
        clean,
        checkpoint_spikes,
        fleet_slowdown,
        bursts,
    )
}
"""What `make_run` can make."""


def make_run(kind: str, num_ranks: int, seed: int, num_steps: int | None = None) -> Trace:
    """The run of a kind and a seed; of `num_steps` where a length is asked for, else up to the end of its fault."""
    generator = np.random.default_rng([list(KINDS).index(kind), num_ranks, seed])
    begin = CLEAN_STEPS + int(generator.integers(50))
    fleet = draw_fleet(generator, num_ranks, num_steps or begin + FAULT_STEPS)
    rank = int(generator.integers(num_ranks))
    cause, tables = KINDS[kind](generator, fleet, rank, begin)
    fault = None if cause is None else Fault(cause, rank, tables, begin + 1)
    send_ms = _probe(generator, fleet, rank) if cause is Cause.SLOW_LINK else None
    return make_trace(fleet, kind, seed, fault, send_ms)


def _factor(fleet: Fleet, rank: int, begin: int, factor: float) -> Floats:
    """[S, W], 1 but for a rank from a step's index on."""
    factors = np.ones((fleet.num_steps, fleet.num_ranks))
    factors[begin:, rank] = factor
    return factors


def _probe(generator: np.random.Generator, fleet: Fleet, rank: int) -> Floats:
    """What a probe of all links shows while what a rank sends comes late."""
    send_ms = 0.2 * np.exp(generator.normal(0, 0.2, (fleet.num_ranks, fleet.num_ranks)))
    send_ms[rank] += fleet.send_delay_ms[-1, rank]
    np.fill_diagonal(send_ms, np.nan)
    return send_ms
