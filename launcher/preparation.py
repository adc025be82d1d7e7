"""From a configuration to the plan that will train: the same steps for `plan`, `compare` and `train`."""

import hashlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.inventory import Inventory, take_inventory
from cluster.session import open_session
from dlrm.checkpoint_folder import check_resume, describe_settings, find_checkpoint, read_plan
from dlrm.data.criteo_origin import VocabularyOrigin
from dlrm.data.factory import check_size, open_schema
from dlrm.data.files import list_files
from dlrm.data.schema import DataSchema
from dlrm.job import BATCHES_IN_FLIGHT, TrainJob, resolve_pipeline
from dlrm.size import count_dense_parameters, declare_tables, estimate_dense_flops
from launcher.config import ConfigError
from launcher.hardware import Described, describe_cluster
from launcher.run_dir import locate_runs
from launcher.schema import ConstraintSection, RunConfig
from planner.problem import PlanningProblem, TableConstraint
from planner.search.registry import PlanResult, appraise, make_plan
from planner.sharding import ShardingType
from planner.tables import OptimizerKind, TableSpec, Workload
from planner.topology import DeviceType, Topology, load_topology

# Source: fbgemm_gpu 1.8, SplitTableBatchedEmbeddingBagsCodegen: the optimizers that it accepts in CPU mode.
ADAM_ON_CPU = (
    "optimizer.sparse.kind: adam is fused into FBGEMM's lookups on GPUs only; on CPU ranks use rowwise_adagrad or sgd"
)


@dataclass(frozen=True)
class Task:
    """What is to be trained, before anything is placed."""

    config: RunConfig
    schema: DataSchema
    tables: tuple[TableSpec, ...]
    dense_parameters: int
    dense_flops_per_sample: float

    def problem(self, topology: Topology) -> PlanningProblem:
        """The planning problem on these devices; raises ConfigError for an optimizer that they cannot run."""
        config = self.config
        if config.optimizer.sparse.kind == OptimizerKind.ADAM and topology.devices[0].type is DeviceType.CPU:
            raise ConfigError([ADAM_ON_CPU])
        pipeline = resolve_pipeline(config.train.pipeline, topology.devices[0].type)
        workload = Workload(
            tables=self.tables,
            batch_size=config.train.batch_size,
            optimizer=OptimizerKind(config.optimizer.sparse.kind),
            batches_in_flight=BATCHES_IN_FLIGHT[pipeline],
            dense_parameters=self.dense_parameters,
            dense_flops_per_sample=self.dense_flops_per_sample,
        )
        return PlanningProblem(workload, topology, tuple(map(_constraint, config.planner.constraints)))


def describe_task(config: RunConfig) -> Task:
    """Read the data's schema and size the model up: no table is allocated, torch is not even loaded."""
    schema = open_schema(config.data)
    tables = declare_tables(schema, config.model.embedding_dim)
    dense = count_dense_parameters(config.model, tables, schema.num_dense)
    flops = estimate_dense_flops(config.model, tables, schema.num_dense)
    return Task(config, schema, tables, dense, flops)


@dataclass(frozen=True)
class Prepared:
    """A task, the devices it was planned for and the plan itself; `train` executes exactly this.

    `inventory` is None for devices of a topology file, `resume` the checkpoint to go on from, if any; `notes` are
    things that a user should know about the figures.
    """

    task: Task
    topology: Topology
    planned: PlanResult
    inventory: Inventory | None
    resume: Path | None
    notes: tuple[str, ...]

    def job(self, checkpoints: Path) -> TrainJob:
        """What every rank is handed; `checkpoints` is the folder to write them to."""
        config = self.task.config
        return TrainJob(
            model=config.model,
            data=config.data,
            sparse_optimizer=config.optimizer.sparse,
            dense_optimizer=config.optimizer.dense,
            train=config.train,
            schema=self.task.schema,
            tables=self.task.tables,
            plan=self.planned.plan,
            topology=self.topology,
            checkpoint_folder=str(checkpoints),
            resume=str(self.resume) if self.resume else None,
        )


def prepare(config: RunConfig, topology_path: Path | None, strategy: str | None = None) -> Prepared:
    """Plan for the devices of the cluster, or of a topology file where one is given (then no Ray is needed).

    Raises ConfigError, DataError, CheckpointError, PlanningError or ClusterError.
    """
    task = describe_task(resolve_paths(config))
    if topology_path is not None:
        inventory, described = None, Described(load_topology(topology_path), ())
    else:
        inventory, described = find_devices(config)
    problem = task.problem(described.topology)
    check_size(config.data, config.train.batch_size, described.topology.world_size)
    if config.run.resume is None:
        planned, checkpoint = make_plan(problem, strategy or config.planner.strategy), None
    else:
        checkpoint = find_checkpoint(Path(config.run.resume))
        check_resume(checkpoint, _settings(config, described.topology.world_size), config.train.steps)
        planned = appraise(problem, read_plan(checkpoint), "resumed")
    return Prepared(task, described.topology, planned, inventory, checkpoint, described.notes)


def session_unless(topology_path: Path | None, config: RunConfig) -> AbstractContextManager[object]:
    """A Ray session for planning on the cluster's own devices; nothing where a topology file describes them."""
    return nullcontext() if topology_path else open_session(config.cluster.address)


def find_devices(config: RunConfig) -> tuple[Inventory, Described]:
    """The ranks that the open Ray session offers, and their figures. Needs an open session."""
    cluster = config.cluster
    inventory = take_inventory(cluster.device, cluster.num_workers, cluster.cpus_per_worker)
    if cluster.num_workers is None and cluster.max_workers is not None:
        inventory = inventory.first(cluster.max_workers)
    hardware = Path(cluster.hardware) if cluster.hardware else None
    return inventory, describe_cluster(inventory, hardware)


def resolve_paths(config: RunConfig) -> RunConfig:
    """The configuration with its paths made absolute, since workers have other current folders."""
    config.run.dir = str(locate_runs(config.run.dir))
    data = config.data
    for section, name in (
        (data, "path"),
        (data, "eval_path"),
        (data.criteo, "vocabulary_path"),
        (config.run, "resume"),
    ):
        value = getattr(section, name)
        if value is not None:
            setattr(section, name, str(Path(value).expanduser().resolve()))
    if data.kind == "criteo" and data.criteo.vocabulary == "frequency" and data.criteo.vocabulary_path is None:
        data.criteo.vocabulary_path = str(_default_vocabulary(config))
    return config


def _settings(config: RunConfig, world_size: int) -> dict[str, Any]:
    optimizer = config.optimizer
    return describe_settings(config.model, config.data, optimizer.sparse, optimizer.dense, config.train, world_size)


def _default_vocabulary(config: RunConfig) -> Path:
    """A file beside the runs, named after everything the vocabulary depends on, so that later runs find it."""
    data = config.data
    origin = VocabularyOrigin.of(data, list_files(data.path))
    digest = hashlib.blake2b(f"{data.path} {origin}".encode(), digest_size=6).hexdigest()
    return Path(config.run.dir) / "vocabularies" / f"{Path(str(data.path)).stem}-{digest}.npz"


def _constraint(section: ConstraintSection) -> TableConstraint:
    types = section.sharding_types
    return TableConstraint(
        tables=tuple(section.tables),
        ranks=None if section.ranks is None else tuple(section.ranks),
        sharding_types=None if types is None else tuple(ShardingType(kind) for kind in types),
        together=section.together,
    )
