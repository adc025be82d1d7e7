"""Plays a trace to a watcher as a run would, and judges what it says."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from cluster.imbalance.detectors import Detector
from cluster.imbalance.settings import WatchSettings
from cluster.imbalance.verdict import Cause, Verdict
from cluster.imbalance.watcher import Watcher
from cluster.telemetry import Block
from launcher.bench.detect_traces import Fault, Trace

POLL_STEPS = 30
"""Steps of a block: what a poll a second brings of steps of 30 ms."""


@dataclass(frozen=True)
class Outcome:
    """What became of one trace.

    Attributes:
        is_found: Whether there was a fault and an actionable verdict named its rank (of a slow link: its cause).
        num_false: Actionable verdicts that were wrong: in a harmless run, before the fault, or of another rank.
        is_right_cause: Of the first right verdict.
        is_right_rank: The same; of a slow link it takes the probe.
        is_right_tables: Whether the first right verdict named exactly the hot tables.
        delay_steps: From the fault's first step to the step that made the verdict certain.
        error_steps: By how much the verdict is wrong about the fault's first step.
        seconds: Processor time in the watcher.
    """

    is_found: bool
    num_false: int
    is_right_cause: bool = False
    is_right_rank: bool = False
    is_right_tables: bool = False
    delay_steps: int = 0
    error_steps: int = 0
    seconds: float = 0.0


def play(trace: Trace, detector: Detector, settings: WatchSettings) -> Outcome:
    """What a watch with a detector makes of a trace, fed poll after poll; it is given a link probe where it asks."""
    watcher = Watcher(settings, detector=detector)
    verdicts: list[Verdict] = []
    rank_found: int | None = None
    began_s = time.process_time()
    for block in _polls(trace):
        verdicts += [each for each in watcher.update(block) if each.is_actionable and not each.is_over]
        if trace.send_ms is not None and any(each.cause is Cause.SLOW_LINK for each in verdicts):
            located = watcher.locate(trace.send_ms)
            rank_found = located.rank if located else rank_found
    return _judge(verdicts, rank_found, trace.fault, time.process_time() - began_s)


def score(outcomes: Sequence[Outcome], num_faults: int) -> dict[str, float | None]:
    """F1, share of right causes and median delay of runs of which so many had a fault.

    Precision counts every wrong verdict, so a run with two counts twice. What does not exist is None: F1 where there
    was neither a fault nor a verdict, the others where nothing was found.
    """
    found = [each for each in outcomes if each.is_found]
    num_false = sum(each.num_false for each in outcomes)
    weight = num_faults + len(found) + num_false
    return {
        "f1": 2 * len(found) / weight if weight else None,
        "cause_accuracy": sum(each.is_right_cause for each in found) / len(found) if found else None,
        "delay_steps_median": float(median(each.delay_steps for each in found)) if found else None,
    }


def _polls(trace: Trace) -> list[Block]:
    """The trace cut into what each poll brings: steps, then shards."""
    blocks = []
    taken = 0
    for begin in range(0, len(trace.steps.steps), POLL_STEPS):
        part = slice(begin, begin + POLL_STEPS)
        blocks.append(_cut(trace.steps, part))
        if trace.shards is not None:
            until = int(np.searchsorted(trace.shards.steps, blocks[-1].steps[-1], side="right"))
            blocks.append(_cut(trace.shards, slice(taken, until)))
            taken = until
    return [block for block in blocks if len(block.steps)]


def _cut(block: Block, part: slice) -> Block:
    return Block(block.name, block.labels, block.steps[part], block.rows[part])


def _judge(verdicts: list[Verdict], rank_found: int | None, fault: Fault | None, seconds: float) -> Outcome:
    right = [each for each in verdicts if fault is not None and _is_right(each, fault)]
    num_false = len(verdicts) - len(right)
    if fault is None or not right:
        return Outcome(False, num_false, seconds=seconds)
    first = right[0]
    return Outcome(
        is_found=True,
        num_false=num_false,
        is_right_cause=first.cause is fault.cause,
        is_right_rank=(rank_found if first.rank is None else first.rank) == fault.rank,
        is_right_tables=first.tables == fault.tables,
        delay_steps=first.step - fault.first_step + 1,
        error_steps=abs(first.since_step - fault.first_step),
        seconds=seconds,
    )


def _is_right(verdict: Verdict, fault: Fault) -> bool:
    if verdict.step < fault.first_step:
        return False
    return verdict.rank == fault.rank or (verdict.cause is fault.cause is Cause.SLOW_LINK and verdict.rank is None)
