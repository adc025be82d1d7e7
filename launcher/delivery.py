"""From the workers to everyone who looks: records, measured steps, and what the watch finds in them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from cluster.imbalance.settings import WatchSettings
from cluster.imbalance.verdict import Cause, Verdict
from cluster.imbalance.watcher import Watcher
from cluster.mailbox import Drained
from cluster.telemetry import Block
from cluster.worker_group import WorkerGroup
from dlrm.records import warning_record
from launcher.commands import Commands
from launcher.preparation import Prepared
from launcher.resharding.loop import Resharding
from launcher.schema import RunConfig
from launcher.views.base import Observer


class Delivery:
    """Fetches what the ranks left, shows it to the observers, the watch and the re-sharding, and tells what they found.

    All ranks hold the same rows, and rank 0 speaks for them; where it is lost another one has its last rows.
    """

    def __init__(
        self,
        group: WorkerGroup,
        observer: Observer,
        watcher: Watcher | None,
        commands: Commands | None = None,
        resharding: Resharding | None = None,
    ) -> None:
        """Nothing was fetched yet; `commands` are those that the re-sharding uses, where there is one."""
        self._group, self._observer, self._watcher = group, observer, watcher
        self._commands, self._resharding = commands or Commands(group.post), resharding
        self._is_probed = self._are_links_known = False
        self._columns: list[str] | None = None
        self._step = 0

    def stop(self) -> None:
        """Ask all ranks to stop, once."""
        self._commands.stop()

    def carry(self, timeout_s: float) -> None:
        """Hand on what is new, and let the re-sharding do what is due."""
        (drained,) = self._group.poll(timeout_s, ranks=[0])
        self._take(drained)
        if self._resharding is not None:
            self._resharding.proceed()
        self._observer.flush()

    def carry_last(self, timeout_s: float) -> None:
        """Hand on what is left once the run has ended, from whichever rank still answers, and the notes of all."""
        (drained,) = self._group.poll(timeout_s, ranks=[0])
        self._take(drained)
        survivor = self._group.poll_survivor(timeout_s)
        self._take(replace(survivor, records=(), num_dropped=0))
        # The survivor's own notes came with its rows: what it is asked once more holds only later ones.
        rest = (survivor, *self._group.poll_rest(timeout_s))
        notes = tuple(record for each in rest for record in each.records if record["kind"] == "note")
        self._take(Drained(notes))
        if self._resharding is not None:
            self._resharding.close()
        self._observer.flush()

    def _take(self, drained: Drained) -> None:
        for each in in_order(drained):
            if isinstance(each, Block):
                self._take_block(each)
            else:
                self._take_record(each)
        num_dropped = drained.num_dropped + sum(block.num_dropped for block in drained.blocks)
        if num_dropped:
            message = f"{num_dropped} records or rows were lost: this process was too slow to fetch them"
            self._observer.show(warning_record(message, self._step))

    def _take_block(self, block: Block) -> None:
        self._observer.show_block(block)
        if self._resharding is not None:
            self._resharding.see_block(block)
        if self._watcher is not None and self._is_of_plan(block):
            for verdict in self._watcher.update(block):
                self._tell(verdict)

    def _is_of_plan(self, block: Block) -> bool:
        """Whether the watch can read a block; not where its columns changed with a plan whose record is lost."""
        if block.name != "steps":
            return True
        columns = list(block.labels["columns"])
        self._columns = self._columns or columns
        return self._columns == columns

    def _take_record(self, record: dict[str, Any]) -> None:
        self._step = record["step"]
        self._observer.show(record)
        self._commands.take_answer(record)
        if is_migrated(record):
            self._columns = None
        if self._resharding is not None:
            self._resharding.see_record(record)
        if record["kind"] == "links":
            self._locate(record["send_ms"])
        elif record["kind"] == "window" and self._watcher is not None and not self._is_probed:
            # What is usual for the links of this job is found in its first steps, which are not judged.
            self._probe()

    def _tell(self, verdict: Verdict) -> None:
        """Show a verdict; a slow link that has no name yet is looked for."""
        self._observer.show(verdict.to_record())
        if self._resharding is not None:
            self._resharding.see_verdict(verdict)
        if verdict.cause is Cause.SLOW_LINK and verdict.rank is None and not verdict.is_over:
            self._probe()

    def _probe(self) -> None:
        self._is_probed = True
        if self._group.world_size > 1:
            self._commands.probe_links()

    def _locate(self, send_ms: list[list[float | None]]) -> None:
        """The first probe is what is usual, any other one is to name a slow link."""
        if self._watcher is None:
            return
        found_ms = np.array(send_ms, dtype=np.float64)
        if not self._are_links_known:
            self._are_links_known = True
            self._watcher.learn_links(found_ms)
        elif (found := self._watcher.locate(found_ms)) is not None:
            self._tell(found)


def in_order(drained: Drained) -> Iterator[Block | dict[str, Any]]:
    """What one poll brought as it came about: rows, then records, a committed migration between the rows it parts."""
    blocks, begin = list(drained.blocks), 0
    for index, record in enumerate(drained.records):
        if is_migrated(record):
            parts = [_split(block, record["step"]) for block in blocks]
            yield from (before for before, _ in parts if len(before.steps))
            yield from drained.records[begin : index + 1]
            blocks, begin = [after for _, after in parts if len(after.steps)], index + 1
    yield from blocks
    yield from drained.records[begin:]


def is_migrated(record: dict[str, Any]) -> bool:
    """Whether a record tells that another plan trains now."""
    return record["kind"] == "migration" and record["is_committed"]


def make_watcher(prepared: Prepared) -> Watcher | None:
    """The watch over a run under this plan; None where nobody wants it or nothing is measured."""
    config = prepared.task.config
    if not (config.imbalance.enabled and config.telemetry.enabled):
        return None
    return Watcher(watch_settings(config), prepared.planned.cost.lookup_ms)


def watch_settings(config: RunConfig) -> WatchSettings:
    """How the watch learns and how sure it has to be."""
    wanted: dict[str, Any] = {name: value for name, value in vars(config.imbalance).items() if name != "enabled"}
    return WatchSettings(**wanted)


def _split(block: Block, step: int) -> tuple[Block, Block]:
    """The rows up to a step, with what was dropped before them, and those after it."""
    cut = int(np.searchsorted(block.steps, step, side="right"))
    before = replace(block, steps=block.steps[:cut], rows=block.rows[:cut])
    return before, replace(block, steps=block.steps[cut:], rows=block.rows[cut:], num_dropped=0)
