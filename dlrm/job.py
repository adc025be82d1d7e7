"""Everything a rank needs to know to train: one frozen object that travels to the workers."""

from dataclasses import dataclass, field

from dlrm.config import (
    DenseOptimizerConfig,
    ModelConfig,
    ProfilerConfig,
    ReshardConfig,
    SparseOptimizerConfig,
    TelemetryConfig,
    TrainConfig,
)
from dlrm.data.config import DataConfig
from dlrm.data.schema import DataSchema
from dlrm.injection.config import InjectionConfig
from planner.plan import ShardingPlan
from planner.tables import TableSpec
from planner.topology import Topology

# TrainPipelineSparseDist keeps three batches on the device: one trains, one has its ids exchanged, one is copied.
# Source: TorchRec, docstring of TrainPipelineSparseDist.progress. The base pipeline keeps two.
BATCHES_IN_FLIGHT = {"sparse_dist": 3, "base": 2}


@dataclass(frozen=True)
class TrainJob:
    """What trains (model, data), how (optimizers, train), and where every table lives (plan, topology).

    `checkpoint_folder` and `trace_folder` are where checkpoints and profiles of steps go, `resume` the checkpoint to
    start from; all absolute paths that every rank can reach.
    """

    model: ModelConfig
    data: DataConfig
    sparse_optimizer: SparseOptimizerConfig
    dense_optimizer: DenseOptimizerConfig
    train: TrainConfig
    schema: DataSchema
    tables: tuple[TableSpec, ...]
    plan: ShardingPlan
    topology: Topology
    checkpoint_folder: str
    resume: str | None = None
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    injections: tuple[InjectionConfig, ...] = ()
    profiler: ProfilerConfig = field(default_factory=ProfilerConfig)
    trace_folder: str = ""
    resharding: ReshardConfig = field(default_factory=ReshardConfig)


def resolve_pipeline(name: str, device_type: str) -> str:
    """`auto` becomes `sparse_dist` on CUDA, where it overlaps copies and exchanges, and `base` elsewhere."""
    if name != "auto":
        return name
    return "sparse_dist" if device_type == "cuda" else "base"
