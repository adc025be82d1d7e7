"""Random points that cover every range evenly, so that a few dozen measurements already tell something everywhere."""

import numpy as np
from numpy.typing import NDArray


def latin_hypercube(rng: np.random.Generator, count: int, num_dims: int) -> NDArray[np.float64]:
    """Points [count, num_dims] in [0, 1): every dimension has one point in each of `count` equal slices.

    Source: McKay, Beckman and Conover 1979, Technometrics 21(2).
    """
    slices = np.stack([rng.permutation(count) for _ in range(num_dims)], axis=1)
    return np.asarray((slices + rng.random((count, num_dims))) / count)


def spread(share: float, limits: tuple[float, float]) -> float:
    """A point of a range on the logarithmic scale.

    >>> spread(0.5, (1.0, 100.0))
    10.0
    """
    return float(limits[0] * (limits[1] / limits[0]) ** share)
