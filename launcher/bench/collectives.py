"""Communication costs on collectives that nothing was fitted to: the profile's fit beside the baselines.

Scored is when a collective's last rank ends, counted from the first start. Every model is fitted to the training
profiles' collectives of the same kind, link class and group size, and none is rescaled.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.bench.baselines import best_constant, relative_nnls
from launcher.bench.metrics import error_metrics
from planner.cost.comms_fit import fit_collectives
from planner.profile import CollectiveMeasurement, Profile

Measured = Sequence[CollectiveMeasurement]
Predict = Callable[[Measured], NDArray[np.float64]]
"""Milliseconds [N] until the last rank ends."""

Key = tuple[str, str, int]
"""Collective, link class, ranks."""


def bench_collectives(training: Sequence[Profile], held_out: Profile) -> dict[str, Any]:
    """The section `comms` of the report, by collective; the largest group has the short name."""
    train = by_key([each for profile in training for each in profile.collectives])
    test = by_key(held_out.collectives)
    found: dict[str, Any] = {}
    for key in sorted(test.keys() & train.keys(), key=lambda key: (key[0], -key[2], key[1])):
        name = key[0] if key[0] not in found else f"{key[0]}, {key[1]}, {key[2]} ranks"
        found[name] = score_group(train[key], test[key])
    return found


def by_key(measured: Measured) -> dict[Key, list[CollectiveMeasurement]]:
    """The measurements by what models are fitted for."""
    groups: dict[Key, list[CollectiveMeasurement]] = {}
    for each in measured:
        groups.setdefault((each.collective, each.link, each.world_size), []).append(each)
    return groups


def score_group(train: Measured, test: Measured) -> dict[str, Any]:
    """Each model's errors on the test collectives of one kind."""
    end_ms = _end_ms(test)
    models = {"ours": _fit_ours(train), "torchrec": _fit_torchrec(train), "nnls": _fit_nnls(train)}
    scores: dict[str, Any] = {name: error_metrics(predict(test), end_ms) for name, predict in models.items()}
    canaries_ms = [np.median([each.canary_ms for each in part]) for part in (test, train)]
    return scores | {
        "num_test": len(test),
        "num_train": len(train),
        "canary_ratio": float(canaries_ms[0] / canaries_ms[1]),
    }


def _fit_ours(train: Measured) -> Predict:
    model, (first, *_) = fit_collectives(train), train

    def predict(test: Measured) -> NDArray[np.float64]:
        return model.end_ms(first.collective, first.link, _sent_bytes(test), _starts_ms(test))

    return predict


def _fit_torchrec(train: Measured) -> Predict:
    """The busiest rank's bytes over a constant bandwidth. Source: TorchRec 1.8 `planner.estimator`, comms."""
    ms_per_byte = best_constant(_sent_bytes(train).max(axis=1), _end_ms(train))
    return lambda test: ms_per_byte * _sent_bytes(test).max(axis=1)


def _fit_nnls(train: Measured) -> Predict:
    def features(measured: Measured) -> NDArray[np.float64]:
        sent_bytes = _sent_bytes(measured)
        columns = (sent_bytes.max(axis=1), sent_bytes.sum(axis=1), _starts_ms(measured).max(axis=1))
        return np.column_stack([np.ones(len(measured)), *columns])

    figures = relative_nnls(features(train), _end_ms(train))
    return lambda test: np.asarray(features(test) @ figures)


def _sent_bytes(measured: Measured) -> NDArray[np.float64]:
    return np.array([each.sent_bytes for each in measured], dtype=np.float64)


def _starts_ms(measured: Measured) -> NDArray[np.float64]:
    """When each rank started [N, W], from the first."""
    skew_ms = np.array([each.skew_ms for each in measured], dtype=np.float64)
    return np.asarray(skew_ms - skew_ms.min(axis=1, keepdims=True))


def _end_ms(measured: Measured) -> NDArray[np.float64]:
    return np.asarray((_starts_ms(measured) + np.array([each.duration_ms for each in measured])).max(axis=1))
