"""The sharded model with all that is fastened to its shards: optimizer, clocks, pipeline, planted faults."""

from dataclasses import replace
from pathlib import Path

import torch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer

from dlrm.injection.injections import Injections
from dlrm.job import TrainJob, resolve_pipeline
from dlrm.model import build_dlrm
from dlrm.optimizers import combine_optimizers
from dlrm.phases import build_timed_pipeline
from dlrm.place import Place
from dlrm.profiler import make_profiler
from dlrm.reshard.migration import Migrated, Migration
from dlrm.sharded import EMBEDDINGS_PATH, shard_model
from dlrm.step_meter import make_meter
from planner.plan import ShardingPlan


class Rig:
    """One rank's model under a plan, ready to be stepped; moved to another plan, all is fastened anew.

    Attributes:
        job: With the plan that trains now.
        model: The sharded model.
        optimizer: Of all of it.
        profiler: Of single steps, if the job asks for one.
        meter: Measures every step; `clock` is its clock.
        pipeline: Steps the model.
        injections: Faults of the job.
    """

    def __init__(self, place: Place, job: TrainJob, device: torch.device) -> None:
        """Build the model and shard it. Collective."""
        self.job, self._place, self._device = job, place, device
        model = build_dlrm(job.model, job.tables, job.schema.num_dense, job.train.seed)
        self.model = shard_model(
            model, job.tables, job.plan, job.topology, job.sparse_optimizer, device, job.train.seed
        )
        self.optimizer = combine_optimizers(self.model, job.sparse_optimizer, job.dense_optimizer)
        self.profiler = make_profiler(job.profiler, Path(job.trace_folder), place.rank, device)
        self.injections = Injections(job.injections, place.rank, place.world_size, device)
        self._fasten()

    def detach(self) -> None:
        """Let go of what the pipeline has put into the model, for a pass without it; it comes again by itself."""
        if isinstance(self.pipeline, TrainPipelineSparseDist):
            self.pipeline.detach()

    def migrate(self, plan: ShardingPlan) -> Migrated:
        """Move the tables to another plan; where that fails the present one stands. Collective, nothing in flight."""
        self._unfasten()
        job = self.job
        migration = Migration(
            self.model,
            EMBEDDINGS_PATH,
            job.sparse_optimizer,
            job.topology,
            self._device,
            job.resharding,
            self._combine,
        )
        # Handed over, not lent: the old shards' state goes as soon as the migration lets go of it.
        migrated = migration.run(job.plan, plan, self.__dict__.pop("optimizer"), self.injections.at_stage)
        self.optimizer = migrated.optimizer
        if migrated.fault is None:
            self.job = replace(job, plan=plan)
        self._fasten()
        return migrated

    def close(self) -> None:
        """Take off what was planted."""
        self.injections.close()

    def _combine(self, before: CombinedOptimizer) -> CombinedOptimizer:
        return combine_optimizers(self.model, self.job.sparse_optimizer, self.job.dense_optimizer, before)

    def _fasten(self) -> None:
        self.meter = make_meter(self.job, self.model, self._place.rank, self._device, self.profiler)
        self.clock = self.meter.clock
        kind = resolve_pipeline(self.job.train.pipeline, self._device.type)
        self.pipeline = build_timed_pipeline(kind, self.model, self.optimizer, self._device, self.clock)
        self.injections.attach(self.model, self.optimizer)
        self.meter.declare(self._place.rings)

    def _unfasten(self) -> None:
        self.injections.detach()
        self.detach()
        self.meter.close()
        del self.pipeline, self.meter, self.clock
