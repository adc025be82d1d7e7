"""Our compute cost beside the baselines on measured fused sets.

For every seed the file is split at random, 80 % to train, 10 % to choose (early stopping), 10 % to test;
all models see the same split.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from launcher.bench.baselines import ByteLeastSquares, NeuroShardNetwork, Progress, TorchRecLookups, prefixed
from launcher.bench.cost_data import ComputeCosts, CostFileError
from launcher.bench.metrics import Scores, error_metrics, mean_and_spread, render_metrics
from planner.lookups import LookupArrays

TRAIN_SHARE, VALIDATION_SHARE = 0.8, 0.1
"""The rest is the test. Source: NeuroShard (arXiv 2305.01868), `train_compute_cost_model.py`."""

MIN_LINES = 20
"""Fewest lines that leave two to choose by and two to test on."""

Part = tuple[LookupArrays, NDArray[np.float64]]
"""Sets and their times [N] in ms."""

Predict = Callable[[LookupArrays], NDArray[np.float64]]
"""Milliseconds [N] of sets."""

Fitter = Callable[[Part, Part, int, Progress], Predict]
"""Train part, validation part, seed, progress -> milliseconds [N] of sets."""


def bench_compute(costs: ComputeCosts, num_seeds: int, progress: Progress) -> Scores:
    """Each model's test metrics, means over the seeds 0 to `num_seeds` - 1 and their spread.

    Raises:
        CostFileError: Too few lines to split.
    """
    if len(costs.cost_ms) < MIN_LINES:
        raise CostFileError(f"{len(costs.cost_ms)} measured sets are too few to split; expected {MIN_LINES} or more")
    runs = [score_split(costs, seed, _FITTERS, progress) for seed in range(num_seeds)]
    return {name: mean_and_spread(run[name] for run in runs) for name in _FITTERS}


def score_split(costs: ComputeCosts, seed: int, fitters: Mapping[str, Fitter], progress: Progress) -> Scores:
    """Each model's metrics on the test part of one random split."""
    train, validation, (sets, cost_ms) = split(costs, seed)
    scores = {}
    for name, fit in fitters.items():
        say = prefixed(progress, f"seed {seed}, {name}: ")
        scores[name] = error_metrics(fit(train, validation, seed, say)(sets), cost_ms)
        say(render_metrics(scores[name]))
    return scores


def split(costs: ComputeCosts, seed: int) -> tuple[Part, Part, Part]:
    """Train, validation and test part, at random."""
    total = len(costs.cost_ms)
    order = np.random.default_rng(seed).permutation(total)
    ends = [int(total * TRAIN_SHARE), int(total * (TRAIN_SHARE + VALIDATION_SHARE))]
    train, validation, test = ((costs.lookups.subset(at), costs.cost_ms[at]) for at in np.split(order, ends))
    return train, validation, test


def _fit_ours(train: Part, validation: Part, seed: int, progress: Progress) -> Predict:
    from planner.cost.fit import fit_compute

    sets, cost_ms = train
    model = fit_compute(sets, cost_ms[:, None], seed, progress)
    return lambda lookups: model.predict_ms(lookups)[:, 0].astype(np.float64)


def _fit_torchrec(train: Part, validation: Part, seed: int, progress: Progress) -> Predict:
    return TorchRecLookups.fit(*train).predict_ms


def _fit_nnls(train: Part, validation: Part, seed: int, progress: Progress) -> Predict:
    return ByteLeastSquares.fit(*train).predict_ms


def _fit_neuroshard(train: Part, validation: Part, seed: int, progress: Progress) -> Predict:
    return NeuroShardNetwork.fit(*train, validation, seed, progress=progress).predict_ms


_FITTERS: dict[str, Fitter] = {
    "ours": _fit_ours,
    "torchrec": _fit_torchrec,
    "nnls": _fit_nnls,
    "neuroshard": _fit_neuroshard,
}
