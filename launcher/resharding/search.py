"""Planning again beside the polls: one question at a time, on a thread of its own."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from cluster.imbalance.verdict import Verdict
from launcher.resharding.memory import StepTimes
from planner.cost.estimator import AdditiveEstimator
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.replan import Decision, MovePrice, Observation, ReplanSettings, replan


@dataclass(frozen=True, eq=False)
class Question:
    """Whether another plan pays.

    Attributes:
        verdict: The finding that asks.
        step: At which it was asked.
        plan: Trains now.
        seen: What was observed since the finding began.
        healthy: What was observed before; None where the plan never was in balance.
        price: What moving costs.
        remaining_steps: In which a move must earn its price; None where that is not known.
        lost_ms: What the finding has cost so far.
        before: Steps to which those after a move are held.
    """

    verdict: Verdict
    step: int
    plan: ShardingPlan
    seen: Observation
    healthy: Observation | None
    price: MovePrice
    remaining_steps: int | None
    lost_ms: float
    before: StepTimes


@dataclass(frozen=True, eq=False)
class Answer:
    """A question with its decision, or with what the search stumbled over."""

    question: Question
    decision: Decision | None
    error: Exception | None = None


class Search:
    """Runs `decide` on a thread of its own; a poll only looks whether it is through."""

    def __init__(self, decide: Callable[[Question], Decision]) -> None:
        """Nothing was asked yet."""
        self._decide = decide
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="replan")
        self._asked: tuple[Question, Future[Decision]] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a question was asked whose answer was not taken."""
        return self._asked is not None

    def ask(self, question: Question) -> None:
        """Begin a search."""
        assert self._asked is None, "one question at a time"
        self._asked = question, self._pool.submit(self._decide, question)

    def take(self) -> Answer | None:
        """The answer, once it is there."""
        if self._asked is None or not self._asked[1].done():
            return None
        (question, future), self._asked = self._asked, None
        error = future.exception()
        if error is None:
            return Answer(question, future.result())
        if not isinstance(error, Exception):
            raise error
        return Answer(question, None, error)

    def close(self) -> None:
        """Wait for a search that is under way, which ends within its budget."""
        self._pool.shutdown(cancel_futures=True)


def replanner(
    problem: PlanningProblem, estimator: AdditiveEstimator, settings: ReplanSettings
) -> Callable[[Question], Decision]:
    """What answers questions about a problem: `planner.replan`."""
    return partial(_replan, problem, estimator, settings)


def _replan(
    problem: PlanningProblem, estimator: AdditiveEstimator, settings: ReplanSettings, question: Question
) -> Decision:
    return replan(
        problem,
        question.plan,
        estimator,
        question.seen,
        question.healthy,
        question.price,
        question.remaining_steps,
        question.lost_ms,
        settings,
    )
