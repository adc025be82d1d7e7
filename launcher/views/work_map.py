"""Who worked how long, over time: the last windows of a run as a heat map of ranks x time."""

import numpy as np
from numpy.typing import NDArray

from launcher.views.heatmap import DIVERGING, Axis, Pixels, Scale, draw_heat_map

WINDOW_STEPS = 10
"""Steps of one cell; as long as the default window of an exchange, so that a poll brings whole ones."""

MOST_WINDOWS = 200
"""Windows that the map goes back."""

REDRAW_WINDOWS = 50
"""New windows after which it is drawn again: a quarter of it, since drawing takes 20 ms of the controller."""

SPAN_PERCENT = 50.0
"""Own work so far from the fleet's has the darkest colours; fixed, so that two maps can be compared."""


class WorkMap:
    """Keeps own work of the last windows, and says when it is time to draw them."""

    def __init__(self) -> None:
        self._steps = np.zeros(0, dtype=np.int64)
        self._work_ms = np.zeros((0, 0))
        self._num_new = 0
        self._is_drawn = False

    @property
    def is_due(self) -> bool:
        """Whether enough is new to draw."""
        return self._num_new >= (REDRAW_WINDOWS if self._is_drawn else 1)

    @property
    def has_news(self) -> bool:
        """Whether anything came after the last drawing."""
        return self._num_new > 0

    def add(self, steps: NDArray[np.int64], work_ms: NDArray[np.float64]) -> None:
        """More steps [N], own work [N, W]; other ranks than before begin a new map."""
        if work_ms.shape[1] != self._work_ms.shape[1]:
            self._steps, self._work_ms = np.zeros(0, dtype=np.int64), np.zeros((0, work_ms.shape[1]))
        windows_ms = _medians(work_ms)
        self._steps = np.concatenate([self._steps, steps[::WINDOW_STEPS]])[-MOST_WINDOWS:]
        self._work_ms = np.concatenate([self._work_ms, windows_ms])[-MOST_WINDOWS:]
        self._num_new += len(windows_ms)

    def draw(self) -> Pixels:
        """The map: a row a rank, a column a window of steps, red where a rank works longer than the fleet."""
        self._num_new, self._is_drawn = 0, True
        scale = Scale(DIVERGING, -SPAN_PERCENT, SPAN_PERCENT, "% own work")
        rows = Axis.numbered("rank", np.arange(self._work_ms.shape[1]))
        return draw_heat_map(deviation_percent(self._work_ms).T, scale, rows, Axis.numbered("step", self._steps))


def _medians(work_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Medians [ceil(N / WINDOW_STEPS), W] over the steps [N, W] of a window, which may be shorter at the end."""
    whole = len(work_ms) // WINDOW_STEPS * WINDOW_STEPS
    medians = np.median(work_ms[:whole].reshape(-1, WINDOW_STEPS, work_ms.shape[1]), axis=1)
    rest = work_ms[whole:]
    return np.concatenate([medians, np.median(rest, axis=0, keepdims=True)]) if len(rest) else medians


def deviation_percent(work_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much longer each rank worked than the fleet, in percent: [N, W] of milliseconds [N, W].

    The fleet is the lower median over ranks, so that of two ranks the slower one stands out.
    """
    num_ranks = work_ms.shape[1]
    fleet_ms = np.sort(work_ms, axis=1)[:, [(num_ranks - 1) // 2]]
    ratio = np.divide(work_ms, fleet_ms, out=np.full_like(work_ms, np.nan), where=fleet_ms > 0)
    return (ratio - 1.0) * 100.0
