"""What is planted into real runs for `bench detect`, and what ought to be found in them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cluster.imbalance.verdict import Cause
from dlrm.injection.config import (
    CHECKPOINT_SPIKES,
    HOG_CORE,
    HOT_TABLE,
    SLOW_DEVICE,
    SLOW_LINK,
    SLOW_LOOKUPS,
    InjectionConfig,
)
from launcher.bench.detect_traces import Fault
from launcher.preparation import Prepared

# A run: steps without the fault, from which a detector learns what is normal, then steps with it. Two hundred and
# forty runs in about a quarter of an hour leave no more than this at the quick start's size.
CLEAN_STEPS, FAULT_STEPS = 110, 50
SLOWER_PERCENT = 20.0
# It comes three times a step: with a step of 30 ms, as in the quick start, that is a fifth as well.
LATER_MS = 2.0
# Of a hot table come so many ids more that its rank looks up this much more; a table of few ids would have to grow
# manifold. And one of few rows is no burden however hot: they stay in the cache and are updated once a step.
MORE_OF_RANK_PERCENT = 50.0
MOST_GROWTH_PERCENT = 400.0
LEAST_HOT_ROWS = 5_000
# A checkpoint of some hundred megabytes, twice in the steps with the fault.
SPIKE_MS, SPIKE_PERIOD_STEPS = 150.0, 25

# As `detect_kinds` names what it makes up alike.
HOGGED_CORE, CLEAN, FLEET_SLOWDOWN = "hogged_core", "clean", "fleet_slowdown"


@dataclass(frozen=True)
class Run:
    """One run to record.

    Attributes:
        kind: One of `KINDS`.
        seed: Of its draws.
        injection: What is planted after the clean steps; None: nothing.
        fault: What ought to be found; None: nothing.
    """

    kind: str
    seed: int
    injection: InjectionConfig | None = None
    fault: Fault | None = None


def draw_run(kind: str, seed: int, prepared: Prepared) -> Run:
    """The run of a kind and a seed, which choose the rank and the table.

    Raises:
        ValueError: The plan leaves the drawn rank no large table of its own (hot_table).
    """
    generator = np.random.default_rng([list(KINDS).index(kind), seed])
    return KINDS[kind](Run(kind, seed), prepared, generator)


def _with_fault(run: Run, cause: Cause, injection: InjectionConfig, rank: int, tables: tuple[str, ...] = ()) -> Run:
    return Run(run.kind, run.seed, injection, Fault(cause, rank, tables, CLEAN_STEPS + 1))


def _slow_rank(run: Run, prepared: Prepared, generator: np.random.Generator) -> Run:
    rank = _draw_rank(prepared, generator)
    return _with_fault(run, Cause.SLOW_DEVICE, InjectionConfig(run.kind, [rank], percent=SLOWER_PERCENT), rank)


def _hogged_core(run: Run, prepared: Prepared, generator: np.random.Generator) -> Run:
    rank = _draw_rank(prepared, generator)
    return _with_fault(run, Cause.SLOW_DEVICE, InjectionConfig(HOG_CORE, [rank]), rank)


def _slow_link(run: Run, prepared: Prepared, generator: np.random.Generator) -> Run:
    rank = _draw_rank(prepared, generator)
    return _with_fault(run, Cause.SLOW_LINK, InjectionConfig(run.kind, [rank], ms=LATER_MS), rank)


def _hot_table(run: Run, prepared: Prepared, generator: np.random.Generator) -> Run:
    rank = _draw_rank(prepared, generator)
    placed = prepared.planned.plan.tables
    ids = {table.name: table.pooling_factor for table in prepared.task.tables}
    extra = MORE_OF_RANK_PERCENT * sum(ids[table.name] for table in placed if rank in table.ranks)
    own = {table.name for table in placed if table.ranks == (rank,)}
    large = [
        table.name
        for table in prepared.task.tables
        if table.name in own
        and table.num_embeddings >= LEAST_HOT_ROWS
        and extra <= MOST_GROWTH_PERCENT * table.pooling_factor
    ]
    if not large:
        raise ValueError(f"rank {rank} has no large table of its own under this plan: record another configuration")
    table = str(generator.choice(large))
    injection = InjectionConfig(run.kind, percent=extra / ids[table], tables=[table])
    return _with_fault(run, Cause.HOT_TABLE, injection, rank, (table,))


def _clean(run: Run, prepared: Prepared, generator: np.random.Generator) -> Run:
    return run


def _checkpoint_spikes(run: Run, prepared: Prepared, generator: np.random.Generator) -> Run:
    """On one rank, or on all."""
    ranks = [_draw_rank(prepared, generator)] if generator.random() < 0.5 else None
    injection = InjectionConfig(run.kind, ranks, ms=SPIKE_MS, period_steps=SPIKE_PERIOD_STEPS)
    return Run(run.kind, run.seed, injection)


def _fleet_slowdown(run: Run, prepared: Prepared, generator: np.random.Generator) -> Run:
    return Run(run.kind, run.seed, InjectionConfig(SLOW_DEVICE, percent=SLOWER_PERCENT))


def _draw_rank(prepared: Prepared, generator: np.random.Generator) -> int:
    return int(generator.integers(prepared.topology.world_size))


KINDS: dict[str, Callable[[Run, Prepared, np.random.Generator], Run]] = {
    SLOW_LOOKUPS: _slow_rank,
    SLOW_DEVICE: _slow_rank,
    HOGGED_CORE: _hogged_core,
    SLOW_LINK: _slow_link,
    HOT_TABLE: _hot_table,
    CLEAN: _clean,
    CHECKPOINT_SPIKES: _checkpoint_spikes,
    FLEET_SLOWDOWN: _fleet_slowdown,
}
