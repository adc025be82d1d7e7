"""Our communication cost beside the baselines on measured all-to-alls.

The file is split by time: the first 80 % of its lines to train, the rest to test. Scored is the slowest
rank: the largest duration of a line. The machine's speed drifts through such files, so

- every model is fitted to durations divided by the speed of their time, which is the running median of
  slowest duration per byte over `SPEED_WINDOW` lines, 1 at its median;
- the first `CANARY_LINES` lines of the test part are a canary: they are not scored, and one factor, the
  median of measured over estimated on them, corrects each model. `ours_without_canary` goes without.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from launcher.bench.baselines import EPOCHS, Progress, best_constant, prefixed, relative_nnls, train_network
from launcher.bench.cost_data import CommsCosts, CostFileError
from launcher.bench.metrics import Scores, error_metrics, mean_and_spread, render_metrics
from planner.cost.comms_fit import fit_collectives
from planner.profile import CollectiveMeasurement, Timing

TRAIN_SHARE = 0.8
"""Share of the lines, from the first, that models are fitted to."""

CANARY_LINES = 20
"""Lines of the test part that may be used to rescale."""

SPEED_WINDOW = 41
"""Lines of a running median: what bytes alone leave open on a line, about 15 %, falls to about 3 %."""

MIN_LINES = 200
"""Fewest lines that leave as many to score as the canary takes."""

COLLECTIVE, LINK = "all_to_all", "intra_node"
"""These files are of all-to-alls between ranks of one machine."""


@dataclass(frozen=True, eq=False)
class Exchanges:
    """All-to-alls in the order of time, arrays [N, W].

    Attributes:
        sent_bytes: Inputs of the forward all-to-all; in a backward one what each rank receives.
        skew_ms: Late starts; None where all ranks start together.
        duration_ms: From a rank's own start to its end.
    """

    sent_bytes: NDArray[np.float64]
    skew_ms: NDArray[np.float64] | None
    duration_ms: NDArray[np.float64]

    @property
    def slowest_ms(self) -> NDArray[np.float64]:
        """Milliseconds [N] of the slowest rank."""
        return np.asarray(self.duration_ms.max(axis=1))

    def part(self, at: slice) -> "Exchanges":
        """Only these lines."""
        return Exchanges(self.sent_bytes[at], None if self.skew_ms is None else self.skew_ms[at], self.duration_ms[at])


Predict = Callable[[Exchanges], NDArray[np.float64]]
"""Milliseconds [N] of the slowest rank, without a look at durations."""


def bench_comms(costs: CommsCosts, num_seeds: int, progress: Progress) -> dict[str, Any]:
    """Each model's test metrics by phase, means over seeds and their spread, and what the canary is.

    Raises:
        CostFileError: Too few lines to split.
    """
    if len(costs.sent_bytes) < MIN_LINES:
        raise CostFileError(f"{len(costs.sent_bytes)} lines are too few to split; expected {MIN_LINES} or more")
    phases = {
        "forward": Exchanges(costs.sent_bytes, costs.skew_ms, costs.forward_ms),
        "backward": Exchanges(costs.sent_bytes, None, costs.backward_ms),
    }
    found: dict[str, Any] = {}
    for phase, exchanges in phases.items():
        runs = [
            score_by_time(exchanges, seed, prefixed(progress, f"seed {seed}, {phase}, ")) for seed in range(num_seeds)
        ]
        found[phase] = {name: mean_and_spread(run[name] for run in runs) for name in runs[0]}
    return found | {
        "canary_lines": CANARY_LINES,
        "note": f"slowest rank; all but ours_without_canary are rescaled by one factor from the first {CANARY_LINES} "
        "lines of the test part, which are not scored",
    }


def score_by_time(exchanges: Exchanges, seed: int, progress: Progress) -> Scores:
    """Each model's metrics on the last fifth of the lines."""
    num_train = int(len(exchanges.sent_bytes) * TRAIN_SHARE)
    train = exchanges.part(slice(0, num_train))
    canary = exchanges.part(slice(num_train, num_train + CANARY_LINES))
    test = exchanges.part(slice(num_train + CANARY_LINES, None))
    speed = running_speed(train)
    steady = replace(train, duration_ms=train.duration_ms / speed[:, None])
    models: dict[str, Predict] = {
        "ours": _fit_ours(train, speed, seed),
        "torchrec": _fit_torchrec(steady),
        "nnls": _fit_nnls(steady),
        "neuroshard": _fit_neuroshard(steady, seed, prefixed(progress, "neuroshard: ")),
    }
    scores = {}
    for name, predict in models.items():
        factor = float(np.median(canary.slowest_ms / predict(canary)))
        scores[name] = error_metrics(factor * predict(test), test.slowest_ms)
        progress(f"{name}: {render_metrics(scores[name])}, canary {factor:.3f}")
    scores["ours_without_canary"] = error_metrics(models["ours"](test), test.slowest_ms)
    return scores


