"""The placement of tables as a batched decision process, priced by a cost model alone.

B episodes of N tasks run side by side on arrays. State: loads and free memory of every rank. Step t places the t-th
unit of each task by an option and drawn ranks (`planner.policy.options`). Legal are options whose shards find room now
and that leave the bytes that the units to come take at least. An episode in which a unit finds no room is dead: it
places nothing any more. The return of an episode is minus its final step time; nothing is measured.

Source: DreamShard (arXiv 2210.02023), section 3.2, the estimated Markov decision process.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.loads import NUM_TRAFFIC
from planner.policy.options import NODE_TYPE, Options
from planner.policy.tasks import Tasks
from planner.problem import PlanningProblem

OWN_WORK_PRICE = 0.1
"""What a millisecond of a rank's own work counts where a greedy rule compares ranks by the step to expect: below the
level ranks are alike by that alone, and the least busy of them should be taken."""

SLACKS, EVEN_PRICES = (0.0, 0.0, 0.02, 0.05, 0.1, 0.2), (0.5, 1.0, 2.0, 4.0)
"""What tempers are drawn from. The first of the one and the second of the other make the calm temper, the best on
average; which is best for a task is known only when it is placed."""


@dataclass(frozen=True, eq=False)
class Temper:
    """What each of B episodes aims at, so that episodes differ as whole plans do and not by chance at each step alone.

    Attributes:
        slack: float64 [B], how far above the even level ranks may be filled before a split is thought of, 0.1 for 10 %.
        even_price: float64 [B], what a millisecond that an option adds to every rank counts beside the step to expect:
            splits that pay at the moment leave less room for the units to come.
    """

    slack: NDArray[np.float64]
    even_price: NDArray[np.float64]

    @classmethod
    def calm(cls, num_episodes: int) -> "Temper":
        """The same temper for all."""
        return cls(np.full(num_episodes, SLACKS[0]), np.full(num_episodes, EVEN_PRICES[1]))

    @classmethod
    def draw(cls, rng: np.random.Generator, num_episodes: int) -> "Temper":
        """The calm temper, then random ones."""
        temper = cls(rng.choice(SLACKS, num_episodes), rng.choice(EVEN_PRICES, num_episodes))
        temper.slack[0], temper.even_price[0] = SLACKS[0], EVEN_PRICES[1]
        return temper

    def repeated(self, times: int) -> "Temper":
        """Each so many times in a row."""
        return Temper(self.slack.repeat(times), self.even_price.repeat(times))

    def take(self, episodes: slice) -> "Temper":
        """Of some of the episodes."""
        return Temper(self.slack[episodes], self.even_price[episodes])


@dataclass(frozen=True, eq=False)
class Actions:
    """One decision of each episode.

    Attributes:
        option: int64 [B].
        draws: int64 [B, D], ranks in order; those beyond the option's `num_draws` mean nothing.
    """

    option: NDArray[np.int64]
    draws: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Candidates:
    """What each option would do to each rank, and which of them are legal.

    Attributes:
        options: Of the unit to place, [B, O ...].
        may_draw: bool [B, O, W], ranks that may be drawn now.
        is_legal: bool [B, O]; none is in a dead episode.
        lookup_ms: float64 [2, B, O, W], forward and backward, of a rank that takes the first shard.
        phases_ms: float64 [B, O, P, W], if every rank took one.
        even_ms: float64 [B, O, P], phases of `Tasks.even_step` if all units, this one by the option and those to come
            in their cheapest form, spread evenly.
        expected_ms: float64 [B], the step to expect before the decision: phase by phase the slowest rank now, or all
            units, this one in its cheapest form as well, spread evenly.
        rank_levels_ms: float64 [B, O, W], the step to expect if the shard goes to this rank.
        greedy_draws: int64 [B, O, W], ranks in the order in which a greedy rule would draw them.
        greedy: bool [B, O, W], ranks that hold shards then.
        levels_ms: float64 [B, O], the step to expect then.
        keys_ms: float64 [B, O], what a greedy rule compares options by: that, and the work that is added to all.
    """

    options: Options
    may_draw: NDArray[np.bool_]
    is_legal: NDArray[np.bool_]
    lookup_ms: NDArray[np.float64]
    phases_ms: NDArray[np.float64]
    even_ms: NDArray[np.float64]
    expected_ms: NDArray[np.float64]
    rank_levels_ms: NDArray[np.float64]
    greedy_draws: NDArray[np.int64]
    greedy: NDArray[np.bool_]
    levels_ms: NDArray[np.float64]
    keys_ms: NDArray[np.float64]

    def greedy_actions(self) -> Actions:
        """The decisions of a greedy rule: the legal option of the lowest key, on the ranks that it draws greedily."""
        option = np.where(self.is_legal, self.keys_ms, np.inf).argmin(axis=1)
        return Actions(option, self.greedy_draws[np.arange(len(option)), option])


class Episodes:
    """B episodes, at the same step; `act` moves them on in place.

    Attributes:
        tasks: The tasks.
        task: int64 [B], the task of each episode.
        temper: What each episode aims at.
        step: Units that are placed, t.
        loads: float64 [B, W, K].
        free_bytes: int64 [B, W].
        num_placed: int64 [B]; less than `step` in dead episodes.
        lookup_ms: float64 [2, B, W].
        phases_ms: float64 [B, P, W].
    """

    def __init__(self, tasks: Tasks, task: NDArray[np.int64], temper: Temper) -> None:
        """Starts episodes of the tasks with these positions [B]."""
        self.tasks = tasks
        self.task = task
        self.temper = temper
        self.step = 0
        self.loads = np.zeros((len(task), tasks.world_size, tasks.options.loads.shape[-1]))
        self.free_bytes = tasks.capacity_bytes[task]
        self.num_placed = np.zeros(len(task), dtype=np.int64)
        self._price()

    @property
    def problem(self) -> PlanningProblem:
        """Any of the problems: what prices depend on is the same in all."""
        return self.tasks.problems[0]

    @property
    def is_alive(self) -> NDArray[np.bool_]:
        """Episodes [B] that have placed every unit so far."""
        return self.num_placed == self.step

    @property
    def is_done(self) -> bool:
        """Whether all units had their turn."""
        return self.step == self.tasks.num_units

    @property
    def step_ms(self) -> NDArray[np.float64]:
        """Estimated step [B] of what is placed."""
        return np.asarray(self.phases_ms.max(axis=-1).sum(axis=-1))

    def candidates(self) -> Candidates:
        """What may be done with the next unit, and what it would cost."""
        tasks, problem = self.tasks, self.problem
        options = tasks.options.at(self.task, np.full_like(self.task, self.step))
        may_draw, is_legal = self._legal(options)
        added = self.loads[:, None] + options.loads[:, :, None, 0]
        lookup_ms = tasks.estimator.lookup_ms(problem, added, np.arange(tasks.world_size))
        phases_ms = tasks.estimator.join_ms(problem, added[..., :NUM_TRAFFIC], lookup_ms)
        even_ms = self._even(options)
        slowest_ms = self.phases_ms.max(axis=-1)
        cheapest_ms = even_ms[np.arange(len(even_ms)), tasks.cheapest[self.task, self.step]]
        aimed_ms = even_ms * (1 + self.temper.slack)[:, None, None]
        at_least_ms = np.maximum(slowest_ms[:, None], aimed_ms)
        levels_ms = np.maximum(phases_ms, at_least_ms[..., None]).sum(axis=-2)
        draws, held = self._greedy(options, may_draw, levels_ms + OWN_WORK_PRICE * phases_ms.sum(axis=-2))
        expected_ms = np.maximum(self._after(held, added, lookup_ms), at_least_ms).sum(axis=-1)
        return Candidates(
            options=options,
            may_draw=may_draw,
            is_legal=is_legal,
            lookup_ms=lookup_ms,
            phases_ms=phases_ms,
            even_ms=even_ms,
            expected_ms=np.maximum(slowest_ms, cheapest_ms).sum(axis=-1),
            rank_levels_ms=levels_ms,
            greedy_draws=draws,
            greedy=held,
            levels_ms=expected_ms,
            keys_ms=expected_ms + self.temper.even_price[:, None] * even_ms.sum(axis=-1),
        )

    def act(self, actions: Actions) -> NDArray[np.bool_]:
        """Places the next unit of every living episode on the ranks [B, W] it gives back.

        An episode whose action finds no room dies.
        """
        options = self.tasks.options.at(self.task, np.full_like(self.task, self.step), actions.option)
        held = _held(self.tasks, options, _drawn(self.tasks, options, actions.draws))
        num_bytes = _rank_bytes(self.tasks, options)
        fits = options.is_there & (~held | (num_bytes <= self.free_bytes)).all(axis=-1)
        lives = self.is_alive & fits
        held &= lives[:, None]
        is_last = held & _holds_last(self.tasks, options)
        for edge, at in enumerate((held & ~is_last, is_last)):
            self.loads += at[..., None] * options.loads[:, edge, None]
        self.free_bytes = self.free_bytes - held * num_bytes
        self.num_placed = self.num_placed + lives
        self.step += 1
        self._price()
        return held

    def _price(self) -> None:
        tasks = self.tasks
        self.lookup_ms = tasks.estimator.lookup_ms(self.problem, self.loads, np.arange(tasks.world_size))
        self.phases_ms = tasks.estimator.join_ms(self.problem, self.loads[..., :NUM_TRAFFIC], self.lookup_ms)

    def _legal(self, options: Options) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Ranks that may be drawn [B, O, W], and legal options [B, O].

        Where no option leaves the bytes of the units to come, those that take the least are legal.
        """
        has_room = options.may_hold & (_rank_bytes(self.tasks, options) <= self.free_bytes[:, None])
        is_on_node = (options.type_code == NODE_TYPE)[..., None]
        lacks_room = self.problem.devices.node_sums((~has_room).astype(np.float64)) > 0
        may_draw = options.may_draw & np.where(is_on_node, ~lacks_room, has_room)
        enough = may_draw.sum(axis=-1) >= options.num_draws
        fits = options.is_there & enough & ((options.num_draws > 0) | has_room.all(axis=-1))
        fits &= self.is_alive[:, None]
        left = self.free_bytes.sum(axis=-1) - self.tasks.bytes_after[self.task, self.step]
        total = np.where(fits, options.total_bytes, np.iinfo(np.int64).max)
        leaves_room = fits & (total <= left[:, None])
        smallest = fits & (total == total.min(axis=-1, keepdims=True))
        return may_draw, np.where(leaves_room.any(axis=-1, keepdims=True), leaves_room, smallest)

    def _even(self, options: Options) -> NDArray[np.float64]:
        """`Candidates.even_ms`."""
        tasks = self.tasks
        others = self.loads.sum(axis=1) + tasks.loads_after[self.task, self.step]
        even = (others[:, None] + options.total_loads) / tasks.world_size
        return tasks.even_step.phases_ms(even)

    def _greedy(
        self, options: Options, may_draw: NDArray[np.bool_], key: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """All ranks [B, O, W] by ascending key, those that may be drawn first; and who holds shards then [B, O, W]."""
        devices = self.problem.devices
        of_node = devices.node_sums(key) / devices.node_size
        key = np.where((options.type_code == NODE_TYPE)[..., None], of_node, key)
        order = np.argsort(np.where(may_draw, key, np.inf), axis=-1, kind="stable")
        drawn = np.zeros_like(may_draw)
        is_first = np.arange(self.tasks.world_size) < options.num_draws[..., None]
        np.put_along_axis(drawn, order, is_first, axis=-1)
        return order, _held(self.tasks, options, drawn)

    def _after(
        self, held: NDArray[np.bool_], added: NDArray[np.float64], added_lookup_ms: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Phases [B, O, P] of the slowest rank if ranks [B, O, W] take the loads [B, O, W, K]."""
        traffic = np.where(held[..., None], added[..., :NUM_TRAFFIC], self.loads[:, None, :, :NUM_TRAFFIC])
        lookup_ms = np.where(held, added_lookup_ms, self.lookup_ms[:, :, None])
        phases_ms = self.tasks.estimator.join_ms(self.problem, traffic, lookup_ms)
        return np.asarray(phases_ms.max(axis=-1))


def _drawn(tasks: Tasks, options: Options, draws: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Ranks [B, W] that were drawn, of draws [B, D] of one option [B] each."""
    counts = np.arange(draws.shape[1]) < options.num_draws[:, None]
    drawn = np.zeros((len(draws), tasks.world_size), dtype=bool)
    episode, draw = np.nonzero(counts)
    drawn[episode, draws[episode, draw]] = True
    return drawn


def _held(tasks: Tasks, options: Options, drawn: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Ranks [..., W] that hold shards when ranks [..., W] are drawn."""
    is_on_node = (options.type_code == NODE_TYPE)[..., None]
    by_draw = np.where(is_on_node, drawn[..., tasks.node_first], drawn)
    return np.where(options.num_draws[..., None] > 0, by_draw, options.may_hold)


def _holds_last(tasks: Tasks, options: Options) -> NDArray[np.bool_]:
    """Ranks [..., W] that hold the last shard, if any; the shards of free options are all alike."""
    ranks = np.arange(tasks.world_size)
    of_type = np.where((options.type_code == NODE_TYPE)[..., None], ranks == tasks.node_last, ranks == ranks[-1])
    return of_type & ~options.is_free[..., None]


def _rank_bytes(tasks: Tasks, options: Options) -> NDArray[np.int64]:
    """Bytes [..., W] that a rank takes if it holds a shard."""
    first, last = options.num_bytes[..., 0, None], options.num_bytes[..., 1, None]
    return np.where(_holds_last(tasks, options), last, first)
