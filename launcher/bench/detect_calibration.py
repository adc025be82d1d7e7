"""Finds for a detector the threshold at which it gives so many false alarms and no more, so that detectors compare."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from cluster.imbalance.detectors import DETECTORS
from cluster.imbalance.settings import WatchSettings
from launcher.bench.detect_kinds import make_run
from launcher.bench.detect_play import play
from launcher.bench.detect_traces import Trace

FALSE_ALARMS_PER_10K = 0.25
"""A quarter of what is allowed: alarms come in clusters, so that as many steps give twice as many by chance."""

RUN_STEPS, NUM_RUNS = 2000, 25
"""With 2, 8 and 64 ranks 150,000 clean steps: three alarms are the rate that is looked for."""

FIRST_SEED = 1_000_000
"""Seeds from here on are for calibration alone."""

LEAST_STEP = 1.02
"""Thresholds are found to 2 %."""


def calibrate(name: str, ranks: Sequence[int], tell: Callable[[str], None]) -> float:
    """The threshold of a detector, by bisection of its logarithm, over clean runs of so many ranks."""
    detector, settings = DETECTORS[name], WatchSettings(detector=name)
    low, high = detector.threshold / 2, detector.threshold * 2
    while high / low > LEAST_STEP:
        middle = (low * high) ** 0.5
        tuned = replace(detector, threshold=middle)
        num_false, num_steps = 0, 0
        for trace in clean_runs(ranks):
            num_false += play(trace, tuned, settings).num_false
            num_steps += len(trace.steps.steps)
        tell(f"{name}: {num_false} false alarms in {num_steps} steps at threshold {middle:.2f}")
        if num_false > FALSE_ALARMS_PER_10K * num_steps / 10_000:
            low = middle
        else:
            high = middle
    return high


def clean_runs(ranks: Sequence[int]) -> Iterator[Trace]:
    """The runs that thresholds are found on."""
    for num_ranks in ranks:
        for seed in range(FIRST_SEED, FIRST_SEED + NUM_RUNS):
            yield make_run("clean", num_ranks, seed, RUN_STEPS)
