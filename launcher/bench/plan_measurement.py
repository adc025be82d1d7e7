"""Real runs of plans: the lookups of every rank with FBGEMM, each rank alone on one thread."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from cluster.microbench.clock import repeat
from cluster.microbench.lookups import NUM_BATCHES, measure_canary
from cluster.microbench.repeats import Limits
from launcher.bench.baselines import Progress
from launcher.bench.cost_data import FLOAT_BYTES
from launcher.bench.plan_batches import GlobalBatches, count_uses
from launcher.bench.plan_kernels import CPU, Piece, RankLookup, rank_pieces
from launcher.bench.plan_tasks import PlanningTask, PoolTable
from planner.cost.canary import WINDOW
from planner.lookups import NUM_REUSE_BINS
from planner.occupancy import reuse_bins
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.tables import OptimizerKind

LEAST_FACTOR = 32
"""A step of 65,536 samples takes a rank a second or two, which is too long for the thousands of runs of a benchmark."""

MOST_WEIGHT_BYTES = 1 << 30
"""Weights of all tables of a scaled task; no rank of any plan has more, optimizer state apart."""

MOST_GATHERED_BYTES = 1 << 30
"""Rows that a batch of a scaled task reads, over all ranks: some tenths of a second of one thread."""

NUM_ROUNDS = 5
"""Each rank is built and run so often; all ranks of all plans once before any comes again."""

LIMITS = Limits(math.inf, num_warmups=1, min_repeats=NUM_BATCHES, max_repeats=2 * NUM_BATCHES, seconds=0.5)
"""Of a rank in a round: every batch once, again while others take the core. Rounds find drift, more repeats do not."""

Pieces = tuple[Piece, ...]
"""What one rank holds."""


@dataclass(frozen=True, eq=False)
class MeasuredPlan:
    """Times of a plan's ranks, each alone, at the median speed of the machine while its task was measured.

    Attributes:
        rounds_ms: float64 [rounds, W], medians of forward and backward passes with updates; 0 for an empty rank.
    """

    rounds_ms: NDArray[np.float64]

    @property
    def rank_ms(self) -> NDArray[np.float64]:
        """Medians [W] over the rounds."""
        return np.asarray(np.median(self.rounds_ms, axis=0))

    @property
    def max_rank_ms(self) -> float:
        """The slowest rank's time."""
        return float(self.rank_ms.max())

    @property
    def spread(self) -> float:
        """Range over the rounds of the slowest rank's time, as a share of `max_rank_ms`."""
        return float(np.ptp(self.rounds_ms.max(axis=1))) / self.max_rank_ms


def scale_task(task: PlanningTask) -> PlanningTask:
    """The task with rows and batch divided by one power of two of at least `LEAST_FACTOR`, so that it can be run here.

    A batch then uses its rows as often as before. Where less than a whole row of a bin is left the histogram cannot
    stay: every table gets that of the batches which `measure_plans` draws.
    """
    gathered = [table.pooling_factor * dim for table, dim in zip(task.tables, task.dims, strict=True)]
    gathered_bytes = task.global_batch * sum(gathered) * FLOAT_BYTES
    factor = LEAST_FACTOR
    while max(task.weight_bytes / MOST_WEIGHT_BYTES, gathered_bytes / MOST_GATHERED_BYTES) > factor:
        factor *= 2
    samples = max(1, task.global_batch // factor)
    tables = tuple(_scale_table(table, factor, samples) for table in task.tables)
    return replace(task, tables=tables, global_batch=samples)


def measure_plans(
    task: PlanningTask,
    problem: PlanningProblem,
    plans: Mapping[str, ShardingPlan],
    seed: int,
    progress: Progress,
) -> dict[str, MeasuredPlan]:
    """Runs every rank of every plan on the same batches and gives the times by strategy.

    One thread runs one rank at a time: all its lookups forward, then backward with the optimizer. In a round the plans
    take turns rank by rank, in random order; a fixed lookup before each rank tells how fast the machine is by then.
    Ranks that hold the same in several plans are run once a round.

    Args:
        task: The scaled task.
        problem: Its problem, which the plans solve.
        plans: By strategy.
        seed: Of the batches and the order.
        progress: Told once a round.

    Raises what FBGEMM raises: for an optimizer that it has no CPU kernel for (Adam), or too little memory.
    """
    if not plans:
        return {}
    batches = GlobalBatches(task.tables, problem.arrays.samples, NUM_BATCHES, seed)
    ranks = {name: rank_pieces(problem, plan) for name, plan in plans.items()}
    rng = np.random.default_rng(seed)
    rounds: list[dict[Pieces, float]] = []
    canary_ms: list[NDArray[np.float64]] = []
    with _one_thread():
        for number in range(NUM_ROUNDS):
            order = interleave(list(ranks.values()), rng)
            progress(f"round {number + 1} of {NUM_ROUNDS}: {len(order)} different ranks of {len(plans)} plans")
            times, canaries = _measure_round(order, batches, problem.workload.optimizer)
            rounds.append(times)
            canary_ms.append(canaries)
    speed_ms = float(np.median(np.concatenate(canary_ms)))
    return {
        name: MeasuredPlan(speed_ms * np.array([[times[pieces] for pieces in each] for times in rounds]))
        for name, each in ranks.items()
    }


def interleave(plans: Sequence[Sequence[Pieces]], rng: np.random.Generator) -> list[Pieces]:
    """The different ranks of all plans: all first ranks, all second ones ..., the plans in random order each time."""
    order: dict[Pieces, None] = {}
    for rank in range(max(map(len, plans), default=0)):
        order |= {plans[index][rank]: None for index in rng.permutation(len(plans))}
    return list(order)


def _scale_table(table: PoolTable, factor: int, samples: int) -> PoolTable:
    num_rows = max(1, table.num_embeddings // factor)
    uses = count_uses(table.reuse, round(samples * table.pooling_factor), num_rows)
    counts = np.bincount(reuse_bins(uses), minlength=NUM_REUSE_BINS)
    return replace(table, num_embeddings=num_rows, reuse=tuple((counts / max(1, len(uses))).tolist()))


def _measure_round(
    order: Sequence[Pieces], batches: GlobalBatches, optimizer: OptimizerKind
) -> tuple[dict[Pieces, float], NDArray[np.float64]]:
    """Times of the ranks in units of the canary around them, and the canaries in milliseconds."""
    times_ms, canaries = [], []
    for pieces in order:
        canaries.append(measure_canary(CPU))
        times_ms.append(_measure_rank(pieces, batches, optimizer) if pieces else 0.0)
    canary_ms = np.array(canaries)
    # As profiles are read: one canary is as noisy as one measurement.
    units = np.array(times_ms) / median_filter(canary_ms, WINDOW, mode="mirror")
    return dict(zip(order, units.tolist(), strict=True)), canary_ms


def _measure_rank(pieces: Pieces, batches: GlobalBatches, optimizer: OptimizerKind) -> float:
    lookup = RankLookup(pieces, batches, optimizer)
    forward, backward = repeat(lookup.run, LIMITS, CPU)
    return forward.median_ms + backward.median_ms


@contextmanager
def _one_thread() -> Iterator[None]:
    """A rank of a CPU job has one; the number of before afterwards."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            # Of the dense kernel on a CPU; its gradient is right all the same, as tests hold against the fused one.
            warnings.filterwarnings("ignore", "fbgemm::dense_embedding_codegen_lookup_function", UserWarning)
            yield
    finally:
        torch.set_num_threads(num_threads)
