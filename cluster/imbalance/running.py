"""Figures over the last few steps of every channel."""

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

SPAN = 9
"""Steps of a running median. A checkpoint's 1 to 3 long steps cannot move it, nor a burst of up to 4; and the half of
it by which a change is seen later leaves room for the persistence within 20 steps."""

MEDIAN_GAIN = math.sqrt(SPAN) / math.sqrt(math.pi / 2)
"""By how much the median of SPAN steps is steadier than one step. Source: the asymptotic variance of the median of
normal values, pi/2 times that of the mean."""


def running_median(history: NDArray[np.float64], num_last: int, span: int = SPAN) -> NDArray[np.float64]:
    """Of each of the `num_last` newest steps of `history` [S, C] the median of the `span` steps that end there.

    Gives [num_last, C]; an odd span. Before the first step everything counts as 0: the first steps need half a span
    alike to stand out.
    """
    recent = history[-(num_last + span - 1) :]
    missing = num_last + span - 1 - len(recent)
    padded = np.concatenate([np.zeros((missing, history.shape[1])), recent]) if missing else recent
    middle = span // 2
    return np.asarray(np.partition(sliding_window_view(padded, span, axis=0), middle, axis=2)[..., middle])


def persistent_level(values: NDArray[np.float64], at_least: int, of_last: int) -> NDArray[np.float64]:
    """The level that `at_least` of the last `of_last` values reach; `values` [of_last - 1 + S, C] gives [S, C].

    >>> persistent_level(np.array([[0.0], [5.0], [4.0], [3.0]]), at_least=2, of_last=3).ravel().tolist()
    [4.0, 4.0]
    """
    kth = of_last - at_least
    return np.asarray(np.partition(sliding_window_view(values, of_last, axis=0), kth, axis=2)[..., kth])
