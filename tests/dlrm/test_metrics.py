import math

import pytest
import torch

from dlrm.metrics import NUM_BINS, BinaryMetrics, compute_metrics

CPU = torch.device("cpu")


def scored(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, generator=generator)
    labels = torch.bernoulli(torch.sigmoid(2 * logits - 1), generator=generator)
    return logits, labels


def test_auc_equals_the_share_of_pairs_in_order() -> None:
    logits, labels = scored(2000, 0)
    metrics = BinaryMetrics(CPU)
    metrics.update(logits, labels)
    positive, negative = logits[labels == 1], logits[labels == 0]
    pairs = positive[:, None] - negative[None, :]
    exact = ((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean().item()
    assert compute_metrics(metrics.state).auc == pytest.approx(exact, abs=2 / NUM_BINS)


def test_ne_of_the_base_rate_is_one_and_its_calibration_too() -> None:
    labels = torch.tensor([1.0, 0.0, 0.0, 0.0] * 50)
    metrics = BinaryMetrics(CPU)
    metrics.update(torch.full_like(labels, math.log(1 / 3)), labels)
    values = compute_metrics(metrics.state)
    assert values.ne == pytest.approx(1.0, abs=1e-6)
    assert values.calibration == pytest.approx(1.0, abs=1e-6)
    assert values.auc == pytest.approx(0.5)


def test_states_of_ranks_add_up_to_that_of_all_samples() -> None:
    logits, labels = scored(999, 1)
    whole, first, second = (BinaryMetrics(CPU) for _ in range(3))
    whole.update(logits, labels)
    first.update(logits[:400], labels[:400])
    second.update(logits[400:], labels[400:])
    merged, alone = compute_metrics(first.state + second.state), compute_metrics(whole.state)
    assert merged.samples == alone.samples == 999
    for name in ("loss", "ne", "auc", "calibration"):
        assert getattr(merged, name) == pytest.approx(getattr(alone, name), rel=1e-9)


def test_what_is_undefined_is_nan_and_a_diverged_model_does_not_break_the_count() -> None:
    metrics = BinaryMetrics(CPU)
    assert math.isnan(compute_metrics(metrics.state).auc)
    metrics.update(torch.tensor([float("nan"), 1.0]), torch.tensor([1.0, 1.0]))
    values = compute_metrics(metrics.state)
    assert math.isnan(values.auc) and math.isnan(values.loss) and values.samples == 2
