"""Normalised entropy, AUC and calibration from sums that add up over batches and ranks."""

from dataclasses import dataclass

import torch

# Scores are counted in this many equal bins of the probability; the AUC then errs by at most the share of
# positive-negative pairs that fall into one bin.
NUM_BINS = 4096
# Layout of the flat state: loss sum, samples, positives, sum of predictions, then two histograms.
NUM_SUMS = 4
NUM_STATES = NUM_SUMS + 2 * NUM_BINS


@dataclass(frozen=True)
class MetricValues:
    """What a stretch of samples says of the model; `nan` where it is undefined (one class only, no sample)."""

    samples: int
    loss: float
    ne: float
    auc: float
    calibration: float


class BinaryMetrics:
    """Accumulates one flat float64 tensor, so that one all-reduce (a sum) merges all ranks."""

    def __init__(self, device: torch.device) -> None:
        self.state = torch.zeros(NUM_STATES, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add samples: `logits` and `labels` are `[N]`, labels 0 or 1."""
        logits, labels = logits.double(), labels.double()
        predictions = torch.sigmoid(logits)
        self.state[0] += torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        self.state[1] += labels.numel()
        self.state[2] += labels.sum()
        self.state[3] += predictions.sum()
        # A diverged model predicts NaN, which no bin holds; the loss reports it.
        bins = torch.nan_to_num(predictions * NUM_BINS).long().clamp_(0, NUM_BINS - 1)
        self.state[NUM_SUMS:].index_add_(0, bins + labels.long() * NUM_BINS, torch.ones_like(labels))

    def reset(self) -> None:
        """Forget everything."""
        self.state.zero_()


def compute_metrics(state: torch.Tensor) -> MetricValues:
    """The metrics of a (summed) flat state.

    NE is the mean log loss over the entropy of the base rate; below 1 the model knows more than the base
    rate. Source: He et al. 2014, "Practical Lessons from Predicting Clicks on Ads at Facebook", section 3.
    Calibration is predicted over observed positives (ibid.). AUC is the Mann-Whitney statistic, ties half.
    """
    loss_sum, samples, positives, predicted = state[:NUM_SUMS].tolist()
    if samples == 0:
        return MetricValues(0, float("nan"), float("nan"), float("nan"), float("nan"))
    rate = torch.tensor(positives / samples, dtype=torch.float64)
    entropy = torch.nn.functional.binary_cross_entropy(rate, rate).item()
    loss = loss_sum / samples
    return MetricValues(
        samples=int(samples),
        loss=loss,
        ne=loss / entropy if entropy > 0 else float("nan"),
        auc=_auc(state[NUM_SUMS : NUM_SUMS + NUM_BINS], state[NUM_SUMS + NUM_BINS :]),
        calibration=predicted / positives if positives else float("nan"),
    )


def _auc(negatives: torch.Tensor, positives: torch.Tensor) -> float:
    pairs = (negatives.sum() * positives.sum()).item()
    if pairs == 0:
        return float("nan")
    below = negatives.cumsum(0) - negatives
    return ((positives * (below + 0.5 * negatives)).sum().item()) / pairs
