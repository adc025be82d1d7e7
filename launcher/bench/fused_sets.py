"""Compute costs on fused sets that nothing was fitted to: what `train` uses beside the baselines.

All times are brought to one speed by the canary, that of the model that `train` uses: a measured time is divided by
the canary that was measured along (`planner.cost.canary`) and multiplied by the local profile's.

- `ours`: what `train` gets, the weights that ship adapted to the local profile.
- `ours_same_data`, `torchrec`, `nnls`, `neuroshard`: trained on the very same sets, those of the training profiles. A
  random ninth chooses the epoch of `neuroshard`, and is left out by `ours_same_data` as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from launcher.bench.baselines import ByteLeastSquares, NeuroShardNetwork, Progress, TorchRecLookups, prefixed
from launcher.bench.metrics import Scores, error_metrics, render_metrics
from launcher.measured_sets import PARTS, MeasuredSets, collect_sets, noise_floor, split_sets, with_total
from planner.cost.compute import ComputeModel
from planner.cost.fit import FORWARD_BACKWARD, fit_compute
from planner.cost.learned import FROM_SCRATCH
from planner.errors import PlanningError
from planner.profile import Profile

VALIDATION_SHARE = 1 / 9
"""Of the training sets, as in `bench cost-file`: 80 % to train, 10 % to choose, 10 % to test."""

LEAST_TRAIN, LEAST_TEST = 20, 5

FEW_SETS = 1_000
"""With fewer ours trains as it does on the sets of one profile."""

NUM_CANDIDATES = 4_096
CANDIDATE_SHARDS = 40
"""Most shards of a candidate; the mean is half of it."""

NUM_ROUNDS = 11


@dataclass(frozen=True, eq=False)
class Contest:
    """Sets to train on and to test on, and the speed at which milliseconds are stated.

    Attributes:
        train: For the baselines, and for ours trained on the same sets.
        test: None of them is in `train`, or in the local profile.
        canary_ms: The speed of the local profile.
        num_left_out: Measurements of the test profile that are not in `test` for this reason.
    """

    train: MeasuredSets
    test: MeasuredSets
    canary_ms: float
    num_left_out: int

    @property
    def measured_ms(self) -> NDArray[np.float64]:
        """Times [N, 3] of the test sets, `PARTS`."""
        return with_total(self.test.times) * self.canary_ms


def set_up_contest(local: Profile, training: Sequence[Profile], held_out: Profile, canary_ms: float) -> Contest:
    """The sets of the profiles' first kind of device.

    Raises:
        PlanningError: Too few sets to train on, or to test on once those that were trained on are left out (reason
            `profile`).
    """
    train = collect_sets([profile.devices[0] for profile in training])
    every = collect_sets(held_out.devices[:1])
    test = every.without([*train.sets, *(each.lookups for each in local.devices[0].lookups)])
    if len(train) < LEAST_TRAIN or len(test) < LEAST_TEST:
        raise PlanningError(
            f"{len(train)} measured sets to train on, {len(test)} of {len(every)} to test on that were not trained on; "
            f"expected at least {LEAST_TRAIN} and {LEAST_TEST}: give --profile a file of another profile.seed, --train "
            "more files",
            reason="profile",
        )
    return Contest(train, test, canary_ms, len(every) - len(test))


def bench_compute_sets(contest: Contest, model: ComputeModel, seed: int, progress: Progress) -> dict[str, Any]:
    """The section `compute` of the report: a model's errors of the total time, by name, and those of ours by part."""
    test, measured_ms = contest.test.lookups, contest.measured_ms
    ours_ms = with_total(model.predict_ms(test, contest.canary_ms).astype(np.float64))
    estimates = {"ours": ours_ms[:, -1]} | _fit_rivals(contest, seed, progress)
    scores: Scores = {}
    for name, estimated_ms in estimates.items():
        scores[name] = error_metrics(estimated_ms, measured_ms[:, -1])
        progress(f"compute, {name}: {render_metrics(scores[name])}")
    uncorrected_ms = contest.test.times_ms.sum(axis=1)
    return scores | {
        "ours_by_part": {
            name: error_metrics(ours_ms[:, part], measured_ms[:, part]) for part, name in enumerate(PARTS)
        },
        "ours_without_canary": error_metrics(ours_ms[:, -1], uncorrected_ms),
        "num_test": len(contest.test),
        "num_train": len(contest.train),
        "num_left_out": contest.num_left_out,
    }


def noise_of(contest: Contest) -> float | None:
    """MAPE of the total time when one measurement of a test set is predicted by another, see `noise_floor`."""
    floor = noise_floor(contest.test)
    return floor["total"] if floor else None


def measure_candidates(model: ComputeModel, sets: MeasuredSets, seed: int) -> float:
    """Median milliseconds on one core to cost `NUM_CANDIDATES` sets of shards whose loads are known.

    What a search does: the loads of the distinct shards are computed once, then sums and costs for every candidate.
    """
    rng = np.random.default_rng(seed)
    loads = torch.from_numpy(model.loads(sets.lookups))
    counts = rng.integers(1, CANDIDATE_SHARDS + 1, NUM_CANDIDATES)
    shards = torch.from_numpy(rng.integers(len(loads), size=int(counts.sum())))
    starts = torch.from_numpy(np.cumsum(counts) - counts)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times_ms = []
        for _ in range(NUM_ROUNDS):
            began_s = perf_counter()
            sums = torch.nn.functional.embedding_bag(shards, loads, starts, mode="sum")
            model.cost_ms(sums.numpy())
            times_ms.append(1e3 * (perf_counter() - began_s))
    finally:
        torch.set_num_threads(num_threads)
    return float(np.median(times_ms))


def _fit_rivals(contest: Contest, seed: int, progress: Progress) -> dict[str, NDArray[np.float64]]:
    """Total times [N] of the test sets by models that saw the training sets alone."""
    train, validation = split_sets(contest.train, VALIDATION_SHARE, seed)
    sets, times_ms = train.lookups, train.times * contest.canary_ms
    total_ms, test = times_ms.sum(axis=1), contest.test.lookups
    held_out = validation.lookups, validation.times.sum(axis=1) * contest.canary_ms
    say = prefixed(progress, "compute, ours_same_data: ")
    options = FROM_SCRATCH if len(train) < FEW_SETS else None
    same_data = fit_compute(sets, times_ms, seed, say, FORWARD_BACKWARD, options)
    say = prefixed(progress, "compute, neuroshard: ")
    return {
        "ours_same_data": same_data.predict_ms(test).sum(axis=1).astype(np.float64),
        "torchrec": TorchRecLookups.fit(sets, total_ms).predict_ms(test),
        "nnls": ByteLeastSquares.fit(sets, total_ms).predict_ms(test),
        "neuroshard": NeuroShardNetwork.fit(sets, total_ms, held_out, seed, progress=say).predict_ms(test),
    }
