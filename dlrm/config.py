"""What a user declares about the model, its optimizers and the training loop; plain dataclasses."""

import re
from dataclasses import dataclass

from dlrm.errors import DlrmError
from dlrm.options import option


@dataclass
class ModelConfig:
    """The dense part of a DLRM; its tables come from the data's features."""

    arch: str = option(
        "dlrm",
        "dlrm: dot-product interaction | dlrm_dcn: DLRM-DCN-v2, low-rank cross net",
        choices=("dlrm", "dlrm_dcn"),
    )
    embedding_dim: int = option(64, "columns of every table that does not declare its own", at_least=4, multiple_of=4)
    dense_arch: list[int] = option([256, 128], "hidden layers of the bottom MLP; embedding_dim is appended", at_least=1)
    over_arch: list[int] = option(
        [256, 128], "hidden layers of the top MLP; the one logit is appended", at_least=1, min_items=1
    )
    dcn_num_layers: int = option(3, "cross layers (dlrm_dcn)", at_least=1)
    dcn_low_rank_dim: int = option(64, "rank of a cross layer's weight (dlrm_dcn)", at_least=1)


@dataclass
class SparseOptimizerConfig:
    """The optimizer fused into the backward pass of every table."""

    kind: str = option("rowwise_adagrad", "rowwise_adagrad | adam | sgd", choices=("rowwise_adagrad", "adam", "sgd"))
    learning_rate: float = option(0.05, "step size of the tables", at_least=0.0)
    eps: float = option(1e-8, "term in the denominator (rowwise_adagrad, adam)", at_least=0.0)
    beta1: float = option(0.9, "first-moment decay (adam)", at_least=0.0)
    beta2: float = option(0.999, "second-moment decay (adam)", at_least=0.0)


@dataclass
class DenseOptimizerConfig:
    """The optimizer of the MLPs and the interaction."""

    kind: str = option("adam", "adam | adagrad | sgd", choices=("adam", "adagrad", "sgd"))
    learning_rate: float = option(1e-3, "step size of the dense parameters", at_least=0.0)


@dataclass
class TrainConfig:
    """How long and how a run trains."""

    batch_size: int = option(512, "samples a rank and step", at_least=1)
    steps: int | None = option(None, "stop after this many steps; null: after `epochs` passes", at_least=1)
    epochs: int = option(1, "passes over the training rows, where `steps` is null", at_least=1)
    window_steps: int = option(10, "steps between two records; ranks exchange timings and commands then", at_least=1)
    eval_every: int | None = option(
        None, "steps between two evaluations on held-out batches; null: at the end only", at_least=1
    )
    eval_batches: int | None = option(None, "held-out batches of one evaluation; null: all of them", at_least=1)
    pipeline: str = option(
        "auto",
        "sparse_dist: TrainPipelineSparseDist | base | auto: sparse_dist on CUDA, where it overlaps",
        choices=("auto", "sparse_dist", "base"),
    )
    checkpoint: bool = option(
        True, "save weights, optimizer state and the place in the data at the end, and when stopped"
    )
    seed: int = option(17, "of the first weights, the shuffling and the synthetic draws", at_least=0)


STAGINGS = ("auto", "device", "host")
LEAST_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class ReshardConfig:
    """How shards are moved while a job trains.

    Attributes:
        chunk_bytes: Of the two buffers together through which everything travels on a rank.
        staging: `device`: new shards are filled beside the old ones; `host`: in host memory, and the old ones make
            room for them; `auto`: on the device where it has room for both, else in host memory.
    """

    chunk_bytes: int = 16 << 20
    staging: str = "auto"

    def __post_init__(self) -> None:
        """Raises DlrmError (`resharding`) where a value makes no sense."""
        if self.staging not in STAGINGS:
            expected = ", ".join(STAGINGS)
            raise DlrmError(f"resharding.staging: found {self.staging!r}, expected one of {expected}", "resharding")
        if self.chunk_bytes < LEAST_CHUNK_BYTES:
            message = f"resharding.chunk_bytes: found {self.chunk_bytes}, expected at least {LEAST_CHUNK_BYTES}"
            raise DlrmError(message, "resharding")


@dataclass
class TelemetryConfig:
    """Measuring every step."""

    enabled: bool = option(
        True, "time every phase of every step on every rank; false: only loss and speed, and no imbalance is seen"
    )


@dataclass
class ProfilerConfig:
    """Traces of single steps, for Perfetto."""

    steps: str | None = option(None, "FIRST:LAST, steps to trace with torch.profiler; null: none")
    ranks: list[int] = option([0], "ranks that write a trace", at_least=0, min_items=1)


# A step of the quick start takes 40 kB of a packed trace and 10 ms to write.
MOST_PROFILED_STEPS = 100


def parse_steps(text: str) -> tuple[int, int]:
    """First and last step of `FIRST:LAST`, both profiled and counted from 1.

    >>> parse_steps("100:110")
    (100, 110)

    Raises:
        ValueError: With the whole message, for anything else.
    """
    match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
    if match is None:
        raise ValueError(f"profiler.steps: found {text!r}, expected FIRST:LAST, as in 100:110")
    first, last = int(match[1]), int(match[2])
    if not 1 <= first <= last:
        raise ValueError(
            f"profiler.steps: found {text!r}, expected FIRST:LAST with 1 <= FIRST <= LAST, as in 100:110; steps are "
            "counted from 1"
        )
    if last - first >= MOST_PROFILED_STEPS:
        raise ValueError(
            f"profiler.steps: found {text!r}, {last - first + 1} steps, expected {MOST_PROFILED_STEPS} at most: a "
            "trace is held in memory, and written while the other ranks wait"
        )
    return first, last


def check_profiler(config: ProfilerConfig, world_size: int) -> None:
    """Raise DlrmError, `profiler`, for ranks that a job of so many does not have."""
    missing = [rank for rank in config.ranks if rank >= world_size]
    if config.steps is not None and missing:
        raise DlrmError(f"profiler.ranks: there is no rank {missing[0]}; this job has {world_size}, from 0", "profiler")
