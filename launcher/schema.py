"""Every key of a configuration, as typed dataclasses; the generated reference is configs/README.md."""

from dataclasses import dataclass, field

from cluster.imbalance.detectors import DETECTORS
from cluster.imbalance.settings import WatchSettings
from dlrm.config import (
    LEAST_CHUNK_BYTES,
    STAGINGS,
    DenseOptimizerConfig,
    ModelConfig,
    ProfilerConfig,
    SparseOptimizerConfig,
    TelemetryConfig,
    TrainConfig,
)
from dlrm.data.config import DataConfig
from dlrm.injection.config import InjectionConfig
from dlrm.options import option
from planner.sharding import ShardingType

SHARDING_TYPES = tuple(kind.value for kind in ShardingType)


@dataclass
class RunSection:
    """Where a run keeps its records."""

    name: str | None = option(None, "name of the run's folder; null: the config's name and the time")
    dir: str = option("runs", "folder of all runs; in a Ray job a relative one is taken from the home directory")
    resume: str | None = option(None, "folder of a run to go on with: its newest checkpoint and the plan of that")


@dataclass
class ClusterSection:
    """Which machines and how many ranks."""

    address: str | None = option(
        None, "of a running Ray cluster (auto, host:port); null: the job's own, or a local one"
    )
    device: str = option(
        "auto", "auto: GPUs where there are any, else CPU ranks | cpu | cuda", choices=("auto", "cpu", "cuda")
    )
    num_workers: int | None = option(None, "ranks, exactly; null: one a device, up to max_workers", at_least=1)
    max_workers: int | None = option(None, "most ranks where num_workers is null; null: every device", at_least=1)
    cpus_per_worker: int = option(1, "CPU cores, and intra-op threads, of a rank", at_least=1)
    hardware: str | None = option(None, "topology file whose figures describe the devices found; null: the presets")
    start_timeout_s: float = option(120.0, "longest wait for the workers to start and meet", at_least=1.0)
    collective_timeout_s: float = option(120.0, "longest wait of a rank for the others in one collective", at_least=1.0)


@dataclass
class ConstraintSection:
    """One wish about tables that a plan must respect."""

    tables: list[str] = option([], "names of tables, or patterns such as user_*")
    ranks: list[int] | None = option(None, "the only ranks they may be on; null: all")
    sharding_types: list[str] | None = option(
        None, "the only sharding types; null: all. " + " | ".join(SHARDING_TYPES), choices=SHARDING_TYPES
    )
    together: bool = option(False, "all of them on the same rank")


@dataclass
class PlannerSection:
    """How tables are placed."""

    strategy: str = option("portfolio", "the search that makes the plan; `shardwright compare` lists them")
    budget_s: float = option(
        6.0, "time for a search that could go on; it ends sooner where nothing is to be gained", at_least=0.1
    )
    constraints: list[ConstraintSection] = option([], "wishes that every strategy respects")
    cost_weights: str | None = option(
        None, "lookup weights of `pretrain cost`, used where the devices have a profile; null: those that ship"
    )


@dataclass
class ProfileSection:
    """Measuring the devices and links."""

    enabled: bool = option(
        True, "measure devices that no kept profile describes, before a plan on a cluster; false: plan without"
    )
    budget_s: float = option(
        60.0, "time for measuring, the start of the workers included; a small one measures less", at_least=1.0
    )
    seed: int = option(0, "of what is measured: another one draws other sets, layers and messages", at_least=0)


@dataclass
class ImbalanceSection:
    """Watching a run for ranks that hold up the others."""

    enabled: bool = option(True, "watch the steps of every rank and say which one slows the job down, and why")
    detector: str = option(
        WatchSettings.detector,
        "what tells a change from noise; `shardwright bench detect` compares them",
        choices=tuple(DETECTORS),
    )
    warmup_steps: int = option(WatchSettings.warmup_steps, "first steps, which are not looked at", at_least=0)
    baseline_steps: int = option(
        WatchSettings.baseline_steps, "steps after those, from which the usual balance is learned", at_least=20
    )
    persistence_steps: int = option(
        WatchSettings.persistence_steps, "steps that a change must last before it is told", at_least=2
    )
    cool_down_steps: int = option(
        WatchSettings.cool_down_steps, "steps between two verdicts on the same rank", at_least=0
    )


@dataclass
class ReshardingSection:
    """Moving shards while the job trains, when it pays."""

    enabled: bool = option(False, "plan again when the watch finds an imbalance; needs telemetry and imbalance")
    mode: str = option(
        "act",
        "act: move shards when it pays | advise: say what would be moved, move nothing",
        choices=("act", "advise"),
    )
    chunk_bytes: int = option(
        16 * 2**20, "bytes of the buffers through which shards travel on a rank", at_least=LEAST_CHUNK_BYTES
    )
    staging: str = option(
        "auto",
        "where old and new shards stand side by side. device | host | auto: host where the device has no room",
        choices=STAGINGS,
    )
    margin: float = option(1.2, "a move must be expected to earn so many times its price", at_least=1.0)
    cool_down_steps: int = option(
        200, "steps without a re-plan after a migration, and about the same finding after a no", at_least=0
    )
    settle_steps: int = option(
        50, "steps after a migration that are compared with those before; a loss is rolled back", at_least=10
    )
    horizon_steps: int | None = option(
        None,
        "steps in which a move must earn its price; null: those left of the job, and where they are not known a move "
        "is made once the imbalance has cost as much",
        at_least=1,
    )


@dataclass
class OptimizerSection:
    """The two optimizers of a DLRM."""

    sparse: SparseOptimizerConfig = field(default_factory=SparseOptimizerConfig, metadata={"help": "of the tables"})
    dense: DenseOptimizerConfig = field(default_factory=DenseOptimizerConfig, metadata={"help": "of all else"})


@dataclass
class RunConfig:
    """The whole configuration of one run."""

    run: RunSection = field(default_factory=RunSection)
    cluster: ClusterSection = field(default_factory=ClusterSection)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    planner: PlannerSection = field(default_factory=PlannerSection)
    profile: ProfileSection = field(default_factory=ProfileSection)
    train: TrainConfig = field(default_factory=TrainConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    imbalance: ImbalanceSection = field(default_factory=ImbalanceSection)
    resharding: ReshardingSection = field(default_factory=ReshardingSection)
    profiler: ProfilerConfig = field(default_factory=ProfilerConfig)
    inject: list[InjectionConfig] = option([], "faults planted on purpose, to see whether they are found")
