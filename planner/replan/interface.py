"""What a re-plan is told, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.cost.estimator import PHASES, PlanCost
from planner.plan import ShardingPlan

MS_PER_S = 1e3
"""Milliseconds in a second."""


@dataclass(frozen=True, eq=False)
class Observation:
    """What telemetry saw of a job lately, under the plan that it trains with; arrays and mappings are copied.

    Attributes:
        phases_ms: float64 [P, W], own work of each of `PHASES` on each rank, waiting removed: of a collective the
            transfer, alike on all ranks.
        table_ids: Ids of the global batch a step, by table, as sampled; tables that were not sampled may be missing.
        table_distinct: Different ids of it, by table, where they were counted.
        slow_senders: Ranks whose sends a probe found slow.

    Raises:
        ValueError: The phases have another number of rows, or a figure is not finite and >= 0.
    """

    phases_ms: NDArray[np.float64]
    table_ids: Mapping[str, float]
    table_distinct: Mapping[str, float]
    slow_senders: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Copies and checks."""
        phases_ms = np.array(self.phases_ms, dtype=np.float64)
        if phases_ms.ndim != 2 or len(phases_ms) != len(PHASES):
            raise ValueError(f"observed phases: found shape {phases_ms.shape}, expected [{len(PHASES)}, ranks]")
        counts = [*self.table_ids.values(), *self.table_distinct.values()]
        if not all(bool((np.isfinite(each) & (each >= 0)).all()) for each in (phases_ms, np.array(counts))):
            raise ValueError("observation: found a figure that is negative or not finite, expected times and counts")
        phases_ms.flags.writeable = False
        object.__setattr__(self, "phases_ms", phases_ms)
        object.__setattr__(self, "table_ids", MappingProxyType(dict(self.table_ids)))
        object.__setattr__(self, "table_distinct", MappingProxyType(dict(self.table_distinct)))

    @property
    def step_ms(self) -> float:
        """Milliseconds of a step: the sum over phases of the slowest rank."""
        return float(self.phases_ms.max(axis=1).sum())


@dataclass(frozen=True)
class MovePrice:
    """What a migration costs: the training stands still meanwhile.

    Attributes:
        fixed_ms: Of any migration: draining the pipeline, building the new shards, a first slow step.
        bytes_per_s: At which tables move, all links of the cluster together.
    """

    fixed_ms: float
    bytes_per_s: float

    def pause_ms(self, moved_bytes: ArrayLike) -> NDArray[np.float64]:
        """Milliseconds [...] of the pause for so many bytes [...].

        >>> float(MovePrice(fixed_ms=100.0, bytes_per_s=1e9).pause_ms(5e8))
        600.0
        """
        return self.fixed_ms + np.asarray(moved_bytes, dtype=np.float64) / self.bytes_per_s * MS_PER_S


@dataclass(frozen=True)
class ReplanSettings:
    """How a re-plan searches and how sure it has to be.

    Attributes:
        margin: Times its price that a move must gain over the steps that remain; where their number is not known,
            the margin is that of ski rental, which needs none.
        budget_s: Seconds to search.
        seed: Of the search.
    """

    margin: float
    budget_s: float
    seed: int


@dataclass(frozen=True, eq=False)
class Decision:
    """Whether to move, and the figures that decided.

    Attributes:
        is_move: Whether to move now.
        plan: The better plan, also where it does not pay; None where none was found.
        expected: What that plan is expected to cost, corrected.
        step_ms: Corrected estimate of the present plan's step.
        predicted_gain_ms: By how much a step gets shorter; 0 without a plan.
        moved_bytes: Over links, all ranks together.
        price_ms: Of the pause.
        remaining_steps: As asked; None where the end is not known.
        reason: One line for people.
    """

    is_move: bool
    plan: ShardingPlan | None
    expected: PlanCost | None
    step_ms: float
    predicted_gain_ms: float
    moved_bytes: int
    price_ms: float
    remaining_steps: int | None
    reason: str
