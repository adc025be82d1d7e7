"""Each rank's own work and waiting, told apart in what the ranks timed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.cost.estimator import COMMS_PHASES, LOOKUP_PHASES

DENSE_PHASES = ("dense_forward", "dense_backward", "optimizer", "other")
"""Phases of own work without embedding kernels; every rank does the same in them."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StepSignals:
    """What S steps of W ranks say; X collectives in the order of COMMS_PHASES.

    A collective ends when its last rank arrives. So the shortest duration over ranks is the transfer, what another rank
    has beyond it is waiting, and the rank that waits least is the one that the others wait for.

    Attributes:
        steps: int64 [S], numbers of the steps.
        lookup_ms: [S, W], embedding kernels, forward and backward.
        dense_ms: [S, W], dense forward and backward, optimizer and what the host does between the phases.
        transfer_ms: [S, X].
        waiting_ms: [S, W, X].
        ids: [S, W], ids that the rank looked up.
        bytes: [S, W, X], the rank's input of the collectives.
    """

    steps: NDArray[np.int64]
    lookup_ms: Floats
    dense_ms: Floats
    transfer_ms: Floats
    waiting_ms: Floats
    ids: Floats
    bytes: Floats

    @property
    def work_ms(self) -> Floats:
        """Own work [S, W]: lookups and the dense part."""
        return self.lookup_ms + self.dense_ms


def split_steps(steps: NDArray[np.int64], rows: Floats, columns: Sequence[str]) -> StepSignals:
    """The signals in rows [S, W, C] of the series "steps", whose C columns are named; other columns do not matter.

    Raises ValueError with every column that is missing.
    """
    position = {name: index for index, name in enumerate(columns)}
    lookups = [f"{phase}_ms" for phase in LOOKUP_PHASES]
    dense = [f"{phase}_ms" for phase in DENSE_PHASES]
    durations = [f"{phase}_ms" for phase in COMMS_PHASES]
    sizes = [f"{phase}_bytes" for phase in COMMS_PHASES]
    missing = [name for name in (*lookups, *dense, *durations, "ids", *sizes) if name not in position]
    if missing:
        raise ValueError(f'series "steps": found no columns {", ".join(missing)} among {", ".join(columns)}')

    def pick(names: list[str]) -> Floats:
        return rows[..., [position[name] for name in names]]

    comms_ms = pick(durations)
    transfer_ms = comms_ms.min(axis=1)
    return StepSignals(
        steps=steps,
        lookup_ms=pick(lookups).sum(axis=2),
        dense_ms=pick(dense).sum(axis=2),
        transfer_ms=transfer_ms,
        waiting_ms=comms_ms - transfer_ms[:, None],
        ids=rows[..., position["ids"]],
        bytes=pick(sizes),
    )
