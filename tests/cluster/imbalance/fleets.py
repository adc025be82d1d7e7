"""Small fleets for tests: blocks of the series "steps" and "shards" with little noise, and what to change in them."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cluster.imbalance.settings import WatchSettings
from cluster.imbalance.verdict import Verdict
from cluster.imbalance.watcher import Watcher
from cluster.telemetry import Block
from planner.cost.estimator import COMMS_PHASES, LOOKUP_PHASES, PHASES

COLUMNS = (
    "step_ms",
    "data_wait_ms",
    *(f"{phase}_ms" for phase in PHASES),
    "ids",
    *(f"{phase}_bytes" for phase in COMMS_PHASES),
    "peak_bytes",
)
LOOKUPS = tuple(f"{phase}_ms" for phase in LOOKUP_PHASES)
DENSE = ("dense_forward_ms", "dense_backward_ms", "optimizer_ms", "other_ms")
COLLECTIVES = tuple(f"{phase}_ms" for phase in COMMS_PHASES)
TABLES = ("a", "b", "c")
SETTINGS = WatchSettings(warmup_steps=5, baseline_steps=40, cool_down_steps=30)
FIRST_CHANGE = 100

Rows = NDArray[np.float64]


def make_rows(num_steps: int, num_ranks: int, noise: float = 0.03, seed: int = 0) -> Rows:
    """Rows [S, W, C] of a healthy fleet: 4 ms in every lookup phase and dense phase, 2 ms in every collective."""
    generator = np.random.default_rng(seed)
    rows = np.zeros((num_steps, num_ranks, len(COLUMNS)))
    for name in (*LOOKUPS, *DENSE):
        column(rows, name)[:] = 4.0 * np.exp(generator.normal(0, noise, (num_steps, num_ranks)))
    for name in COLLECTIVES:
        column(rows, name)[:] = 2.0 * np.exp(generator.normal(0, noise, (num_steps, 1)))
        column(rows, name.replace("_ms", "_bytes"))[:] = 1e5
    column(rows, "ids")[:] = generator.poisson(30_000, (num_steps, num_ranks))
    return rows


def column(rows: Rows, name: str) -> Rows:
    """A view [S, W] of one column."""
    return rows[..., COLUMNS.index(name)]


def scale(rows: Rows, names: tuple[str, ...], factor: float, ranks: int | slice, steps: slice) -> None:
    """Multiply columns of some ranks in some steps."""
    for name in names:
        column(rows, name)[steps, ranks] *= factor


def steps_block(rows: Rows, first_step: int = 1) -> Block:
    """Rows as a block; steps are counted from 1."""
    return Block("steps", {"columns": list(COLUMNS)}, np.arange(first_step, first_step + len(rows)), rows)


def shards_block(steps: list[int], num_ranks: int, ids: Callable[[int], list[float]]) -> Block:
    """Samples at some steps; `ids` of a step are those of TABLES on rank 0 and after it on each other one."""
    labels = {
        "columns": ["ids", "distinct_ids"],
        "ranks": [rank for rank in range(num_ranks) for _ in TABLES],
        "tables": [f"{table}{rank}" for rank in range(num_ranks) for table in TABLES],
        "sharding_types": ["table_wise"] * (num_ranks * len(TABLES)),
    }
    rows = np.array([[[each, np.nan] for each in ids(step)] for step in steps])
    return Block("shards", labels, np.array(steps), rows)


def watch(
    rows: Rows, settings: WatchSettings = SETTINGS, poll_steps: int = 30, expected_lookup_ms: Rows | None = None
) -> list[Verdict]:
    """All verdicts on rows that come poll after poll."""
    watcher = Watcher(settings, expected_lookup_ms)
    block, verdicts = steps_block(rows), []
    for begin in range(0, len(rows), poll_steps):
        part = slice(begin, begin + poll_steps)
        verdicts += watcher.update(Block("steps", block.labels, block.steps[part], block.rows[part]))
    return verdicts
