"""What can be set of a watch."""

from dataclasses import dataclass

from cluster.imbalance.detectors import DETECTORS
from planner.text import did_you_mean


@dataclass(frozen=True)
class WatchSettings:
    """How a watch learns and how sure it has to be. Counts of steps.

    Attributes:
        detector: One of DETECTORS; in `bench detect` they are near a tie, the default a little ahead in F1.
        warmup_steps: Not looked at: caches, allocators and lazy optimizer state settle.
        baseline_steps: Learned from after that; with 80 the medians are known to an eighth of a step's noise.
        persistence_steps: So many of the last steps (of a fifth more) must alarm, each by the best of a few before it.
            So shorter bursts of a noisy neighbour are harmless, and a change is certain some 16 steps after it began.
        cool_down_steps: After a finding or its end none is told of the same rank for so long.

    Raises ValueError where a value makes no sense.
    """

    detector: str = "robust_z"
    warmup_steps: int = 20
    baseline_steps: int = 80
    persistence_steps: int = 9
    cool_down_steps: int = 50

    def __post_init__(self) -> None:
        faults = []
        if self.detector not in DETECTORS:
            hint = did_you_mean(self.detector, DETECTORS)
            faults.append(f"detector: found {self.detector!r}, expected one of {', '.join(DETECTORS)}{hint}")
        for name, least in (("warmup_steps", 0), ("baseline_steps", 20), ("persistence_steps", 2)):
            if getattr(self, name) < least:
                faults.append(f"{name}: found {getattr(self, name)}, expected at least {least}")
        if self.cool_down_steps < 0:
            faults.append(f"cool_down_steps: found {self.cool_down_steps}, expected at least 0")
        if faults:
            raise ValueError("; ".join(faults))
