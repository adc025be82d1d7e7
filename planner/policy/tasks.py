"""A batch of planning problems as arrays: what episodes of placing their tables need to know, computed once.

Legend of this package: N tasks, B episodes, T units (tables, or tables kept together) of a task, O sharding options of
a unit (`planner.policy.options`), W ranks, K loads of a shard, P phases of a step, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import AdditiveEstimator
from planner.plan import ShardingPlan
from planner.policy.even_step import EvenStep
from planner.policy.options import Options
from planner.problem import PlanningProblem
from planner.search.placement import Choice, Unit, UnitOption, build_plan, sums_after


@dataclass(frozen=True, eq=False)
class Tasks:
    """N problems with T units each that differ in their tables and in their devices' memory only.

    Attributes:
        problems: N problems.
        estimator: Prices their plans.
        units: N times T units, in the order in which they are placed: by descending `own_ms`.
        options: Of the units, [N, T, O ...].
        tables: float32 [N, T, F], features of the units (`task_features.TABLE_FEATURES`).
        shards: float32 [N, T, O, F], of the options' first shards (`task_features.SHARD_FEATURES`).
        own_ms: float64 [N, T], milliseconds that a unit's first option adds where it lies alone.
        cheapest: int64 [N, T], the option that adds the least to `level_ms` in place of the first.
        least_bytes: int64 [N, T], of each unit in its smallest form, over all devices.
        capacity_bytes: int64 [N, W].
        even_step: Prices even loads on the rank of the median lookup time.
        slowness: float64 [W], lookup time of an average load on each rank, over the mean of the ranks.
        level_ms: float64 [N], lookups and transfers of a step if all units lay evenly in their first option.
    """

    problems: tuple[PlanningProblem, ...]
    estimator: AdditiveEstimator
    units: tuple[tuple[Unit, ...], ...]
    options: Options
    tables: NDArray[np.float32]
    shards: NDArray[np.float32]
    own_ms: NDArray[np.float64]
    cheapest: NDArray[np.int64]
    least_bytes: NDArray[np.int64]
    capacity_bytes: NDArray[np.int64]
    even_step: EvenStep
    slowness: NDArray[np.float64]
    level_ms: NDArray[np.float64]

    @property
    def num_units(self) -> int:
        """T."""
        return self.own_ms.shape[1]

    @property
    def world_size(self) -> int:
        """W."""
        return self.capacity_bytes.shape[1]

    @property
    def table_share(self) -> float:
        """What an average table is of its rank's level, W / T; all of it where there are fewer tables than ranks."""
        return min(1.0, self.world_size / self.num_units)

    @cached_property
    def bytes_after(self) -> NDArray[np.int64]:
        """The least bytes [N, T] of the units that come later."""
        return sums_after(self.least_bytes, axis=1)

    @cached_property
    def loads_after(self) -> NDArray[np.float64]:
        """What the units that come later add in their cheapest form, [N, T, K]."""
        each = np.take_along_axis(self.options.total_loads, self.cheapest[..., None, None], axis=2)
        return sums_after(each[:, :, 0], axis=1)

    @cached_property
    def node_first(self) -> NDArray[np.int64]:
        """The first rank [W] of each rank's node."""
        devices = self.problems[0].devices
        return devices.by_node[devices.node_starts][devices.node_index]

    @cached_property
    def node_last(self) -> NDArray[np.int64]:
        """The last rank [W] of each rank's node."""
        devices = self.problems[0].devices
        node_sizes = np.bincount(devices.node_index)
        return devices.by_node[devices.node_starts + node_sizes - 1][devices.node_index]

    def placed_first(self, units: Sequence[int]) -> "Tasks":
        """The same tasks with the units at some positions placed before the others."""
        order = np.array([*units, *np.setdiff1d(np.arange(self.num_units), units)])
        return replace(
            self,
            units=tuple(tuple(each[index] for index in order) for each in self.units),
            options=self.options.at(slice(None), order),
            tables=self.tables[:, order],
            shards=self.shards[:, order],
            own_ms=self.own_ms[:, order],
            cheapest=self.cheapest[:, order],
            least_bytes=self.least_bytes[:, order],
        )

    def build_plan(self, task: int, options: NDArray[np.int64], draws: NDArray[np.int64]) -> ShardingPlan:
        """The plan of an episode.

        Args:
            task: Its problem.
            options: int64 [T], the option of each unit.
            draws: int64 [T, D], drawn ranks in order, of which the first `Options.num_draws` count.
        """
        counts = self.options.num_draws[task, np.arange(self.num_units), options]
        steps = zip(self.units[task], options.tolist(), counts.tolist(), draws.tolist(), strict=True)
        choices = [_choice(unit, unit.choices[option], ranks[:count]) for unit, option, count, ranks in steps]
        return build_plan(self.problems[task], choices)


def _choice(unit: Unit, group: Sequence[UnitOption], drawn: Sequence[int]) -> Choice:
    """The choice of one of `Unit.choices` and its drawn ranks."""
    if group[0].is_free:
        return Choice(unit, group[0], tuple(drawn))
    option = next(each for each in group if not drawn or each.ranks[0] == drawn[0])
    return Choice(unit, option, option.ranks)
