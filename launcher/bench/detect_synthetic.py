"""Made-up traces of fleets under faults: seeded, with the noise that real steps have, waiting as a step makes it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from cluster.imbalance.signals import DENSE_PHASES
from cluster.telemetry import Block
from dlrm.step_columns import COUNTERS, STEP_COLUMNS
from launcher.bench.detect_traces import Fault, Trace
from planner.cost.estimator import COMMS_PHASES, LOOKUP_PHASES

Floats = NDArray[np.float64]

COLUMNS = (*STEP_COLUMNS, *COUNTERS)
PHASE_ORDER = tuple(name.removesuffix("_ms") for name in STEP_COLUMNS[2:])
WINDOW_STEPS = 10
"""Steps between two samples of what shards look up, as a run's `train.window_steps`."""

LOOKUP_MS, FORWARD_SHARE = 5.0, 0.27
DENSE_MS = {"dense_forward": 3.0, "dense_backward": 4.5, "optimizer": 1.2, "other": 0.55}
TRANSFER_MS = {"input_dist": 2.6, "output_dist_forward": 1.7, "output_dist_backward": 1.4, "all_reduce": 0.6}
"""Medians of the quick start on two gloo ranks; a larger fleet has the same proportions."""

UNEVEN = 0.12
"""Standard deviation of the logarithm of ranks' lookups under one plan: a good one; a rank in 64 has 1.4 times."""

TABLES_PER_RANK, IDS_PER_TABLE, BYTES_PER_ID = 4, 3000, 8

FLEET_NOISE, FLEET_DRIFT, DRIFT_MEMORY = 0.08, 0.05, 0.98
"""What all ranks have in common, as logarithms: from step to step, and a first-order autoregression."""

JITTER = (0.02, 0.06)
"""Of one phase on one rank from step to step, as a logarithm; drawn for each run between these."""

INTERRUPTED, INTERRUPTION = (0.05, 0.4), (0.1, 0.5)
"""How often a phase is interrupted on a rank, and for which mean share of its time; exponential. So 75 % of the phases
of two gloo ranks on shared cores take up to 1.04 to 1.2 times the median and 5 % more than 1.2 to 1.6 times."""

RANK_WANDER = 0.015
"""Standard deviation of what a rank's speed drifts by itself, an autoregression: medians of 50 steps of two gloo ranks
on shared cores wander by 0.02 to 0.04 against each other."""

TRANSFER_JITTER, TRANSFER_DRIFT = (0.05, 0.10), 0.08
TRANSFER_INTERRUPTED, TRANSFER_INTERRUPTION = (0.1, 0.6), (0.2, 1.0)
TAIL_FREEDOM = 4
"""Degrees of freedom of Student's t by which common noise and jitter are distributed: heavy tails."""

LONG_STEP_CHANCE, LONG_STEP = 1 / 300, (1.5, 4.0)
"""All ranks at once: the machine was away."""

PAUSE_CHANCE, PAUSE_MS = 1 / 200, (2.0, 12.0)
"""A garbage collection on one rank."""

CLEAN_STEPS, FAULT_STEPS = 140, 80
"""Of a run: until its fault begins (up to 50 more, drawn), and with it; a baseline takes the first 100."""


@dataclass(frozen=True, eq=False)
class Fleet:
    """S steps of W ranks before they wait for each other. Faults are planted into these arrays.

    Attributes:
        work_ms: Of each phase of own work [S, W].
        transfer_ms: Of each collective [S], once all ranks are there.
        send_delay_ms: [S, W], by which what a rank sends in an all-to-all comes late.
        ids: [S, W, TABLES_PER_RANK], looked up by each rank for each of its tables.
    """

    work_ms: dict[str, Floats]
    transfer_ms: dict[str, Floats]
    send_delay_ms: Floats
    ids: Floats

    @property
    def num_steps(self) -> int:
        """S."""
        return len(self.send_delay_ms)

    @property
    def num_ranks(self) -> int:
        """W."""
        return int(self.send_delay_ms.shape[1])

    def slow_work(self, phases: tuple[str, ...], factor: Floats) -> None:
        """Multiply own work of some phases by `factor` [S, W]."""
        for phase in phases:
            self.work_ms[phase] *= factor


