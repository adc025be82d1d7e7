"""What each kind of planted fault does on a rank that has it."""

from collections import deque
from dataclasses import dataclass
from math import ceil

import torch
from torch import nn
from torchrec.optim.keyed import CombinedOptimizer

from dlrm.data.batches import Batch
from dlrm.errors import DlrmError
from dlrm.injection.batches import add_ids, ids_of, shift_ids
from dlrm.injection.config import (
    CHECKPOINT_SPIKES,
    FAIL_RESHARD,
    HOG_CORE,
    HOT_ROWS,
    HOT_TABLE,
    SLOW_DEVICE,
    SLOW_LINK,
    SLOW_LOOKUPS,
    InjectionConfig,
)
from dlrm.injection.hog import CoreHog
from dlrm.injection.hooks import Hooks, slow_dense, slow_link, slow_lookups, spike
from dlrm.injection.waits import wait
from dlrm.reshard.stages import Stage


@dataclass(frozen=True)
class Target:
    """What faults are planted into.

    Attributes:
        model: Sharded, with the hooks of the phases on it.
        optimizer: Of the whole model.
        tables: Rows of every table, by table and feature.
    """

    model: nn.Module
    optimizer: CombinedOptimizer
    tables: dict[str, dict[str, int]]


class Fault:
    """One fault on one rank; this one does nothing, kinds override what they do."""

    def __init__(self, config: InjectionConfig, rank: int, device: torch.device) -> None:
        self.config, self.rank, self.device = config, rank, device
        self.hooks = Hooks()

    def plant(self, target: Target) -> None:
        """It begins."""

    def at_step(self, step: int) -> None:
        """It is on in this step, which is about to begin."""

    def transform(self, batch: Batch, target: Target) -> Batch:
        """The batch of a step in which it is on."""
        return batch

    def delay_send(self) -> None:
        """Something is about to be sent while it is on."""

    def at_stage(self, stage: Stage) -> None:
        """A migration reaches this stage while it is on."""

    def remove(self) -> None:
        """It is over, or was never there."""
        self.hooks.remove()


class SlowLookups(Fault):
    """Lookup kernels take longer."""

    def plant(self, target: Target) -> None:
        """See Fault."""
        slow_lookups(target.model, self.hooks, self.config.percent, self.device)


class SlowDevice(SlowLookups):
    """The dense part takes longer as well."""

    def plant(self, target: Target) -> None:
        """See Fault."""
        super().plant(target)
        slow_dense(target.model, target.optimizer, self.hooks, self.config.percent, self.device)


class SlowLink(Fault):
    """What this rank sends comes later."""

    def plant(self, target: Target) -> None:
        """See Fault."""
        slow_link(target.model, self.hooks, self.delay_send)

    def delay_send(self) -> None:
        """See Fault."""
        wait(self.config.ms, self.device)


class HogCore(Fault):
    """Another process takes half of the rank's core."""

    def __init__(self, config: InjectionConfig, rank: int, device: torch.device) -> None:
        super().__init__(config, rank, device)
        self._hog = CoreHog(rank)

    def plant(self, target: Target) -> None:
        """See Fault."""
        self._hog.begin()

    def remove(self) -> None:
        """See Fault."""
        self._hog.end()


class HotData(Fault):
    """A fault of the data of some tables."""

    def num_rows(self, target: Target) -> dict[str, int]:
        """Rows by feature, of the tables that are meant."""
        return {
            feature: rows
            for table in self.config.tables or target.tables
            for feature, rows in target.tables[table].items()
        }


class HotTable(HotData):
    """More ids, those of the batches before."""

    def __init__(self, config: InjectionConfig, rank: int, device: torch.device) -> None:
        super().__init__(config, rank, device)
        self._earlier: deque[dict[str, torch.Tensor]] = deque(maxlen=max(1, ceil(config.percent / 100)))

    def transform(self, batch: Batch, target: Target) -> Batch:
        """See Fault."""
        own = ids_of(batch, self.num_rows(target))
        earlier = self._earlier or [own]
        donors = {feature: torch.cat([each[feature] for each in earlier]) for feature in own}
        self._earlier.append(own)
        return add_ids(batch, donors, self.config.percent)


class HotRows(HotData):
    """Other ids."""

    def transform(self, batch: Batch, target: Target) -> Batch:
        """See Fault."""
        return shift_ids(batch, self.num_rows(target), self.config.shift)


class CheckpointSpikes(Fault):
    """A long step now and then."""

    _is_due = False

    def plant(self, target: Target) -> None:
        """See Fault."""
        spike(target.model, self.hooks, self._strike)

    def at_step(self, step: int) -> None:
        """See Fault."""
        self._is_due = step % self.config.period_steps == 0

    def _strike(self) -> None:
        if self._is_due:
            self._is_due = False
            wait(self.config.ms, self.device)


class FailReshard(Fault):
    """A migration fails at one of its stages."""

    def at_stage(self, stage: Stage) -> None:
        """See Fault."""
        if stage == self.config.stage:
            raise DlrmError(f"planted fault: {self.config}", "injection")


FAULTS: dict[str, type[Fault]] = {
    SLOW_LOOKUPS: SlowLookups,
    SLOW_DEVICE: SlowDevice,
    SLOW_LINK: SlowLink,
    HOG_CORE: HogCore,
    HOT_TABLE: HotTable,
    HOT_ROWS: HotRows,
    CHECKPOINT_SPIKES: CheckpointSpikes,
    FAIL_RESHARD: FailReshard,
}
