"""The watch over a running job: blocks of measured steps in, verdicts out."""

import numpy as np
from numpy.typing import NDArray

from cluster.imbalance.best_of import BestReader, BestSteps, join_steps
from cluster.imbalance.detectors import DETECTORS, Detector
from cluster.imbalance.diagnosis import find_slow_sender
from cluster.imbalance.findings import Findings, OfPlan
from cluster.imbalance.first_plan import judge_first_plan
from cluster.imbalance.monitor import MOST_STEPS, Monitor
from cluster.imbalance.running import SPAN
from cluster.imbalance.settings import WatchSettings
from cluster.imbalance.shard_ids import ShardIds
from cluster.imbalance.verdict import Cause, Verdict
from cluster.telemetry import Block

SUSPECT = 0.75
"""A rank whose score is at so much of an alarm may be the reason for slow transfers: they are judged when it is told
or calm."""


class Watcher:
    """Watches one plan: learns what is usual, then tells every finding once, and once when it is over.

    A finding is told again when it got half as bad again. Of one poll the block of shards may come before or after that
    of steps. With one rank there is nothing to compare, and no verdict. What is kept does not grow.
    """

    def __init__(
        self,
        settings: WatchSettings,
        expected_lookup_ms: NDArray[np.float64] | None = None,
        detector: Detector | None = None,
    ) -> None:
        """Begins with the warm-up.

        Args:
            settings: Of the watch.
            expected_lookup_ms: [W], what the plan promised of each rank's lookups.
            detector: In place of the one that the settings name, as one with another threshold.
        """
        self._settings = settings
        self._detector = detector or DETECTORS[settings.detector]
        self._usual_send_ms: NDArray[np.float64] | None = None
        self.reset(expected_lookup_ms)

    def reset(self, expected_lookup_ms: NDArray[np.float64] | None = None) -> None:
        """Forgets all but the healthy links: for after a new plan, with what it promises, or a restart."""
        self._expected_lookup_ms = expected_lookup_ms
        self._reader = BestReader()
        self._num_warm = 0
        self._learning: list[BestSteps] = []
        self._monitor: Monitor | None = None
        self._shards = ShardIds()
        self._findings = Findings(self._settings.cool_down_steps)

    def update(self, block: Block) -> list[Verdict]:
        """Takes a block of either series, of any number of steps, and gives the verdicts that it leads to.

        Raises ValueError where a needed column is missing, or ranks or columns changed without a reset.
        """
        if block.name == "shards":
            self._shards.add(block, self._monitor.baseline.last_step if self._monitor else None)
            return self._judge()
        if block.name != "steps" or block.rows.shape[1] < 2:
            return []
        signals = self._reader.read(block)
        verdicts = []
        for begin in range(0, len(signals.steps), MOST_STEPS):
            verdicts += self._take(signals.part(slice(begin, begin + MOST_STEPS)))
        return verdicts

    def learn_links(self, send_ms: NDArray[np.float64]) -> None:
        """Takes a probe of healthy links, [W, W] as of `locate`, to which later ones are held; resets keep it."""
        self._usual_send_ms = np.array(send_ms, dtype=np.float64)

    def locate(self, send_ms: NDArray[np.float64]) -> Verdict | None:
        """The verdict of a slow link that had no rank, with the rank that a probe of all links shows, if it does.

        Links are held against the healthy ones where `learn_links` was told of the same number of ranks, else against
        each other.

        Args:
            send_ms: [W, W], one-way times of small messages; row = sender, NaN where not probed.
        """
        usual_ms = self._usual_send_ms
        is_comparable = usual_ms is not None and usual_ms.shape == send_ms.shape
        rank = find_slow_sender(send_ms, usual_ms if is_comparable else None)
        if rank is None or self._monitor is None:
            return None
        return self._findings.locate(rank, self._monitor.last_step)

    def _take(self, signals: BestSteps) -> list[Verdict]:
        """Warm up, learn, or watch, whatever the next steps are for."""
        skipped = min(self._settings.warmup_steps - self._num_warm, len(signals.steps))
        self._num_warm += skipped
        signals = signals.part(slice(skipped, None))
        if self._monitor is not None:
            self._monitor.take(signals)
            return self._judge()
        num_missing = self._settings.baseline_steps - sum(len(part.steps) for part in self._learning)
        self._learning.append(signals.part(slice(0, num_missing)))
        if len(signals.steps) < num_missing:
            return []
        verdicts = self._begin(join_steps(self._learning))
        return [*verdicts, *self._take(signals.part(slice(num_missing, None)))]

    def _begin(self, learned: BestSteps) -> list[Verdict]:
        """Watch from now on; tell what is out of balance already."""
        self._learning.clear()
        self._monitor = Monitor(learned, self._settings, self._detector)
        verdicts = []
        for finding in judge_first_plan(self._monitor.baseline, self._expected_lookup_ms):
            assert finding.verdict.rank is not None
            verdicts += self._findings.tell(OfPlan(finding.verdict.rank), finding, finding.verdict.step)
        return verdicts

    def _judge(self) -> list[Verdict]:
        """What the alarms lead to, ranks first: a slow rank may be why transfers are slow."""
        if self._monitor is None:
            return []
        return [*self._judge_ranks(self._monitor), *self._judge_fleet(self._monitor)]

    def _judge_ranks(self, monitor: Monitor) -> list[Verdict]:
        verdicts = []
        ranks_on = np.flatnonzero(monitor.rank_alarms()).tolist()
        for rank in ranks_on:
            if self._findings.may_tell(rank, monitor.last_step):
                finding = monitor.diagnose(rank, self._findings.ended_step(rank), self._shards)
                if not self._awaits_shards(finding.verdict):
                    verdicts += self._findings.tell(rank, finding, monitor.last_step)
        for rank in self._findings.ranks():
            if rank not in ranks_on:
                verdicts += self._findings.end(rank, monitor.last_step)
        return verdicts

    def _awaits_shards(self, verdict: Verdict) -> bool:
        """Whether the next sample of the shards will tell which tables are hot."""
        last = self._shards.last_step
        return verdict.cause is Cause.HOT_TABLE and last is not None and last < verdict.since_step + SPAN

    def _judge_fleet(self, monitor: Monitor) -> list[Verdict]:
        verdicts, step = [], monitor.last_step
        for cause in (Cause.SLOW_LINK, Cause.GLOBAL_DRIFT):
            if not monitor.alarms(cause):
                verdicts += self._findings.end(cause, step) if cause in self._findings.places() else []
            elif self._findings.may_tell(cause, step):
                finding = monitor.diagnose_fleet(cause, self._findings.ended_step(cause))
                if cause is Cause.GLOBAL_DRIFT or self._is_link_only(monitor, finding.verdict.since_step):
                    verdicts += self._findings.tell(cause, finding, step)
        return verdicts

    def _is_link_only(self, monitor: Monitor, since_step: int) -> bool:
        """Whether no rank may be why transfers are slow: none is suspect, or all that are were told of long before."""
        suspects, slow_ranks = np.flatnonzero(monitor.suspects(SUSPECT)).tolist(), self._findings.ranks()
        if not set(suspects) <= set(slow_ranks) or (slow_ranks and not monitor.sees_before(since_step)):
            return False
        return self._findings.is_apart_from_ranks(since_step, monitor.last_step)
