"""How slow a device was while each of its sets was measured: times are divided by it before a model learns them."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from planner.profile import LookupMeasurement

WINDOW = 9
"""Neighbours of a running median, the set itself included: one canary is as noisy as one measurement."""


def own_ms(canary_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """The canary beside each set [N]: follows every change of speed, and adds its own noise."""
    return canary_ms


def running_ms(canary_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """The running median [N] over `WINDOW` sets that one rank measured one after another.

    A profile lists its ranks one after another, so only the sets beside the seam have neighbours of another rank.
    """
    if len(canary_ms) < WINDOW:
        return whole_ms(canary_ms)
    padded = np.pad(canary_ms, WINDOW // 2, mode="reflect")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, WINDOW), axis=1))


def whole_ms(canary_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median [N] of them all, the same for each set: what an estimate is multiplied by later."""
    return np.full(len(canary_ms), np.median(canary_ms))


CANARY_RULES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "own": own_ms,
    "running": running_ms,
    "whole": whole_ms,
}
"""Canaries [N] of one device's sets, in the order of its profile, from the canary beside each."""

CANARY_RULE = "running"
"""The rule by which models are trained and tested."""


def canaries_ms(measured: Sequence[LookupMeasurement], rule: str = CANARY_RULE) -> NDArray[np.float64]:
    """Canaries [N] in ms of all sets of one device, in the order of its profile, by one of `CANARY_RULES`."""
    return CANARY_RULES[rule](np.array([each.canary_ms for each in measured]))
