"""The findings that hold, and when each of them may be asked about."""

import math
from dataclasses import dataclass

from cluster.imbalance.verdict import Cause, Verdict
from planner.replan import Decision

Place = Cause | int | None
Subject = tuple[Cause, int | None]
"""Cause and rank of a finding: what a cool-down is about."""


def place_of(verdict: Verdict) -> Place:
    """What a finding is about: a slow link may be told before its rank is known, and a slow rank's cause may change."""
    return verdict.cause if verdict.cause is Cause.SLOW_LINK else verdict.rank


def subject_of(verdict: Verdict) -> Subject:
    """Cause and rank."""
    return verdict.cause, verdict.rank


def lost_ms(verdict: Verdict, step: int) -> float:
    """What a finding has cost up to a step: its severity in every step since it began."""
    return verdict.severity_ms * max(0, step - verdict.since_step)


@dataclass(frozen=True)
class _Refused:
    """A no: at which step, and the one at which the loss reaches the price (ski rental), if that is yet to come."""

    step: int
    break_even_step: int | None


class StandingFindings:
    """Findings from their verdict to their end, or to the next plan.

    After a no a finding is not asked about for `cool_down_steps`, unless ski rental breaks even before: then waiting
    has cost as much as moving would. After a migration, whatever came of it, no finding is asked about for so long.
    """

    def __init__(self, cool_down_steps: int) -> None:
        """There is no finding yet."""
        self._cool_down_steps = cool_down_steps
        self._held: dict[Place, Verdict] = {}
        self._refused: dict[Subject, _Refused] = {}
        self._quiet_until = 0

    def note(self, verdict: Verdict) -> None:
        """Take notice of a verdict or of its end; of those that no plan can mend, none."""
        if not verdict.is_actionable:
            return
        if verdict.is_over:
            self._held.pop(place_of(verdict), None)
        else:
            self._held[place_of(verdict)] = verdict

    def refuse(self, verdict: Verdict, step: int, decision: Decision) -> None:
        """Remember a no."""
        self._refused[subject_of(verdict)] = _Refused(step, _break_even_step(verdict, step, decision))

    def rest(self, step: int, times: int = 1) -> None:
        """Ask about nothing for so many cool-downs from this step on."""
        self._quiet_until = step + times * self._cool_down_steps

    def forget(self) -> None:
        """Another plan trains: what was found of the one before is settled."""
        self._held.clear()
        self._refused.clear()

    def holds(self, verdict: Verdict) -> bool:
        """Whether a finding was not told to be over since."""
        return place_of(verdict) in self._held

    def due(self, step: int) -> Verdict | None:
        """The worst finding that may be asked about at this step."""
        asked = [verdict for verdict in self._held.values() if self._is_due(verdict, step)]
        return max(asked, key=lambda verdict: verdict.severity_ms, default=None)

    def slow_senders(self) -> tuple[int, ...]:
        """Ranks whose sends a probe found slow."""
        found = self._held.get(Cause.SLOW_LINK)
        return () if found is None or found.rank is None else (found.rank,)

    def _is_due(self, verdict: Verdict, step: int) -> bool:
        if step < self._quiet_until:
            return False
        before = self._refused.get(subject_of(verdict))
        if before is None or step >= before.step + self._cool_down_steps:
            return True
        return before.break_even_step is not None and step >= before.break_even_step


def _break_even_step(verdict: Verdict, step: int, decision: Decision) -> int | None:
    """When what the better plan would have saved since the finding began is the price; None where that is not asked."""
    saved_ms = min(verdict.severity_ms, decision.predicted_gain_ms)
    if decision.remaining_steps is not None or decision.plan is None or saved_ms <= 0:
        return None
    found = verdict.since_step + math.ceil(decision.price_ms / saved_ms)
    return found if found > step else None
