"""From a configuration to the plan that will train: the same steps for `plan`, `compare` and `train`."""

import hashlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.inventory import Inventory, take_inventory
from cluster.session import open_session
from dlrm.checkpoint_folder import check_resume, describe_settings, find_checkpoint, read_plan
from dlrm.config import ReshardConfig, check_profiler
from dlrm.data.criteo_origin import VocabularyOrigin
from dlrm.data.factory import check_size, open_schema
from dlrm.data.files import list_files
from dlrm.data.schema import DataSchema
from dlrm.injection.config import check_injections
from dlrm.job import BATCHES_IN_FLIGHT, TrainJob, resolve_pipeline
from dlrm.size import DenseWork, add_access, declare_tables, describe_dense
from launcher.access import find_access
from launcher.config import ConfigError
from launcher.estimators import build_estimator
from launcher.hardware import Described, describe_cluster, take_ranks
from launcher.priced_plan import PINNED, RESUMED, PricedPlan, read_pinned
from launcher.profiling import Follow, obtain_profile, unseen
from launcher.run_dir import RunDir, locate_runs
from launcher.schema import ConstraintSection, RunConfig
from planner.problem import PlanningProblem, TableConstraint
from planner.profile import Profile
from planner.profile_file import load_profile
from planner.search.registry import SearchSettings, appraise, make_plan
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
    dense: DenseWork

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
            dense_parameters=self.dense.parameters,
            dense_flops_per_sample=self.dense.flops,
            dense_layers=self.dense.layers,
            dense_activations=self.dense.activations,
        )
        return PlanningProblem(workload, topology, tuple(map(_constraint, config.planner.constraints)))


def describe_task(config: RunConfig) -> Task:
    """Read the data's schema and size the model up: no table is allocated, torch is not even loaded."""
    schema = open_schema(config.data)
    tables = declare_tables(schema, config.model.embedding_dim)
    return Task(config, schema, tables, describe_dense(config.model, tables, schema.num_dense))


def with_access(task: Task, world_size: int) -> tuple[Task, tuple[str, ...]]:
    """The task with what is known of how its rows are looked up by so many ranks, and notes on that.

    Reads a sample of the data where that was not done before. Raises DataError.
    """
    access = find_access(task.config, task.schema, world_size)
    return replace(task, tables=add_access(task.tables, access.statistics)), access.notes


@dataclass(frozen=True)
class Prepared:
    """A task, the devices it was planned for and the plan itself; `train` executes exactly this.

    `inventory` is None for devices of a file, `profile` None where nothing was measured, `resume` the checkpoint to
    go on from, if any; `notes` are things that a user should know about the figures.
    """

    task: Task
    topology: Topology
    planned: PricedPlan
    inventory: Inventory | None
    profile: Profile | None
    resume: Path | None
    notes: tuple[str, ...]

    def job(self, run: RunDir) -> TrainJob:
        """What every rank is handed; they write checkpoints and traces into the folder of `run`."""
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
            checkpoint_folder=str(run.checkpoints),
            resume=str(self.resume) if self.resume else None,
            telemetry=config.telemetry,
            injections=tuple(config.inject),
            profiler=config.profiler,
            trace_folder=str(run.traces),
            resharding=ReshardConfig(config.resharding.chunk_bytes, config.resharding.staging),
        )


def prepare(
    config: RunConfig,
    topology_path: Path | None,
    strategy: str | None = None,
    profile_path: Path | None = None,
    follow: Follow = unseen,
    pinned_path: Path | None = None,
) -> Prepared:
    """Plan for the devices of the cluster, or of a topology or profile file where one is given (then without Ray).

    Devices of the cluster that no kept profile describes are measured first, which `follow` shows. A pinned plan's
    file replaces the search, and the plan of a checkpoint to go on from.

    Raises ConfigError, DataError, CheckpointError, PlanningError, ClusterError or OSError.
    """
    pinned = None if pinned_path is None else read_pinned(pinned_path)
    task = describe_task(resolve_paths(config))
    target = find_target(config, topology_path, profile_path)
    topology = target.described.topology
    check_size(config.data, config.train.batch_size, topology.world_size)
    check_profiler(config.profiler, topology.world_size)
    check_injections(config.inject, [table.name for table in task.tables], topology.world_size)
    task, notes = with_access(task, topology.world_size)
    problem = task.problem(topology)
    checkpoint = None if config.run.resume is None else find_checkpoint(Path(config.run.resume))
    if checkpoint is not None:
        check_resume(checkpoint, _settings(config, topology.world_size), config.train.steps)
    target = with_profile(target, config, follow)
    estimator = build_estimator(topology, target.profile, find_weights(config))
    if pinned is not None:
        planned = appraise(problem, pinned, PINNED, estimator)
    elif checkpoint is not None:
        planned = appraise(problem, read_plan(checkpoint), RESUMED, estimator)
    else:
        settings = SearchSettings(estimator, config.planner.budget_s, has_policy=target.profile is not None)
        planned = make_plan(problem, strategy or config.planner.strategy, settings)
    notes = (*target.described.notes, *notes)
    priced = PricedPlan.of(planned, estimator)
    return Prepared(task, topology, priced, target.inventory, target.profile, checkpoint, notes)


def session_unless(file: Path | None, config: RunConfig) -> AbstractContextManager[object]:
    """A Ray session for planning on the cluster's own devices; nothing where a file describes them."""
    return nullcontext() if file else open_session(config.cluster.address)


@dataclass(frozen=True)
class Target:
    """The devices to plan for: `inventory` is None for those of a file, `profile` where nothing was measured."""

    inventory: Inventory | None
    described: Described
    profile: Profile | None


def find_target(config: RunConfig, topology_path: Path | None, profile_path: Path | None) -> Target:
    """The devices of the topology file, else of the profile's file, else of the open Ray session."""
    profile = load_profile(profile_path) if profile_path else None
    if topology_path is not None:
        return Target(None, Described(load_topology(topology_path), ()), profile)
    if profile is not None:
        return Target(None, Described(profile.topology, ()), profile)
    return Target(*find_devices(config), None)


def with_profile(target: Target, config: RunConfig, follow: Follow) -> Target:
    """The same devices with their profile, kept or measured now; those of a file, or unwanted, stay as they are."""
    if target.inventory is None or not config.profile.enabled:
        return target
    kept = obtain_profile(config, target.inventory, target.described.topology, follow)
    notes = (*target.described.notes, str(kept))
    return replace(target, profile=kept.profile, described=replace(target.described, notes=notes))


def find_weights(config: RunConfig) -> Path | None:
    """The file of lookup weights that the configuration names; None for those that ship."""
    return None if config.planner.cost_weights is None else Path(config.planner.cost_weights)


def find_devices(config: RunConfig) -> tuple[Inventory, Described]:
    """The ranks that the open Ray session offers, and their figures. Needs an open session."""
    cluster = config.cluster
    inventory = take_inventory(cluster.device, cluster.num_workers, cluster.cpus_per_worker)
    inventory = take_ranks(inventory, cluster)
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
        (config.planner, "cost_weights"),
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
