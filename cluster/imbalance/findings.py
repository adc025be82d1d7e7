"""What was told and is not over: each finding once, its end once, and again when it got much worse."""

import math
from dataclasses import dataclass, replace

from cluster.imbalance.diagnosis import Finding
from cluster.imbalance.verdict import Cause, Verdict

WORSE = 1.5
"""A finding is told again when its growth is so many times what it was: that may be worth another plan."""


@dataclass(frozen=True)
class OfPlan:
    """What a rank had too much of from the plan's first step; what slows it later is another finding."""

    rank: int


Place = int | Cause | OfPlan
"""What a finding is about: a rank, by its cause the links or the whole fleet, or a rank's share of the plan."""


@dataclass(frozen=True)
class _Held:
    finding: Finding
    told_step: int


class Findings:
    """The findings of one plan. A plan's own fault, there from its first step, lasts until the next plan."""

    def __init__(self, cool_down_steps: int) -> None:
        """Nothing was told yet."""
        self._cool_down_steps = cool_down_steps
        self._held: dict[Place, _Held] = {}
        self._ended: dict[Place, int] = {}

    def places(self) -> tuple[Place, ...]:
        """What there are findings about."""
        return tuple(self._held)

    def ranks(self) -> list[int]:
        """Which ranks became slow and still are."""
        return [place for place in self._held if isinstance(place, int)]

    def is_apart_from_ranks(self, since_step: int, step: int) -> bool:
        """Whether what began at `since_step` is no rank's doing: every slow one was so long before, or is no more."""
        latest = max((self._held[rank].finding.verdict.since_step for rank in self.ranks()), default=None)
        touched = [place for place in (*self._held, *self._ended) if isinstance(place, int)]
        return all(self.may_tell(place, step) for place in touched) and (
            latest is None or since_step > latest + self._cool_down_steps
        )

    def ended_step(self, place: Place) -> int:
        """When the last finding about this place ended, 0 where there was none."""
        return self._ended.get(place, 0)

    def may_tell(self, place: Place, step: int) -> bool:
        """Whether a finding about this place may be told at this step."""
        held = self._held.get(place)
        before = held.told_step if held else self._ended.get(place)
        return before is None or step - before >= self._cool_down_steps

    def tell(self, place: Place, finding: Finding, step: int) -> list[Verdict]:
        """The verdict of a finding that is new, or much worse than what was told of its place."""
        held = self._held.get(place)
        if held and math.expm1(finding.growth) < WORSE * math.expm1(held.finding.growth):
            return []
        if held:
            finding = replace(finding, verdict=replace(finding.verdict, step=step))
        self._held[place] = _Held(finding, step)
        return [finding.verdict]

    def end(self, place: Place, step: int) -> list[Verdict]:
        """The verdict that what was found about a place is over."""
        held = self._held.pop(place)
        self._ended[place] = step
        return [replace(held.finding.verdict, step=step, is_over=True)]

    def locate(self, rank: int, step: int) -> Verdict | None:
        """The verdict of the slow link that was told without a rank, now with it; None where there is none such."""
        held = self._held.get(Cause.SLOW_LINK)
        if held is None or held.finding.verdict.rank is not None:
            return None
        verdict = replace(held.finding.verdict, rank=rank, step=step)
        self._held[Cause.SLOW_LINK] = replace(held, finding=replace(held.finding, verdict=verdict))
        return verdict
