"""What is remembered of the steps under the present plan: enough to plan again, and no more."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.imbalance.baseline import lower_median
from cluster.imbalance.best_of import BestOfLast
from cluster.imbalance.settings import WatchSettings
from cluster.telemetry import Block
from launcher.resharding.table_ids import TableIds
from planner.cost.estimator import COMMS_PHASES, PHASES
from planner.plan import ShardingPlan
from planner.replan import Observation

Floats = NDArray[np.float64]

OBSERVED_STEPS = 50
"""Steps that an observation is the median of, at most: it is known to a sixth of a step's noise. A longer stretch would
reach back behind a drift that went on."""

LEAST_STEPS = 10
"""Of fewer steps nothing is said: their median scatters by more than what a move is made for."""


FLEET_PHASES = ("dense_forward", "dense_backward")
"""Work that is the same under any plan and on any rank: it tells how fast the fleet is just now."""


@dataclass(frozen=True, eq=False)
class StepTimes:
    """Steps that are to be compared with others.

    Attributes:
        step_ms: float64 [n], as `PlanCost.step_ms` counts them, and so any promise: the sum over phases of the slowest
            rank's own work.
        fleet_ms: float64 [n], dense layers of the fleet: the lower median over ranks, which no single slow one moves.
    """

    step_ms: Floats
    fleet_ms: Floats

    def __len__(self) -> int:
        """n."""
        return len(self.step_ms)

    def first(self, count: int) -> "StepTimes":
        """The first of them."""
        return StepTimes(self.step_ms[:count], self.fleet_ms[:count])

    def at_speed_of(self, other: "StepTimes") -> Floats:
        """The steps [n] as they would be were the fleet as fast as in `other`.

        A machine that got slower or faster for all, by a neighbour or its temperature, is no doing of a plan.
        """
        own_ms, wanted_ms = np.median(self.fleet_ms), np.median(other.fleet_ms)
        return self.step_ms * (wanted_ms / own_ms if own_ms > 0 and wanted_ms > 0 else 1.0)


def own_work_ms(block: Block) -> Floats:
    """Own work [S, P, W] in a block of the series "steps": of a collective the shortest duration over ranks.

    It ends when its last rank arrives, so what another one has beyond the shortest is waiting.
    """
    columns = list(block.labels["columns"])
    found = block.rows[..., [columns.index(f"{phase}_ms") for phase in PHASES]]
    for phase in map(PHASES.index, COMMS_PHASES):
        found[..., phase] = found[..., phase].min(axis=1, keepdims=True)
    return np.swapaxes(found, 1, 2)


class _Steps:
    """Own work [S, P, W] of consecutive steps [S]: the last, or the first, so many."""

    def __init__(self, num_ranks: int, most_steps: int) -> None:
        self.most_steps = most_steps
        self.steps = np.zeros(0, dtype=np.int64)
        self.own_ms = np.zeros((0, len(PHASES), num_ranks))

    def add(self, steps: NDArray[np.int64], own_ms: Floats) -> None:
        """Append; the oldest go."""
        kept = slice(-self.most_steps, None)
        self.steps = np.concatenate([self.steps, steps])[kept]
        self.own_ms = np.concatenate([self.own_ms, own_ms])[kept]

    def times(self, since_step: int) -> StepTimes:
        """Those from a step on."""
        own_ms = self.own_ms[self.steps >= since_step]
        dense_ms = own_ms[:, list(map(PHASES.index, FLEET_PHASES))].sum(axis=1)
        return StepTimes(own_ms.max(axis=2).sum(axis=1), lower_median(dense_ms))

    @property
    def num_missing(self) -> int:
        """How many more there is room for."""
        return self.most_steps - len(self.steps)


class PlanMemory:
    """The first steps of a plan behind its warm-up, its last ones, and samples of what its tables were asked for.

    Of each phase the best of some steps is kept, as the watch looks at them: what interrupts a rank is no work of its
    own, and a third of the noise is left. A row of W ranks takes 80 W bytes; of 256 ranks all that is kept is 3 MB.
    """

    def __init__(self, plan: ShardingPlan, watch: WatchSettings, settle_steps: int) -> None:
        """Nothing was seen yet.

        Args:
            plan: Trains now.
            watch: Whose warm-up and baseline the healthy steps are.
            settle_steps: Steps that are asked for of `times`, at most.
        """
        self._watch, self._num_warm = watch, 0
        self._best = BestOfLast()
        self._first = _Steps(plan.world_size, watch.baseline_steps)
        self._last = _Steps(plan.world_size, max(OBSERVED_STEPS, settle_steps))
        self._ids = TableIds(plan)

    @property
    def last_step(self) -> int:
        """Of the newest row; 0 before the first."""
        return int(self._last.steps[-1]) if len(self._last.steps) else 0

    def add(self, block: Block) -> None:
        """Take a block of either series."""
        if block.name == "shards":
            self._ids.add(block)
        if block.name != "steps" or not len(block.steps):
            return
        own_ms = self._best.take(own_work_ms(block))
        self._last.add(block.steps, own_ms)
        skipped = min(self._watch.warmup_steps - self._num_warm, len(block.steps))
        self._num_warm += skipped
        part = slice(skipped, skipped + self._first.num_missing)
        self._first.add(block.steps[part], own_ms[part])

    def observe(self, since_step: int, slow_senders: tuple[int, ...]) -> Observation | None:
        """The job as it has been lately, at most since a step; None where that is too short to say."""
        part = self._last.steps >= since_step
        if part.sum() < LEAST_STEPS:
            return None
        own_ms = np.median(self._last.own_ms[part][-OBSERVED_STEPS:], axis=0)
        return Observation(own_ms, *self._ids.since(since_step), slow_senders)

    def observe_healthy(self, before_step: int) -> Observation | None:
        """The job as it was in the first steps under this plan, before a step; None where these are too few."""
        part = self._first.steps < before_step
        if part.sum() < LEAST_STEPS:
            return None
        return Observation(np.median(self._first.own_ms[part], axis=0), *self._ids.before(before_step))

    def times(self, since_step: int) -> StepTimes:
        """Steps from a step on, of those that are kept."""
        return self._last.times(since_step)
