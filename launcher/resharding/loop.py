"""The controller's loop: findings and requests in, moves out, each of them compared with its promise."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.imbalance.settings import WatchSettings
from cluster.imbalance.verdict import Verdict
from cluster.telemetry import Block
from dlrm.records import warning_record
from launcher.commands import Commands
from launcher.priced_plan import REPLANNED, REQUESTED, PricedPlan
from launcher.resharding.findings import StandingFindings, lost_ms, subject_of
from launcher.resharding.memory import PlanMemory, StepTimes
from launcher.resharding.moves import Move, SettlingMove, failure_record, price_plan
from launcher.resharding.price import PriceList
from launcher.resharding.records import (
    ADVISED,
    MOVE,
    NO,
    REQUEST,
    ROLLBACK,
    VERDICT,
    decision_record,
    outcome_record,
    refusal,
)
from launcher.resharding.requests import FAILED, MOVED, REFUSED, UNCHANGED, Request, RequestBox
from launcher.resharding.search import Answer, Question, Search
from launcher.schema import ReshardingSection
from planner.check import check
from planner.errors import PlanningError
from planner.plan import ShardingPlan
from planner.replan import Decision, Outcome
from planner.transfers import moved_bytes

NO_SUBJECT = (None, None)

RESTS_LONGER = 4
"""Times the cool-down before, after each loss in a row: a model that promised wrongly will promise the same again."""


@dataclass(frozen=True)
class Surroundings:
    """What the loop acts on.

    Attributes:
        commands: To the workers.
        tell: Shows a record to everyone.
        adopt: Told of a plan that trains from the step after a given one on, and whether its cost is a promise: that
            of a plan that is gone back to was made for another load.
        requests: Of users.
    """

    commands: Commands
    tell: Callable[[dict[str, Any]], None]
    adopt: Callable[[PricedPlan, int, bool], None]
    requests: RequestBox


class Resharding:
    """Decides about the plan of a running job; one search and one move at a time.

    It sees what the workers deliver, in order, and goes on with `proceed` after each poll. Users' requests are served
    also where `resharding.enabled` is false. They come before findings, and one that comes while the last move is still
    being compared ends the comparison.
    """

    def __init__(
        self,
        settings: ReshardingSection,
        watch: WatchSettings,
        planned: PricedPlan,
        prices: PriceList,
        search: Search,
        around: Surroundings,
    ) -> None:
        """Begins with the plan that trains first."""
        self._settings, self._watch, self._around, self._search = settings, watch, around, search
        self._present, self._prices = planned, prices
        self._findings = StandingFindings(settings.cool_down_steps)
        self._memory = PlanMemory(planned.plan, watch, settings.settle_steps)
        self._move: Move | None = None
        self._settling: SettlingMove | None = None
        self._num_moves = self._num_losses = self._window_step = 0
        self._total_steps: int | None = None
        self._has_warned = False

    def see_block(self, block: Block) -> None:
        """Measured steps, or what was looked up in sampled ones."""
        self._memory.add(block)

    def see_verdict(self, verdict: Verdict) -> None:
        """What the watch found."""
        self._findings.note(verdict)

    def see_record(self, record: Mapping[str, Any]) -> None:
        """A record of the workers: a window tells how far the job is, a migration what came of a move."""
        if record["kind"] == "window":
            self._window_step, self._total_steps = record["step"], record["total_steps"]
        elif record["kind"] == "migration" and self._move is not None and record["move"] == self._move.number:
            move, self._move = self._move, None
            self._findings.rest(record["step"], RESTS_LONGER**self._num_losses)
            (self._make if record["is_committed"] else self._leave)(move, record)

    def proceed(self) -> None:
        """Do what is due; nothing once a stop was asked for."""
        for act in (self._judge, self._decide, self._serve, self._ask):
            if self._move is None and not self._around.commands.is_stopping:
                act()

    def close(self) -> None:
        """The run has ended: no search goes on, and nobody waits for an answer."""
        self._search.close()
        if self._move is not None:
            message = f"move {self._move.number} was asked for, and the run ended before it was made"
            self._around.tell(warning_record(message, self._step))
        self._guard(self._around.requests.close)

    @property
    def _step(self) -> int:
        """The newest step that is known."""
        return max(self._window_step, self._memory.last_step)

    @property
    def _remaining_steps(self) -> int | None:
        """In which a move must earn its price."""
        left = None if self._total_steps is None else max(0, self._total_steps - self._step)
        return min((n for n in (left, self._settings.horizon_steps) if n is not None), default=None)

    def _ask(self) -> None:
        """Ask about the worst finding that is due; not while a probe may be about to tell which link is slow."""
        if not self._settings.enabled or self._settling is not None or self._search.is_busy:
            return
        verdict = self._findings.due(self._step) if self._around.commands.is_idle else None
        if verdict is None:
            return
        try:
            seen = self._memory.observe(verdict.since_step, self._findings.slow_senders())
            healthy = self._memory.observe_healthy(verdict.since_step)
        except ValueError as error:  # a figure that no clock gives: not worth the training
            self._refuse(verdict, NO, refusal(self._present.cost.step_ms, str(error)))
            return
        if seen is None:
            return
        question = Question(
            verdict=verdict,
            step=self._step,
            plan=self._present.plan,
            seen=seen,
            healthy=healthy,
            price=self._prices.present,
            remaining_steps=self._remaining_steps,
            lost_ms=lost_ms(verdict, self._step),
            before=self._memory.times(verdict.since_step),
        )
        self._search.ask(question)

    def _decide(self) -> None:
        """Act on a decision that the search has come to, unless the plan has changed since."""
        answer = self._search.take()
        if answer is None or answer.question.plan is not self._present.plan:
            return
        verdict, decision = answer.question.verdict, _decision_of(answer)
        if decision.is_move and not self._findings.holds(verdict):
            decision = refusal(decision.step_ms, "the finding was over before a plan was found", decision.expected)
        if not decision.is_move:
            self._refuse(verdict, NO, decision)
        elif self._settings.mode == "advise":
            self._refuse(verdict, ADVISED, decision)
        else:
            assert decision.plan is not None and decision.expected is not None, "a move needs a plan"
            planned = price_plan(self._present, decision.plan, decision.expected, REPLANNED)
            self._begin(planned, VERDICT, subject_of(verdict), decision, answer.question.before)

    def _refuse(self, verdict: Verdict, answer: str, decision: Decision) -> None:
        self._findings.refuse(verdict, self._step, decision)
        self._around.tell(decision_record(self._step, None, VERDICT, subject_of(verdict), answer, decision))

    def _begin(
        self,
        planned: PricedPlan,
        trigger: str,
        subject: tuple[str | None, int | None],
        decision: Decision,
        before: StepTimes,
        request: str | None = None,
    ) -> None:
        """Ask the workers to move, and tell everyone."""
        self._num_moves += 1
        self._settling = None
        self._move = Move(self._num_moves, trigger, planned, decision.predicted_gain_ms, before, request)
        self._around.tell(decision_record(self._step, self._num_moves, trigger, subject, MOVE, decision))
        self._around.commands.reshard(self._num_moves, planned.plan.to_dict(), decision.reason)

    def _make(self, move: Move, migration: Mapping[str, Any]) -> None:
        """The workers train under the new plan."""
        previous, self._present = self._present, move.planned
        self._findings.forget()
        self._memory = PlanMemory(move.planned.plan, self._watch, self._settings.settle_steps)
        self._prices.learn(migration)
        self._around.adopt(move.planned, migration["step"], move.trigger != ROLLBACK)
        if move.trigger != ROLLBACK and len(move.before):
            self._settling = SettlingMove(move, previous, migration["step"])
        self._reply(move.request, MOVED, migration["message"], migration)

    def _leave(self, move: Move, migration: Mapping[str, Any]) -> None:
        """The workers train on under the plan that they had."""
        self._around.tell(failure_record(move, migration))
        self._reply(move.request, FAILED, migration["message"], migration)

    def _judge(self) -> None:
        """Compare the last move with its promise, once there is enough to compare; take back a loss."""
        settling = self._settling
        outcome = None if settling is None else settling.judge(self._memory, self._settings.settle_steps)
        if settling is None or outcome is None:
            return
        self._settling, move = None, settling.move
        is_taken_back = settling.is_taken_back(outcome)
        self._num_losses = self._num_losses + 1 if is_taken_back else 0
        self._around.tell(outcome_record(self._step, move.number, outcome, is_taken_back))
        if is_taken_back:
            decision = self._way_back(settling, outcome)
            self._begin(settling.previous, ROLLBACK, NO_SUBJECT, decision, move.before)

    def _way_back(self, settling: SettlingMove, outcome: Outcome) -> Decision:
        reason = f"move {settling.move.number} made a step {-outcome.realised_gain_ms:.2f} ms longer"
        return self._given(settling.previous, -outcome.realised_gain_ms, reason)

    def _given(self, planned: PricedPlan, gain_ms: float, reason: str) -> Decision:
        """The figures of a move that is made whatever it costs."""
        num_bytes = moved_bytes(self._present.plan, planned.plan, planned.problem.workload)
        return Decision(
            is_move=True,
            plan=planned.plan,
            expected=planned.cost,
            step_ms=self._present.cost.step_ms,
            predicted_gain_ms=gain_ms,
            moved_bytes=num_bytes,
            price_ms=float(self._prices.present.pause_ms(num_bytes)),
            remaining_steps=self._remaining_steps,
            reason=reason,
        )

    def _serve(self) -> None:
        """Take up a user's request, if there is one; a search that is under way is waited for."""
        request = None if self._search.is_busy else self._guard(self._around.requests.take)
        if request is None:
            return
        if request.plan is None:
            self._turn_down(request, REFUSED, request.fault)
            return
        try:
            check(request.plan, self._present.problem)
        except PlanningError as error:
            self._turn_down(request, REFUSED, str(error))
            return
        if set(request.plan.tables) == set(self._present.plan.tables):
            self._turn_down(request, UNCHANGED, "this plan trains already; nothing moves")
            return
        self._begin_request(request.name, request.plan)

    def _begin_request(self, name: str, plan: ShardingPlan) -> None:
        """Move as a user wants it; gain and price are estimates that were not corrected by what was measured."""
        present = self._present
        problem, estimator = present.problem, present.estimator
        planned = price_plan(present, plan, estimator.estimate(problem, plan), REQUESTED)
        gain_ms = estimator.estimate(problem, present.plan).step_ms - planned.cost.step_ms
        decision = self._given(planned, gain_ms, "a plan was handed in")
        before = self._memory.times(self._step - self._settings.settle_steps + 1)
        self._begin(planned, REQUEST, NO_SUBJECT, decision, before, name)

    def _turn_down(self, request: Request, status: str, message: str) -> None:
        # The first line of a refused plan only counts its faults.
        reason = ": ".join(line.strip() for line in message.splitlines()[:2])
        decision = refusal(self._present.cost.step_ms, reason)
        self._around.tell(decision_record(self._step, None, REQUEST, NO_SUBJECT, NO, decision))
        self._reply(request.name, status, message)

    def _reply(
        self, request: str | None, status: str, message: str, migration: Mapping[str, Any] | None = None
    ) -> None:
        if request is not None:
            self._guard(lambda: self._around.requests.answer(request, status, message, migration))

    def _guard(self, act: Callable[[], Any]) -> Any:
        """What `act` gives; where the run's folder cannot be read or written, one warning: training goes on."""
        try:
            return act()
        except OSError as error:
            if not self._has_warned:
                self._around.tell(warning_record(f"requests for other plans cannot be served: {error}", self._step))
            self._has_warned = True
            return None


def _decision_of(answer: Answer) -> Decision:
    """The decision; a search that stumbled is a no which says over what."""
    if answer.decision is not None:
        return answer.decision
    return refusal(answer.question.seen.step_ms, f"no plan was found: {answer.error!r}")
