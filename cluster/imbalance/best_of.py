"""The best of the last few steps: what work and transfers take where nothing interrupts them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from cluster.imbalance.signals import split_steps
from cluster.telemetry import Block

BEST_OF = 4
"""Steps of which the shortest counts. Interruptions only make a phase longer, so the shortest scatters less: between
two gloo ranks on shared cores lookups by 0.03 instead of 0.06 (as logarithms), transfers by 0.13 instead of 0.45; next
to other busy processes lookups by 0.04 instead of 0.43. A longer stretch is steadier still, but a change is seen so
many steps later."""


class BestOfLast:
    """The least of the last BEST_OF values of every column, going on from block to block."""

    def __init__(self) -> None:
        """There were no steps yet."""
        self._before: NDArray[np.float64] | None = None

    def take(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """`rows` [S, ...] with each value replaced by the least of its step and up to BEST_OF - 1 steps before."""
        if self._before is None:
            self._before = np.full((BEST_OF - 1, *rows.shape[1:]), np.inf)
        joined = np.concatenate([self._before, rows])
        self._before = joined[len(rows) :].copy()
        best = joined[: len(rows)]
        for later in range(1, BEST_OF):
            best = np.minimum(best, joined[later : later + len(rows)])
        return best


@dataclass(frozen=True, eq=False)
class BestSteps:
    """What a watch looks at of S steps of W ranks: times of undisturbed work, the best of BEST_OF steps each.

    Attributes:
        steps: int64 [S].
        lookup_ms: [S, W], of lookups, the best of each phase.
        dense_ms: [S, W], of the dense part, the best of each phase.
        work_ms: [S, W], the best whole step of own work. A process that takes turns with the rank on its core leaves
            some short phases alone, but no whole step.
        transfer_ms: [S, X], the best of each collective.
        ids: [S, W], as counted.
        bytes: [S, X], of all ranks together.
    """

    steps: NDArray[np.int64]
    lookup_ms: NDArray[np.float64]
    dense_ms: NDArray[np.float64]
    work_ms: NDArray[np.float64]
    transfer_ms: NDArray[np.float64]
    ids: NDArray[np.float64]
    bytes: NDArray[np.float64]

    def part(self, steps: slice) -> "BestSteps":
        """Some of the steps."""
        return BestSteps(**{field.name: getattr(self, field.name)[steps] for field in fields(self)})


def join_steps(parts: Sequence[BestSteps]) -> BestSteps:
    """Consecutive parts as one."""
    names = [field.name for field in fields(BestSteps)]
    return BestSteps(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


class BestReader:
    """Reads blocks of the series "steps", one after the other."""

    def __init__(self) -> None:
        """No block was read yet."""
        self._layout: tuple[object, ...] | None = None
        self._rows, self._work_ms = BestOfLast(), BestOfLast()

    def read(self, block: Block) -> BestSteps:
        """The next steps; raises ValueError where a column is missing, or ranks or columns are others than before."""
        layout = (block.rows.shape[1], *block.labels["columns"])
        if self._layout not in (None, layout):
            raise ValueError('series "steps": found other ranks or columns than before; reset() begins a new plan')
        self._layout = layout
        measured = split_steps(block.steps, block.rows, block.labels["columns"])
        # The shortest duration over ranks is the transfer, whether the best step is looked for before or after.
        best = split_steps(block.steps, self._rows.take(block.rows), block.labels["columns"])
        return BestSteps(
            steps=block.steps,
            lookup_ms=best.lookup_ms,
            dense_ms=best.dense_ms,
            work_ms=self._work_ms.take(measured.work_ms),
            transfer_ms=best.transfer_ms,
            ids=measured.ids,
            bytes=measured.bytes.sum(axis=1),
        )
