"""Where a rank runs and whom it talks to, as training sees it; the cluster's worker context has this form."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np


class Rings(Protocol):
    """A rank's bounded buffers of arrays."""

    def declare(self, name: str, row_shape: tuple[int, ...], labels: Mapping[str, Any]) -> None:
        """A series of rows of this shape, and what its rows mean."""

    def append(self, name: str, steps: np.ndarray, rows: np.ndarray) -> None:
        """More rows of a series, one a step; never waits."""


class Place(Protocol):
    """One rank of a job."""

    @property
    def rank(self) -> int:
        """0 to world_size - 1."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""

    @property
    def device(self) -> str:
        """`cpu` or `cuda:0`."""

    @property
    def outbox(self) -> Any:
        """`put(record)`, which never blocks."""

    @property
    def inbox(self) -> Any:
        """`latest()`, the newest command or None, which never blocks."""

    @property
    def rings(self) -> Rings:
        """What is measured of every step, for whoever fetches it."""
