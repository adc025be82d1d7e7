"""From the workers to everyone who looks: records, measured steps, and what the watch finds in them."""

from dataclasses import replace
from typing import Any

import numpy as np

from cluster.imbalance.settings import WatchSettings
from cluster.imbalance.verdict import Cause, Verdict
from cluster.imbalance.watcher import Watcher
from cluster.mailbox import Drained
from cluster.worker_group import WorkerGroup
from dlrm.records import warning_record
from dlrm.trainer import PROBE_LINKS, STOP
from launcher.preparation import Prepared
from launcher.views.base import Observer


class Delivery:
    """Fetches what the ranks left, shows it to the observers and to the watch, and tells what that found.

    All ranks hold the same rows, and rank 0 speaks for them; where it is lost another one has its last rows.
    """

    def __init__(self, group: WorkerGroup, observer: Observer, watcher: Watcher | None) -> None:
        self._group, self._observer, self._watcher = group, observer, watcher
        self._is_stopping = self._is_probed = self._are_links_known = False
        self._step = 0

    def stop(self) -> None:
        """Ask all ranks to stop, once."""
        if not self._is_stopping:
            self._group.post({"kind": STOP})
        self._is_stopping = True

    def carry(self, timeout_s: float) -> None:
        """Hand on what is new."""
        (drained,) = self._group.poll(timeout_s, ranks=[0])
        self._take(drained)

    def carry_last(self, timeout_s: float) -> None:
        """Hand on what is left once the run has ended, from whichever rank still answers, and the notes of all."""
        self.carry(timeout_s)
        survivor = self._group.poll_survivor(timeout_s)
        self._take(replace(survivor, records=(), num_dropped=0))
        # The survivor's own notes came with its rows: what it is asked once more holds only later ones.
        rest = (survivor, *self._group.poll_rest(timeout_s))
        notes = tuple(record for each in rest for record in each.records if record["kind"] == "note")
        self._take(Drained(notes))

    def _take(self, drained: Drained) -> None:
        for block in drained.blocks:
            self._observer.show_block(block)
            for verdict in [] if self._watcher is None else self._watcher.update(block):
                self._tell(verdict)
        for record in drained.records:
            self._step = record["step"]
            self._observer.show(record)
            if record["kind"] == "links":
                self._locate(record["send_ms"])
            elif record["kind"] == "window" and self._watcher is not None and not self._is_probed:
                # What is usual for the links of this job is found in its first steps, which are not judged.
                self._probe()
        num_dropped = drained.num_dropped + sum(block.num_dropped for block in drained.blocks)
        if num_dropped:
            message = f"{num_dropped} records or rows were lost: this process was too slow to fetch them"
            self._observer.show(warning_record(message, self._step))
        self._observer.flush()

    def _tell(self, verdict: Verdict) -> None:
        """Show a verdict; a slow link that has no name yet is looked for."""
        self._observer.show(verdict.to_record())
        if verdict.cause is Cause.SLOW_LINK and verdict.rank is None and not verdict.is_over:
            self._probe()

    def _probe(self) -> None:
        """Ask for a probe of the links; a stop must stay the newest command."""
        self._is_probed = True
        if not self._is_stopping and self._group.world_size > 1:
            self._group.post({"kind": PROBE_LINKS})

    def _locate(self, send_ms: list[list[float | None]]) -> None:
        """The first probe is what is usual, any other one is to name a slow link."""
        if self._watcher is None:
            return
        found_ms = np.array(send_ms, dtype=np.float64)
        if not self._are_links_known:
            self._are_links_known = True
            self._watcher.learn_links(found_ms)
        elif (found := self._watcher.locate(found_ms)) is not None:
            self._observer.show(found.to_record())


def make_watcher(prepared: Prepared) -> Watcher | None:
    """The watch over a run under this plan; None where nobody wants it or nothing is measured."""
    config = prepared.task.config
    if not (config.imbalance.enabled and config.telemetry.enabled):
        return None
    wanted: dict[str, Any] = {name: value for name, value in vars(config.imbalance).items() if name != "enabled"}
    return Watcher(WatchSettings(**wanted), prepared.planned.cost.lookup_ms)