@dataclass(frozen=True)
class Disturbance:
    """How times scatter in a run: `jitter` as a logarithm, and now and then an interruption of some mean share."""

    jitter: float
    chance: float
    mean_share: float

    @classmethod
    def draw(
        cls,
        generator: np.random.Generator,
        jitter: tuple[float, float],
        chance: tuple[float, float],
        share: tuple[float, float],
    ) -> "Disturbance":
        """Each between two bounds."""
        return cls(generator.uniform(*jitter), generator.uniform(*chance), generator.uniform(*share))

    def factors(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        """By which undisturbed times are multiplied."""
        interrupted = _rare(generator, self.chance, shape) * generator.exponential(self.mean_share, shape)
        return np.asarray(np.exp(_heavy(generator, self.jitter, shape)) * (1 + interrupted))


OWN_PHASES = (*LOOKUP_PHASES, *DENSE_PHASES)
ALL_TO_ALLS = ("input_dist", "output_dist_forward", "output_dist_backward")


def draw_fleet(generator: np.random.Generator, num_ranks: int, num_steps: int) -> Fleet:
    """A healthy fleet under an uneven plan, with its noise."""
    shape = (num_steps, num_ranks)
    ids = IDS_PER_TABLE * np.exp(generator.normal(0, 1, (num_ranks, TABLES_PER_RANK)))
    lookup_ms = LOOKUP_MS * np.exp(generator.normal(0, UNEVEN, num_ranks))
    usual_ms: dict[str, Floats | float] = {
        "lookup_forward": FORWARD_SHARE * lookup_ms,
        "lookup_backward": (1 - FORWARD_SHARE) * lookup_ms,
        **DENSE_MS,
    }
    fleet_noise = _heavy(generator, FLEET_NOISE, num_steps) + _wander(generator, FLEET_DRIFT, (num_steps,))
    fleet_noise += _rare(generator, LONG_STEP_CHANCE, num_steps) * np.log(generator.uniform(*LONG_STEP, num_steps))
    own_noise = fleet_noise[:, None] + _wander(generator, RANK_WANDER, shape)
    own = Disturbance.draw(generator, JITTER, INTERRUPTED, INTERRUPTION)
    work_ms = {name: ms * np.exp(own_noise) * own.factors(generator, shape) for name, ms in usual_ms.items()}
    work_ms["other"] += _rare(generator, PAUSE_CHANCE, shape) * generator.uniform(*PAUSE_MS, shape)
    of_links = Disturbance.draw(generator, TRANSFER_JITTER, TRANSFER_INTERRUPTED, TRANSFER_INTERRUPTION)
    transfer_ms = {}
    for name, ms in TRANSFER_MS.items():
        drift = fleet_noise + _wander(generator, TRANSFER_DRIFT, (num_steps,))
        transfer_ms[name] = ms * np.exp(drift) * of_links.factors(generator, (num_steps,))
    return Fleet(work_ms, transfer_ms, np.zeros(shape), generator.poisson(ids, (*shape, TABLES_PER_RANK)).astype(float))


def make_trace(fleet: Fleet, kind: str, seed: int, fault: Fault | None, send_ms: Floats | None = None) -> Trace:
    """The trace that the clocks of the ranks would show."""
    durations_ms = _walk(fleet)
    rows = np.zeros((fleet.num_steps, fleet.num_ranks, len(COLUMNS)))
    for phase in PHASE_ORDER:
        rows[..., COLUMNS.index(f"{phase}_ms")] = durations_ms[phase]
    rows[..., 0] = rows.sum(axis=2)
    ids = fleet.ids.sum(axis=2)
    rows[..., COLUMNS.index("ids")] = ids
    # Samples are spread over ranks, so each sends the same ids, whoever looks them up.
    rows[..., COLUMNS.index("input_dist_bytes")] = BYTES_PER_ID * ids.mean(axis=1, keepdims=True)
    for name in ("output_dist_forward_bytes", "output_dist_backward_bytes", "all_reduce_bytes"):
        rows[..., COLUMNS.index(name)] = 1e5
    steps = np.arange(1, fleet.num_steps + 1)
    return Trace(kind, seed, Block("steps", {"columns": list(COLUMNS)}, steps, rows), _sample(fleet), fault, send_ms)


def table_name(rank: int, table: int) -> str:
    """Of the `table`th table of a rank."""
    return f"table_{TABLES_PER_RANK * rank + table}"


def _walk(fleet: Fleet) -> dict[str, Floats]:
    """How long each phase lasts on each rank [S, W], waiting in the collectives included.

    Every collective ends on all ranks at once: when the last rank is there, or the last send, plus the transfer. So a
    rank's time since the collective before is its own work since, and what it has less of than the slowest it waits.
    Source: the critical path of Lin et al. 2022, arXiv 2201.07821.
    """
    durations_ms = dict(fleet.work_ms)
    # What comes after the last collective delays the first one of the next step.
    since_ms = np.roll(fleet.work_ms["optimizer"], 1, axis=0) + fleet.work_ms["other"]
    for phase in PHASE_ORDER:
        if phase not in COMMS_PHASES:
            since_ms = since_ms + (fleet.work_ms[phase] if phase not in ("optimizer", "other") else 0.0)
            continue
        sent_ms = since_ms + (fleet.send_delay_ms if phase in ALL_TO_ALLS else 0.0)
        end_ms = sent_ms.max(axis=1) + fleet.transfer_ms[phase]
        durations_ms[phase] = end_ms[:, None] - since_ms
        since_ms = np.zeros_like(since_ms)
    return durations_ms


def _sample(fleet: Fleet) -> Block:
    """The series "shards": every tenth step's ids of each table."""
    chosen = np.arange(WINDOW_STEPS - 1, fleet.num_steps, WINDOW_STEPS)
    ids = fleet.ids[chosen].reshape(len(chosen), -1)
    ranks = np.repeat(np.arange(fleet.num_ranks), TABLES_PER_RANK)
    labels = {
        "columns": ["ids", "distinct_ids"],
        "ranks": ranks.tolist(),
        "tables": [table_name(index // TABLES_PER_RANK, index % TABLES_PER_RANK) for index in range(len(ranks))],
        "sharding_types": ["table_wise"] * len(ranks),
    }
    return Block("shards", labels, chosen + 1, np.stack([ids, np.full_like(ids, np.nan)], axis=2))


def _heavy(generator: np.random.Generator, scale: float, shape: int | tuple[int, ...]) -> Floats:
    """Student's t of standard deviation `scale`."""
    spread = np.sqrt(TAIL_FREEDOM / (TAIL_FREEDOM - 2))
    return np.asarray(scale / spread * generator.standard_t(TAIL_FREEDOM, shape))


def _wander(generator: np.random.Generator, scale: float, shape: tuple[int, ...]) -> Floats:
    """A first-order autoregression along the steps, of standard deviation `scale` throughout."""
    shocks = generator.normal(0, scale * np.sqrt(1 - DRIFT_MEMORY**2), shape)
    shocks[0] = generator.normal(0, scale, shape[1:])
    return np.asarray(lfilter([1.0], [1.0, -DRIFT_MEMORY], shocks, axis=0))


def _rare(generator: np.random.Generator, chance: float, shape: int | tuple[int, ...]) -> NDArray[np.bool_]:
    """True by chance."""
    return np.asarray(generator.random(shape) < chance)
