"""One migration of a running job: every table from where it is to where a new plan wants it, on all ranks or on none.

    room ──▶ build ──▶ transfer ──▶ verify ──▶ commit          each stage: all ranks, or back to the old plan
    bytes     new       rounds of     sums of    the old
    needed    shards    parcels       tables     shards go

Call it at a step boundary that all ranks agree on, with nothing in flight. Everything that decides the order of
collectives is worked out from the two plans, alike on every rank; so a rank on which something goes wrong still takes
part in what the others wait for, and all hear of it at the end of the stage.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
import torch.distributed as dist
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from dlrm.config import ReshardConfig, SparseOptimizerConfig
from dlrm.memory import PeakWatch
from dlrm.optimizers import fused_params, without_tables
from dlrm.reshard.courier import Courier
from dlrm.reshard.held import HeldShard, Holding, agree_counters, empty_shards, flip_a_bit
from dlrm.reshard.misfit import find_misfit
from dlrm.reshard.parcels import Layout, cut_parcels, layout_of, sort_into_rounds
from dlrm.reshard.room import HOST, check_room, choose_staging, measure_room
from dlrm.reshard.sharded import Builder, Site, unshard
from dlrm.reshard.stages import At, Stage, no_fault
from dlrm.reshard.sums import TableSums
from dlrm.reshard.vote import Fault, GivenUp, together
from planner.memory import FLOAT_BYTES
from planner.plan import ShardingPlan
from planner.tables import OptimizerKind
from planner.topology import DeviceType, Topology
from planner.torchrec_bridge import shard_kernel, to_torchrec
from planner.transfers import transfers

Reoptimise = Callable[[CombinedOptimizer], CombinedOptimizer]
"""The optimizer of the model as it stands now; of all that is no table it keeps what the one before had."""
MS_PER_S = 1e3


@dataclass(frozen=True, eq=False)
class Migrated:
    """How a migration ended on this rank.

    Attributes:
        optimizer: To go on with.
        moved_bytes: That travelled between ranks, all together.
        transfer_ms: From the first parcel to the last.
        announced_bytes: Memory of the device that was to be needed beside the old shards.
        extra_peak_bytes: That was needed, as far as the device tells.
        staging: `device` or `host`.
        fault: Why the old plan still stands; None after a commit.
    """

    optimizer: CombinedOptimizer
    moved_bytes: int
    transfer_ms: float
    announced_bytes: int
    extra_peak_bytes: int
    staging: str
    fault: Fault | None


@dataclass(frozen=True, eq=False)
class Migration:
    """Moves the tables of one sharded collection of a model.

    Attributes:
        model: The model.
        path: The collection's name in it, without the wrappers of parallelism.
        sparse: The optimizer of its tables.
        topology: The devices.
        device: This rank's.
        config: Buffers and staging.
        reoptimise: Builds the optimizer anew once other shards stand in the model.
    """

    model: DistributedModelParallel
    path: str
    sparse: SparseOptimizerConfig
    topology: Topology
    device: torch.device
    config: ReshardConfig
    reoptimise: Reoptimise

    def run(self, old: ShardingPlan, new: ShardingPlan, optimizer: CombinedOptimizer, at: At = no_fault) -> Migrated:
        """Move from the plan that trains to another one, or leave everything as it was. Collective.

        Pipelines over the model and hooks on its modules go before, and come again after it. Where new shards are
        staged in host memory nothing but the arguments may hold the old ones, or their memory is not free for the new.

        Args:
            old: The plan that trains.
            new: The plan to train under.
            optimizer: Of the model, as `reoptimise` or its maker gave it.
            at: Told of stages.
        """
        if (misfit := find_misfit(old, new)) is not None:
            return Migrated(optimizer, 0, 0.0, 0, 0, "device", Fault(None, misfit))
        watch, attempt = PeakWatch(self.device), Attempt(self, old, new, optimizer, at)
        # It holds the state of the old shards, for which there may be no room later on.
        del optimizer
        fault = None
        try:
            attempt.carry_out()
        except GivenUp as error:
            attempt.undo()
            fault = error.fault
        return Migrated(
            attempt.optimizer,
            attempt.moved_bytes,
            attempt.transfer_ms,
            attempt.room.announced_bytes(attempt.staging),
            watch.extra_bytes,
            attempt.staging,
            fault,
        )


class Attempt:
    """One run of a migration, with what to go back to.

    Attributes:
        optimizer: Of what stands in the model.
        room: What is needed on this rank.
        staging: `device` or `host`.
        moved_bytes: That travel, all ranks together.
        transfer_ms: How long that took, once it is over.
    """

    def __init__(
        self, migration: Migration, old: ShardingPlan, new: ShardingPlan, optimizer: CombinedOptimizer, at: At
    ) -> None:
        self._all, self._old_plan, self._new_plan, self._at = migration, old, new, at
        self._rank, self._kind = dist.get_rank(), OptimizerKind(migration.sparse.kind)
        self._kernel = shard_kernel(self._kind, DeviceType(migration.device.type))
        self._builder = Builder(fused_params(migration.sparse), migration.device)
        self._site = Site(migration.model, migration.path)
        self._was, self._old_optimizer, self.optimizer = self._site.standing, optimizer, optimizer
        self._unsharded = unshard(self._was.collection)
        self._layout = layout_of(self._kind)
        holding = Holding(self._was.collection, optimizer, self._layout.num_states)
        self._old, self._counters = holding.shards, agree_counters(holding.read_counters())
        self._targets: list[HeldShard] = []
        self.transfer_ms = 0.0
        self._cut(self._layout)

    def _cut(self, layout: Layout) -> None:
        """Work out what stays, what travels, and what that takes."""
        config, pieces = self._all.config, transfers(self._old_plan, self._new_plan)
        self._kept = [piece for piece in pieces if piece.stays and piece.source == self._rank]
        parcels = cut_parcels((piece for piece in pieces if not piece.stays), layout, config.chunk_bytes)
        self._rounds = sort_into_rounds(parcels, dist.get_world_size(), config.chunk_bytes)
        self._sums = TableSums(self._old_plan, self._new_plan, layout, self._rank)
        self.moved_bytes = FLOAT_BYTES * sum(parcel.num_floats for parcel in parcels)
        old_bytes = sum(shard.num_bytes for shard in self._old)
        self.room = measure_room(self._rank, self._new_plan, layout, old_bytes, pieces, self._rounds)
        self.staging = choose_staging(self.room, config, self._all.device)

    def carry_out(self) -> None:
        """Go through all stages. Raises GivenUp on all ranks alike."""
        self._bring()
        if self.staging == "host":
            self._change_over()
        else:
            together(lambda: self._at(Stage.COMMIT))

    def undo(self) -> None:
        """Put the old shards into place again, as they were."""
        if self._site.standing.collection is not self._was.collection:
            self._site.put_back(self._was)
        self.optimizer = self._old_optimizer

    def _bring(self) -> None:
        """Fill the new shards, and make sure that they hold what the old ones do."""
        before = together(self._make_ready)
        courier = together(self._make_targets)
        together(lambda: self._transfer(courier))
        after = together(lambda: self._sums.of_new(self._targets, self._old))
        self._sums.check(before, after, courier.transit_sums.cpu())

    def _make_ready(self) -> torch.Tensor:
        """Find out whether there is room; the sums of what this rank holds."""
        self._at(Stage.BEFORE)
        check_room(self.room, self.staging, self._all.device)
        return self._sums.of_old(self._old)

    def _make_targets(self) -> Courier:
        """Make the new shards, beside the old ones or in host memory, and the buffers."""
        if self.staging == "host":
            self._targets = empty_shards(self._new_plan, self._rank, self._layout)
        else:
            self._targets = self._build(self._new_plan)
        cut_tables = self._sums.cut_tables
        return Courier(self._old, self._targets, self._rounds, self._rank, self._all.device, cut_tables)

    def _build(self, plan: ShardingPlan) -> list[HeldShard]:
        """Shard the tables under a plan, put them into the model, build their optimizer; what this rank then holds."""
        wanted = to_torchrec(plan, self._all.topology, self._kernel)
        collection = self._builder.build(self._unsharded, wanted)
        self._site.place(collection)
        self.optimizer = self._all.reoptimise(self._old_optimizer)
        holding = Holding(collection, self.optimizer, self._layout.num_states)
        holding.write_counters(self._counters)
        return holding.shards

    def _transfer(self, courier: Courier) -> None:
        began_s = perf_counter()
        courier.exchange(lambda: self._at(Stage.TRANSFER))
        courier.keep(self._kept)
        courier.merge()
        if self._all.device.type == "cuda":
            torch.cuda.synchronize()
        self.transfer_ms = MS_PER_S * (perf_counter() - began_s)
        try:
            self._at(Stage.CORRUPT)
        except Exception:  # planted, to be found by the sums
            flip_a_bit(self._targets)

    def _change_over(self) -> None:
        """Give the old shards up for the new ones, which wait in host memory; so does a copy of the old ones.

        Raises GivenUp on all ranks alike, once the old plan stands again.
        """
        saved = together(lambda: [shard.copy_to(HOST) for shard in self._old])
        self._release()
        try:
            together(lambda: self._fill(self._new_plan, self._targets))
            together(lambda: self._at(Stage.COMMIT))
        except GivenUp:
            self._release()
            self._fill(self._old_plan, saved)
            self._was, self._old_optimizer = self._site.standing, self.optimizer
            raise

    def _fill(self, plan: ShardingPlan, values: list[HeldShard]) -> None:
        found = {shard.place: shard for shard in values}
        for shard in self._build(plan):
            if shard.weight.numel():
                shard.take(found[shard.place])

    def _release(self) -> None:
        """Let go of what stands in the model, so that its memory is free."""
        self._site.clear()
        self._old, self._was = [], self._site.standing
        self._old_optimizer = self.optimizer = without_tables(self._old_optimizer)
        gc.collect()
        if self._all.device.type == "cuda":
            torch.cuda.empty_cache()
