"""The last steps that a watch has seen, in arrays of fixed size."""

from dataclasses import fields

import numpy as np

from cluster.imbalance.baseline import Channels, RelativeSteps

HISTORY_STEPS = 192
"""Steps kept: three periods of a checkpoint every 50 steps, so that its season is seen. 256 ranks take 2 MB."""


class History:
    """A window over the newest HISTORY_STEPS steps; older ones are shifted out in place."""

    def __init__(self, channels: Channels) -> None:
        """Makes room for the steps of so many ranks."""
        ranks = channels.num_ranks
        self._rows = RelativeSteps(
            steps=np.zeros(HISTORY_STEPS, dtype=np.int64),
            growth=np.zeros((HISTORY_STEPS, channels.count)),
            ids=np.zeros((HISTORY_STEPS, ranks)),
            lookup_ms=np.zeros((HISTORY_STEPS, ranks)),
            dense_ms=np.zeros((HISTORY_STEPS, ranks)),
            work_ms=np.zeros((HISTORY_STEPS, ranks)),
            transfer_ms=np.zeros(HISTORY_STEPS),
        )
        self._count = 0

    def push(self, rows: RelativeSteps) -> None:
        """Append at most HISTORY_STEPS steps."""
        added = len(rows.steps)
        for field in fields(rows):
            kept = getattr(self._rows, field.name)
            kept[: HISTORY_STEPS - added] = kept[added:]
            kept[HISTORY_STEPS - added :] = getattr(rows, field.name)
        self._count = min(self._count + added, HISTORY_STEPS)

    def view(self) -> RelativeSteps:
        """The steps there are, oldest first, without a copy."""
        begin = HISTORY_STEPS - self._count
        return RelativeSteps(**{field.name: getattr(self._rows, field.name)[begin:] for field in fields(self._rows)})
