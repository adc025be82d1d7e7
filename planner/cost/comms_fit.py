"""Communication costs fitted to measured collectives.

Each collective, link class and group size is fitted alone. The target is when its last rank ended, counted
from the first start: the largest of skew + duration over ranks. Planes are found by alternation: every
measurement is given to the rank and plane that decide its estimate, then each plane is fitted again to its
measurements by least squares on relative error, with all figures of bytes >= 0, the share of waiting from 0
to 1 and the first plane's constant >= 0. Where the data cannot tell bytes out from bytes in (all inputs
equal), a tiny ridge penalty gives each its half.

Source: Magnani and Boyd 2009, Convex piecewise-linear fitting, section 3; Stark and Parker 1995,
Bounded-variable least squares, for the fits.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planner.cost.comms import CollectiveCost, CommsModel, TransferPlane, moved_bytes
from planner.errors import PlanningError
from planner.profile import COLLECTIVES, CollectiveMeasurement

MEASUREMENTS_A_PLANE = 20
"""A further plane has five figures; with fewer measurements than four a figure it would follow their noise."""

MAX_PLANES = 4
"""On 4,000 measured all-to-alls of 8 ranks a fifth and sixth plane changed the held-out error by 0.2 points at most."""

NUM_RESTARTS = 5
"""Random starts of the alternation, whose best is kept: it ends in local optima."""

RIDGE = 1e-6
"""Weight of the penalty on figures, beside the mean squared relative error: it only decides what the data does not."""

MAX_ROUNDS = 30
"""Rounds of one alternation; most repeat themselves after fewer than ten."""


def fit_collectives(measurements: Sequence[CollectiveMeasurement], seed: int = 0) -> CommsModel:
    """The model of the measured collectives, at the speed of their median canary.

    Raises:
        PlanningError: Measurements are of one rank, of an unknown collective, without a positive duration, or
            have not one figure a rank (reason `profile`).
    """
    groups: dict[tuple[str, str, int], list[CollectiveMeasurement]] = {}
    for position, measurement in enumerate(measurements):
        _check(measurement, position)
        key = (measurement.collective, measurement.link, measurement.world_size)
        groups.setdefault(key, []).append(measurement)
    return CommsModel(tuple(CollectiveCost(*key, _fit_group(groups[key], seed)) for key in sorted(groups)))


def _check(measurement: CollectiveMeasurement, position: int) -> None:
    sizes = [len(measurement.sent_bytes), len(measurement.skew_ms), len(measurement.duration_ms)]
    is_known = measurement.collective in COLLECTIVES
    if not is_known or min(sizes) != max(sizes) or sizes[0] < 2 or min(measurement.duration_ms) <= 0:
        raise PlanningError(
            f"collective measurement {position}: {measurement.collective!r} with {sizes} bytes, skews and durations "
            f"{measurement.duration_ms}; expected one of {', '.join(COLLECTIVES)} with one figure a rank, at least two "
            "ranks and durations above 0 ms",
            reason="profile",
        )


def _fit_group(group: list[CollectiveMeasurement], seed: int) -> tuple[TransferPlane, ...]:
    """Planes of one collective, link class and group size.

    The canary corrects the durations only where that makes them easier to explain: it is one small
    collective, whose own noise may exceed the drift.
    """
    features, end_ms = _features(group)
    canary_ms = np.array([measurement.canary_ms for measurement in group])
    speed = canary_ms / np.median(canary_ms)
    num_planes = int(np.clip(len(group) // MEASUREMENTS_A_PLANE, 1, MAX_PLANES))
    corrected = features.copy()
    corrected[..., 3] /= speed[:, None]
    candidates = [
        _fit_planes(features, end_ms, num_planes, seed),
        _fit_planes(corrected, end_ms / speed, num_planes, seed),
    ]
    _, planes = min(candidates, key=lambda candidate: candidate[0])
    if not features[..., 3].any():
        # Nothing was measured about waiting: who starts later ends later by as much.
        planes[:, 3] = 1.0
    return tuple(TransferPlane(*map(float, plane)) for plane in planes)


def _features(group: list[CollectiveMeasurement]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features [N, W, 4], which are one, bytes out, bytes in and skew of a rank; and ends [N] in ms."""
    bytes_out, bytes_in = moved_bytes(group[0].collective, np.array([each.sent_bytes for each in group], dtype=float))
    skew_ms = np.array([each.skew_ms for each in group], dtype=float)
    skew_ms -= skew_ms.min(axis=1, keepdims=True)
    end_ms = (skew_ms + np.array([each.duration_ms for each in group])).max(axis=1)
    return np.stack([np.ones_like(bytes_out), bytes_out, bytes_in, skew_ms], axis=-1), end_ms


def _fit_planes(
    features: NDArray[np.float64], end_ms: NDArray[np.float64], num_planes: int, seed: int
) -> tuple[float, NDArray[np.float64]]:
    """The smallest mean relative error, and its planes [K, 4]."""
    generator = np.random.default_rng(seed)
    best = (np.inf, np.zeros((num_planes, features.shape[-1])))
    whole = _whole_time(features, end_ms)
    for _ in range(NUM_RESTARTS):
        planes = whole * generator.uniform(0, 1, (num_planes, len(whole)))
        best = min(best, _alternate(features, end_ms, planes), key=lambda found: found[0])
    return best


def _whole_time(features: NDArray[np.float64], end_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Figures [4] of which each alone would explain a typical time; 1 where a feature is never there."""
    largest = features.max(axis=1)
    is_there = largest > 0
    return np.array(
        [
            np.median(end_ms[there] / column[there]) if there.any() else 1.0
            for column, there in zip(largest.T, is_there.T, strict=True)
        ]
    )


def _alternate(
    features: NDArray[np.float64], end_ms: NDArray[np.float64], planes: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """The best planes on the way of one alternation, with their mean relative error."""
    num_planes, best = len(planes), (np.inf, planes)
    deciding_before = None
    for _ in range(MAX_ROUNDS):
        estimates = (features @ planes.T).reshape(len(end_ms), -1)
        deciding = estimates.argmax(axis=1)
        error = float(np.abs(estimates.max(axis=1) / end_ms - 1).mean())
        if error < best[0]:
            best = (error, planes)
        if deciding_before is not None and (deciding == deciding_before).all():
            break
        deciding_before = deciding
        rank, plane = np.divmod(deciding, num_planes)
        planes = planes.copy()
        for index in range(num_planes):
            mine = np.flatnonzero(plane == index)
            if len(mine) >= features.shape[-1]:
                planes[index] = _fit_plane(features[mine, rank[mine]], end_ms[mine], is_first=index == 0)
    return best


def _fit_plane(features: NDArray[np.float64], end_ms: NDArray[np.float64], is_first: bool) -> NDArray[np.float64]:
    """Plane [4] of least squares on relative error, within its bounds."""
    from scipy.optimize import lsq_linear

    relative = features / end_ms[:, None]
    scale = np.sqrt((relative**2).mean(axis=0))
    scale[scale == 0] = 1.0
    penalty = np.sqrt(RIDGE * len(end_ms)) * np.eye(len(scale))
    lower = np.array([0.0 if is_first else -np.inf, 0.0, 0.0, 0.0])
    upper = np.array([np.inf, np.inf, np.inf, scale[3]])
    left, right = np.vstack([relative / scale, penalty]), np.append(np.ones(len(end_ms)), np.zeros(len(scale)))
    solution = lsq_linear(left, right, bounds=(lower, upper), method="bvls")
    # The bounds hold to rounding only.
    return np.asarray(np.clip(solution.x, lower, upper) / scale)
