"""The group of workers: one actor a device, run together, watched, and taken down without a trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Concatenate

from cluster.actors import GroupOptions, connect, control, create_actors, get_answers, kill, order_by_rank
from cluster.errors import ClusterError, WorkerFailure
from cluster.failures import Outcome, RankError, choose_first, describe_exception, describe_loss, render_failure
from cluster.inventory import Inventory
from cluster.mailbox import Drained
from cluster.placement import place, unplace
from cluster.worker import Identity, WorkerContext, name_function

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

WAIT_SLICE_S = 60.0
# Once a rank has failed by itself, an earlier failure elsewhere is already on its way: this long it is waited for.
REPORT_DELAY_S = 1.0


class WorkerGroup:
    """The workers of one job; `with WorkerGroup.start(inventory) as group:` leaves no actor behind.

    Attributes:
        inventory: What the group was started from; slot i is rank i.
        workers: Where every rank runs, in rank order.
    """

    def __init__(
        self,
        inventory: Inventory,
        options: GroupOptions,
        placement: PlacementGroup,
        actors: Sequence[Any],
        workers: Sequence[Identity],
    ) -> None:
        """Takes over actors that are connected; `start` is the way to make a group."""
        self.inventory = inventory
        self.workers = tuple(workers)
        self._options = options
        self._placement: PlacementGroup | None = placement
        self._actors = tuple(actors)
        self._runs: dict[Any, int] = {}
        self._polls: dict[int, Any] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._delivered: dict[str, int] = {}  # of each series, the number of the last row that a poll has given
        self._last_command_id = 0

    @classmethod
    def start(cls, inventory: Inventory, options: GroupOptions | None = None) -> WorkerGroup:
        """Places one actor per slot, orders them by rank and connects them; what was begun is undone on failure.

        Raises:
            ClusterError: `resources`, `placement`, or `start` with the cause.
        """
        chosen = options or GroupOptions()
        placement = place(inventory, chosen.start_timeout_s)
        actors: list[Any] = []
        try:
            actors += create_actors(inventory, chosen, placement)
            calls = [control(actor.identify).remote() for actor in actors]
            identities = get_answers(calls, chosen, "start their processes")
            ranked = order_by_rank(inventory, actors, identities)
            workers = [identity for _, identity in ranked]
            actors = [actor for actor, _ in ranked]
            connect(inventory, chosen, actors, workers)
        except BaseException:
            kill(actors)
            unplace(placement)
            raise
        return cls(inventory, chosen, placement, actors, workers)

    def __enter__(self) -> WorkerGroup:
        """Gives the group itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Shuts the group down."""
        self.shutdown()

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return len(self._actors)

    def run(self, fn: Callable[Concatenate[WorkerContext, ...], Any], *args: Any) -> tuple[Any, ...]:
        """Starts `fn(context: WorkerContext, *args)` on every rank and returns at once.

        Args:
            fn: A function at the top of a module that the workers can import; only its name travels.
            args: What every rank gets besides its context; must pickle.

        Returns:
            A Ray future of an `Outcome` per rank, in rank order; `wait` and `join` look after them.

        Raises:
            ClusterError: `function` when workers cannot import it, `busy` while a run is under way, `closed`.
        """
        if self._placement is None:
            raise ClusterError("The worker group is shut down: start a new one.", reason="closed")
        if len(self._outcomes) < len(self._runs):
            raise ClusterError("The worker group is still running: join it first.", reason="busy")
        name = name_function(fn)
        self._outcomes, self._delivered = {}, {}
        self._runs = {actor.run.remote(name, args): rank for rank, actor in enumerate(self._actors)}
        return tuple(self._runs)

    def poll(self, timeout_s: float = 1.0, ranks: Sequence[int] | None = None) -> tuple[Drained, ...]:
        """Gives what outboxes and rings of `ranks` (None: of all) held, in that order, without disturbing training.

        A rank that does not answer in time, or is lost, gives an empty `Drained`; a late answer comes with a later
        call, so nothing is lost on the way. It never raises for a lost rank: `join` does.
        """
        return self._poll(timeout_s, range(self.world_size) if ranks is None else ranks, after=None)

    def poll_survivor(self, timeout_s: float = 1.0) -> Drained:
        """Gives what the first worker that answers has beyond the rows of all polls since `run`.

        For series that all ranks write alike: where the rank that was polled is lost, another one has its last rows.
        Records are the rank's own. Where no worker answers in time, or none is left, it gives an empty `Drained`.
        """
        import ray

        deadline_s = time.monotonic() + timeout_s
        waiting = {control(actor.answer).remote(): rank for rank, actor in enumerate(self._actors)}
        while waiting:
            answered, _ = ray.wait(list(waiting), timeout=max(0.0, deadline_s - time.monotonic()))
            if not answered:
                break
            rank = waiting.pop(answered[0])
            if _is_answer(answered[0]):
                return self._poll(max(0.0, deadline_s - time.monotonic()), [rank], after=self._delivered)[0]
        return Drained()

    def poll_rest(self, timeout_s: float = 1.0) -> tuple[Drained, ...]:
        """As `poll` of all ranks, of every series only the rows beyond those of all polls since `run`.

        For the end of a run in which one rank spoke for all: the others' buffers are full of rows that it gave.
        """
        return self._poll(timeout_s, range(self.world_size), after=self._delivered)

    def post(self, command: Mapping[str, Any]) -> int:
        """Puts the command, with the next id added under `id`, into every inbox; returns that id without waiting.

        An inbox keeps the newest command only: post the next one when the ranks have reported that they applied this.
        """
        self._last_command_id += 1
        for actor in self._actors:
            control(actor.post).remote({**command, "id": self._last_command_id})
        return self._last_command_id

    def wait(self, timeout_s: float) -> bool:
        """Tells whether the run has ended on every rank or failed on one, after waiting at most `timeout_s` for it."""
        deadline_s = time.monotonic() + timeout_s
        while not self._is_decided():
            remaining_s = deadline_s - time.monotonic()
            if not self._collect(max(0.0, remaining_s)) and remaining_s <= 0:
                return False
        return True

    def join(self) -> tuple[Any, ...]:
        """Waits for the run and gives the results in rank order.

        Raises:
            WorkerFailure: For the rank that failed first; the others are a count. The group must then be shut down:
                its process group is broken.
        """
        while not self.wait(WAIT_SLICE_S):
            pass
        if self._errors():
            self._settle()
            raise self._build_failure()
        return tuple(self._outcomes[rank].result for rank in sorted(self._outcomes))

    def shutdown(self) -> None:
        """Kills the actors and gives their resources back; a second call does nothing."""
        import ray

        placement, self._placement = self._placement, None
        if placement is None or not ray.is_initialized():
            return
        kill(self._actors)
        unplace(placement)

    def _poll(self, timeout_s: float, ranks: Sequence[int], after: Mapping[str, int] | None) -> tuple[Drained, ...]:
        """Asks those ranks that have not been asked yet, and gives what came in time."""
        import ray

        for rank in ranks:
            if rank not in self._polls:
                self._polls[rank] = control(self._actors[rank].poll).remote(after)
        pending = [self._polls[rank] for rank in ranks]
        ready, _ = ray.wait(pending, num_returns=len(pending), timeout=timeout_s)
        answered = set(ready)
        return tuple(self._take_poll(rank, answered) for rank in ranks)

    def _take_poll(self, rank: int, answered: set[Any]) -> Drained:
        """Gives the answer of one rank if it is among those that came."""
        import ray

        if self._polls[rank] not in answered:
            return Drained()
        try:
            drained: Drained = ray.get(self._polls.pop(rank))
        except ray.exceptions.RayTaskError:  # not lost: what it gave did not travel, and must not be missing silently
            raise
        except ray.exceptions.RayError:  # a lost worker has nothing to give
            return Drained()
        self._delivered.update((block.name, int(block.steps[-1])) for block in drained.blocks)
        return drained

    def _is_decided(self) -> bool:
        """Tells whether all ranks have ended or one has failed."""
        return len(self._outcomes) == len(self._runs) or bool(self._errors())

    def _errors(self) -> list[RankError]:
        """Gives the failures seen so far."""
        return [outcome.failure for outcome in self._outcomes.values() if outcome.failure is not None]

    def _collect(self, timeout_s: float) -> bool:
        """Waits for one more rank to end and notes the outcome of all that have; False when none did."""
        import ray

        pending = [reference for reference, rank in self._runs.items() if rank not in self._outcomes]
        ready, _ = ray.wait(pending, num_returns=1, timeout=timeout_s)
        for reference in ready:
            rank = self._runs[reference]
            self._outcomes[rank] = _read_outcome(rank, reference)
        return bool(ready)

    def _settle(self) -> None:
        """Gives the other ranks a moment to report, so that the first failure is not merely the first that arrived."""
        began_s = time.monotonic()
        while len(self._outcomes) < len(self._runs):
            is_cause_known = any(not error.is_consequence for error in self._errors())
            limit_s = min(REPORT_DELAY_S, self._options.settle_s) if is_cause_known else self._options.settle_s
            remaining_s = began_s + limit_s - time.monotonic()
            if remaining_s <= 0:
                return
            self._collect(remaining_s)

    def _build_failure(self) -> WorkerFailure:
        """Builds the one error of a failed run."""
        error = choose_first(self._errors())
        worker = self.workers[error.rank]
        running = [rank for rank in range(self.world_size) if rank not in self._outcomes]
        num_others = len(self._errors()) - 1 + len(running)
        where = {"node_id": worker.node_id, "host": worker.host, "log_path": worker.log_path}
        return WorkerFailure(
            render_failure(error, num_others=num_others, running=running, **where),
            reason="worker_lost" if error.is_lost else "worker_failed",
            rank=error.rank,
            error_type=error.error_type,
            error_message=error.message,
            error_reason=error.reason,
            traceback_text=error.traceback_text,
            num_consequences=num_others,
            **where,
        )


def _is_answer(reference: Any) -> bool:
    """Tells whether a call that has ended was answered, not lost with its worker."""
    import ray

    try:
        ray.get(reference)
    except ray.exceptions.RayError:
        return False
    return True


def _read_outcome(rank: int, reference: Any) -> Outcome:
    """Gives the outcome of a rank whose call has ended, one way or the other."""
    import ray

    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # the arguments or the result did not travel
        return Outcome(rank, failure=describe_exception(rank, error))
    except ray.exceptions.RayError as error:
        return Outcome(rank, failure=describe_loss(rank, error))
    return outcome
