"""What a search minimises: bytes over memory first, then a smooth form of the step that tells near ties apart.

A step is the sum over phases of the slowest rank, so most changes do not move it at all: another rank is as slow.
Its smooth form is the sum over phases of the p-norm over ranks, which every rank has a part in and which tends to the
step as p grows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import LOOKUP_PHASES, PHASES, AdditiveEstimator
from planner.cost.loads import NUM_TRAFFIC
from planner.problem import PlanningProblem

TINY_MS = 1e-12
"""Keeps phases that take no time out of divisions."""

LOOKUP_ROWS = [PHASES.index(name) for name in LOOKUP_PHASES]
"""Rows of phases in which embedding kernels run."""

HOPELESS = 100.0
"""Times the slowest rank beyond which a change is not told from a worse one: its 128th power would be no number."""

BUMP = 1e-3
"""By how much a rate is felt out, relative to the average rank's load."""


def step_ms(phases_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """The step [...] of phases [..., P, W]."""
    return np.asarray(phases_ms.max(axis=-1).sum(axis=-1))


def smooth_ms(phases_ms: NDArray[np.float64], log_power: int) -> NDArray[np.float64]:
    """The smooth step [...] of phases [..., P, W], with p = 2 ** log_power."""
    top = np.maximum(phases_ms.max(axis=-1), TINY_MS)
    sums = raised(phases_ms / top[..., None], log_power).sum(axis=-1)
    return np.asarray((top * _root(sums, log_power)).sum(axis=-1))


def raised(values: NDArray[np.float64], log_power: int) -> NDArray[np.float64]:
    """Values ** (2 ** log_power), by squaring: many times faster than a power."""
    for _ in range(log_power):
        values = values * values
    return values


def _root(values: NDArray[np.float64], log_power: int) -> NDArray[np.float64]:
    return np.asarray(values ** (0.5**log_power))


@dataclass(frozen=True, eq=False)
class Rates:
    """How phases of a rank grow with its own traffic and lookups, near some loads.

    Attributes:
        traffic: float64 [P, NUM_TRAFFIC], milliseconds a unit.
        lookup: float64 [P, 2], milliseconds a millisecond of forward and backward lookups.
        slowness: float64 [W], lookup time over that of the average rank, for equal loads.
    """

    traffic: NDArray[np.float64]
    lookup: NDArray[np.float64]
    slowness: NDArray[np.float64]


def feel_rates(problem: PlanningProblem, estimator: AdditiveEstimator, loads: NDArray[np.float64]) -> Rates:
    """The rates at loads [W, K]: by how much the average rank's phases grow when all ranks have a little more.

    A little is compared with twice as much, since the first byte or shard of its kind also brings a latency, which is
    no rate: what is chosen by rates is priced exactly afterwards.
    """
    traffic = loads[:, :NUM_TRAFFIC]
    lookup_ms = estimator.lookup_ms(problem, loads, np.arange(len(loads)))
    bumps = np.maximum(BUMP * traffic.mean(axis=0), 1.0)
    sizes = np.stack([np.diag(bumps), 2 * np.diag(bumps)])[:, :, None]
    base_ms = np.repeat(lookup_ms[:, None], len(bumps), axis=1)
    one, two = (estimator.join_ms(problem, traffic + size, base_ms).mean(axis=-1) for size in sizes)
    slower = estimator.join_ms(problem, np.stack([traffic] * 2), lookup_ms[:, None] + np.eye(2)[:, :, None])
    here = estimator.join_ms(problem, traffic, lookup_ms)
    return Rates(
        ((two - one) / bumps[:, None]).T, (slower - here).mean(axis=-1).T, feel_slowness(problem, estimator, loads)
    )


def feel_slowness(
    problem: PlanningProblem, estimator: AdditiveEstimator, loads: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Lookup times [W] over those of the average rank, if every rank had the mean of loads [W, K]."""
    level = np.broadcast_to(loads.mean(axis=0), loads.shape)
    times_ms = estimator.lookup_ms(problem, level, np.arange(len(loads))).sum(axis=0)
    mean_ms = len(times_ms) / (1 / np.maximum(times_ms, TINY_MS)).sum()
    return np.asarray(np.maximum(times_ms, TINY_MS) / mean_ms)


@dataclass(frozen=True, eq=False)
class Standing:
    """Loads of all ranks with what they cost: the point from which a search looks at changes.

    Attributes:
        problem: What is planned.
        estimator: Prices it.
        rates: For a first look.
        loads: float64 [W, K].
        free_bytes: int64 [W].
        lookup_ms: float64 [2, W].
        phases_ms: float64 [P, W].
        log_power: Of the smooth step.
    """

    problem: PlanningProblem
    estimator: AdditiveEstimator
    rates: Rates
    loads: NDArray[np.float64]
    free_bytes: NDArray[np.int64]
    lookup_ms: NDArray[np.float64]
    phases_ms: NDArray[np.float64]
    log_power: int

    @classmethod
    def at(
        cls,
        problem: PlanningProblem,
        estimator: AdditiveEstimator,
        rates: Rates,
        loads: NDArray[np.float64],
        free_bytes: NDArray[np.int64],
        log_power: int,
    ) -> "Standing":
        """The standing of loads [W, K] and free bytes [W]."""
        lookup_ms = estimator.lookup_ms(problem, loads, np.arange(len(loads)))
        phases_ms = estimator.join_ms(problem, loads[:, :NUM_TRAFFIC], lookup_ms)
        return cls(problem, estimator, rates, loads.copy(), free_bytes.copy(), lookup_ms, phases_ms, log_power)

    @property
    def score(self) -> tuple[float, float]:
        """Bytes over memory, smooth step."""
        return float(np.maximum(-self.free_bytes, 0).sum()), float(smooth_ms(self.phases_ms, self.log_power))

    def burden(self) -> NDArray[np.float64]:
        """How much each rank [W] has to do with the score: its part of the smooth step, or of the overflow."""
        over = np.maximum(-self.free_bytes, 0)
        if over.any():
            return over.astype(np.float64)
        top = np.maximum(self.phases_ms.max(axis=-1, keepdims=True), TINY_MS)
        return np.asarray((top * raised(self.phases_ms / top, self.log_power)).sum(axis=0))

    def screen(
        self, ranks: NDArray[np.int64], added: NDArray[np.float64], added_bytes: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scores [C] of changes that concern two ranks each, as a first look: lookups exact, transfers by rates.

        Args:
            ranks: int64 [C, 2].
            added: float64 [C, 2, K], loads that come and go there.
            added_bytes: int64 [C, 2].

        Returns:
            Bytes over memory and smooth step.
        """
        loads = self.loads[ranks] + added
        lookup_ms = self.estimator.lookup_ms(self.problem, loads, ranks) - self.lookup_ms[:, ranks]
        old = self.phases_ms.T[ranks]
        new = old + np.moveaxis(lookup_ms, 0, -1) @ self.rates.lookup.T
        new += added[..., :NUM_TRAFFIC] @ self.rates.traffic.T
        return self._overflow(ranks, added_bytes), self._smooth_after(old, new)

    def guess(
        self, ranks: NDArray[np.int64], added_ms: NDArray[np.float64], added_bytes: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scores [C] of such changes by prices alone, for a choice of those to screen.

        Args:
            ranks: int64 [C, 2].
            added_ms: float64 [C, 2, P], by which their phases grow, on a rank of average speed.
            added_bytes: int64 [C, 2].

        Returns:
            Bytes over memory and smooth step.
        """
        old = self.phases_ms.T[ranks]
        new = old + added_ms
        new[..., LOOKUP_ROWS] += added_ms[..., LOOKUP_ROWS] * (self.rates.slowness[ranks][..., None] - 1.0)
        return self._overflow(ranks, added_bytes), self._smooth_after(old, new)

    def _smooth_after(self, old: NDArray[np.float64], new: NDArray[np.float64]) -> NDArray[np.float64]:
        """Smooth steps [C] when phases [C, 2, P] of two ranks are no longer the old but the new ones."""
        top = np.maximum(self.phases_ms.max(axis=-1), TINY_MS)
        others = raised(self.phases_ms / top[:, None], self.log_power).sum(axis=-1)
        others = others - raised(old / top, self.log_power).sum(axis=1)
        times = np.clip(new / top, 0.0, HOPELESS)
        # What is left of a sum after its largest parts have been taken away may be below 0 by rounding.
        sums = np.maximum(others, 0.0) + raised(times, self.log_power).sum(axis=1)
        return np.asarray((top * _root(sums, self.log_power)).sum(axis=-1))

    def confirm(
        self, loads: NDArray[np.float64], free_bytes: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Exact scores [C] of loads [C, W, K] and free bytes [C, W]."""
        over = np.maximum(-free_bytes, 0).sum(axis=-1).astype(np.float64)
        return over, smooth_ms(self.phases_of(loads), self.log_power)

    def phases_of(self, loads: NDArray[np.float64]) -> NDArray[np.float64]:
        """Phases [C, P, W] of loads [C, W, K]; only ranks that changed are looked up again."""
        lookup_ms = np.repeat(self.lookup_ms[:, None], len(loads), axis=1)
        changed = (loads != self.loads).any(axis=-1)
        lookup_ms[:, changed] = self.estimator.lookup_ms(self.problem, loads[changed], np.nonzero(changed)[1])
        return self.estimator.join_ms(self.problem, loads[..., :NUM_TRAFFIC], lookup_ms)

    def _overflow(self, ranks: NDArray[np.int64], added_bytes: NDArray[np.int64]) -> NDArray[np.float64]:
        free = self.free_bytes[ranks]
        over = np.maximum(-self.free_bytes, 0).sum() - np.maximum(-free, 0).sum(axis=1)
        return np.asarray(over + np.maximum(added_bytes - free, 0).sum(axis=1), dtype=np.float64)
