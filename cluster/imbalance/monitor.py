"""The state of a watch once a baseline is learned: the last steps, scored, and which channels alarm."""

import numpy as np
from numpy.typing import NDArray

from cluster.imbalance.alarm import Alarm
from cluster.imbalance.baseline import Baseline, Channels, learn_baseline
from cluster.imbalance.best_of import BestSteps
from cluster.imbalance.detectors import Detector
from cluster.imbalance.diagnosis import Evidence, Finding, diagnose_fleet, diagnose_rank
from cluster.imbalance.history import History
from cluster.imbalance.running import SPAN, running_median
from cluster.imbalance.settings import WatchSettings
from cluster.imbalance.shard_ids import ShardIds
from cluster.imbalance.verdict import Cause

MOST_STEPS = 64
"""Steps taken at once. A poll brings about 30; what came after an outage is cut, so that no buffer has to grow."""


class Monitor:
    """The state once a baseline is learned: the last steps and the alarms."""

    def __init__(self, learned: BestSteps, settings: WatchSettings, detector: Detector) -> None:
        self.baseline: Baseline = learn_baseline(learned)
        self._channels = Channels(learned.ids.shape[1])
        self._detector = detector
        self._alarm = Alarm(self._channels.count, settings.persistence_steps)
        self._history = History(self._channels)
        for begin in range(0, len(learned.steps), MOST_STEPS):
            self._history.push(self.baseline.measure(learned.part(slice(begin, begin + MOST_STEPS))))
        self.last_step = self.baseline.last_step

    def take(self, signals: BestSteps) -> None:
        """Score the next steps."""
        added = len(signals.steps)
        if not added:
            return
        self._history.push(self.baseline.measure(signals))
        z_scores = self.baseline.standardize(self._history.view().growth)
        self._alarm.update(signals.steps, self._detector.score(z_scores, added), running_median(z_scores, added))
        self.last_step = int(signals.steps[-1])

    def rank_alarms(self) -> NDArray[np.bool_]:
        """Whether any of the work of each rank alarms, [W]."""
        return self._channels.any_of_rank(self._alarm.is_on)

    def alarms(self, cause: Cause) -> bool:
        """Whether the channel of SLOW_LINK or GLOBAL_DRIFT does."""
        return bool(self._alarm.is_on[self._fleet_channel(cause)])

    def suspects(self, level: float) -> NDArray[np.bool_]:
        """Which ranks [W] have work whose score persists at a level or more."""
        return self._channels.any_of_rank(self._alarm.level >= level)

    def sees_before(self, step: int) -> bool:
        """Whether the steps kept still show how it was before a step, and not only that it is so since long."""
        return step >= int(self._history.view().steps[0]) + SPAN

    def diagnose(self, rank: int, after_step: int, shards: ShardIds) -> Finding:
        """Why a rank alarms, as of the step at which it first did."""
        channels = [channel for channel in self._channels.of_rank(rank) if self._alarm.is_on[channel]]
        step = int(self._alarm.on_step[channels].min())
        return diagnose_rank(self._evidence(after_step), rank, step, self._alarm.is_on, shards.hot_tables)

    def diagnose_fleet(self, cause: Cause, after_step: int) -> Finding:
        """What a slow link or a slow fleet costs."""
        step = int(self._alarm.on_step[self._fleet_channel(cause)])
        return diagnose_fleet(self._evidence(after_step), cause, step)

    def _fleet_channel(self, cause: Cause) -> int:
        return self._channels.transfer if cause is Cause.SLOW_LINK else self._channels.drift

    def _evidence(self, after_step: int) -> Evidence:
        return Evidence(self.baseline, self._history.view(), after_step)