def running_speed(exchanges: Exchanges) -> NDArray[np.float64]:
    """How slow the machine was at each line [N], 1 at its median."""
    ms_per_byte = exchanges.slowest_ms / exchanges.sent_bytes.sum(axis=1)
    padded = np.pad(ms_per_byte, SPEED_WINDOW // 2, mode="reflect")
    speed = np.median(np.lib.stride_tricks.sliding_window_view(padded, SPEED_WINDOW), axis=1)
    return np.asarray(speed / np.median(speed))


def _fit_ours(train: Exchanges, speed: NDArray[np.float64], seed: int) -> Predict:
    """The profile's own fit; the running speed takes the place of its canary."""
    unmeasured = Timing(0.0, 0.0, 0)
    measurements = [
        CollectiveMeasurement(
            COLLECTIVE,
            LINK,
            sent_bytes=tuple(int(each) for each in sent_bytes),
            skew_ms=tuple(skew_ms),
            duration_ms=tuple(duration_ms),
            slowest=unmeasured,
            canary_ms=float(canary_ms),
        )
        for sent_bytes, skew_ms, duration_ms, canary_ms in zip(
            train.sent_bytes, _skews(train), train.duration_ms, speed, strict=True
        )
    ]
    model = fit_collectives(measurements, seed)

    def predict(exchanges: Exchanges) -> NDArray[np.float64]:
        skew_ms = _skews(exchanges)
        return model.end_ms(COLLECTIVE, LINK, exchanges.sent_bytes, skew_ms) - skew_ms.min(axis=1)

    return predict


def _fit_torchrec(train: Exchanges) -> Predict:
    """Bytes that a rank writes / bandwidth, at its best constant.

    Source: TorchRec 1.8 `planner.estimator.TableWiseEvaluator`, `_default_fwd_comms` and `_default_bwd_comms`.
    """

    def busiest_bytes(exchanges: Exchanges) -> NDArray[np.float64]:
        return np.asarray(exchanges.sent_bytes.max(axis=1))

    ms_per_byte = best_constant(busiest_bytes(train), train.slowest_ms)
    return lambda exchanges: ms_per_byte * busiest_bytes(exchanges)


def _fit_nnls(train: Exchanges) -> Predict:
    """Non-negative least squares on the largest and the total bytes and the largest skew."""

    def features(exchanges: Exchanges) -> NDArray[np.float64]:
        sent_bytes = exchanges.sent_bytes
        columns = (sent_bytes.max(axis=1), sent_bytes.sum(axis=1), _skews(exchanges).max(axis=1))
        return np.column_stack([np.ones(len(sent_bytes)), *columns])

    figures = relative_nnls(features(train), train.slowest_ms)
    return lambda exchanges: np.asarray(features(exchanges) @ figures)


def _fit_neuroshard(train: Exchanges, seed: int, progress: Progress) -> Predict:
    """NeuroShard's communication network, trained again: bytes (and skews) of all ranks -128-64-32-16- all durations.

    Source: NeuroShard (arXiv 2305.01868), `comm_cost_model.py`; a random tenth of the train part chooses the epoch.
    """
    torch.manual_seed(seed)
    mean, scale = (figure(_columns(train), axis=0) for figure in (np.mean, np.std))

    def inputs_of(exchanges: Exchanges) -> torch.Tensor:
        # Skews of rank 0 may be 0 throughout.
        return torch.tensor((_columns(exchanges) - mean) / (scale + 1e-6), dtype=torch.float32)

    inputs, targets = inputs_of(train), torch.tensor(train.duration_ms, dtype=torch.float32)
    widths = [inputs.shape[1], 128, 64, 32, 16]
    hidden = [nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in pairwise(widths)]
    network = nn.Sequential(*hidden, nn.Linear(widths[-1], targets.shape[1]))
    held_out, kept = torch.randperm(len(inputs)).tensor_split([len(inputs) // 10])

    def loss_on(at: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(network(inputs[at]), targets[at])

    train_network(
        network, lambda batch: loss_on(kept[batch]), lambda: float(loss_on(held_out)), len(kept), EPOCHS, progress
    )

    def predict(exchanges: Exchanges) -> NDArray[np.float64]:
        with torch.no_grad():
            return network(inputs_of(exchanges)).max(dim=1).values.double().numpy()

    return predict


def _columns(exchanges: Exchanges) -> NDArray[np.float64]:
    """Inputs [N, W] or [N, 2 W] of NeuroShard's network."""
    parts = [exchanges.sent_bytes] + ([] if exchanges.skew_ms is None else [exchanges.skew_ms])
    return np.concatenate(parts, axis=1)


def _skews(exchanges: Exchanges) -> NDArray[np.float64]:
    return np.zeros_like(exchanges.sent_bytes) if exchanges.skew_ms is None else exchanges.skew_ms
