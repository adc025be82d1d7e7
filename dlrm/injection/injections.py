"""Faults planted on purpose into a running job, for tests and benches: off by default, and loud when on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torchrec.optim.keyed import CombinedOptimizer

from dlrm.data.batches import Batch
from dlrm.injection.config import InjectionConfig, check_injections
from dlrm.injection.faults import FAULTS, Fault, Target
from dlrm.reshard.stages import Stage
from dlrm.shards import sharded_collections
from planner.torchrec_bridge import table_name


@dataclass
class Planned:
    """When a fault is on; `fault` does nothing on a rank that is spared."""

    config: InjectionConfig
    fault: Fault
    is_on: bool = False

    def is_wanted(self, step: int) -> bool:
        """Whether this step has the fault."""
        last = self.config.to_step
        return self.config.from_step <= step and (last is None or step <= last)


class Injections:
    """The faults of a job, on one rank; every rank holds the same list, so that each can tell of all.

    Without any, nothing is ever attached and every call returns at once.
    """

    def __init__(self, configs: Sequence[InjectionConfig], rank: int, world_size: int, device: torch.device) -> None:
        self._world_size = world_size
        self._planned = [Planned(config, _build_fault(config, rank, device)) for config in configs]
        self._target: Target | None = None
        self._first_step: int | None = None
        self._num_batches = 0

    def attach(self, model: nn.Module, optimizer: CombinedOptimizer) -> None:
        """Say which sharded model trains, once the hooks of the phases are on it; again when it was sharded anew.

        Raises:
            DlrmError: `injection`, for ranks or tables that there are not, or values outside their limits.
        """
        if not self._planned:
            return
        self._target = Target(model, optimizer, _tables(model))
        check_injections([each.config for each in self._planned], self._target.tables, self._world_size)
        for each in self._planned:
            if each.is_on:
                each.fault.remove()
                each.fault.plant(self._target)

    def detach(self) -> None:
        """Let go of the model, whose tables are about to be sharded anew; `attach` plants again what is on."""
        for each in self._planned:
            if each.is_on:
                each.fault.remove()
        self._target = None

    def at_stage(self, stage: Stage) -> None:
        """Hear of a stage of a migration; raises where a fault is planted there."""
        for each in self._planned:
            if each.is_on:
                each.fault.at_stage(stage)

    def at_step(self, step: int) -> list[str]:
        """Switch on and off what this step, which is about to begin, asks for.

        Returns a message for people on every fault that begins or has ended, the same ones on every rank.
        """
        if not self._planned:
            return []
        if self._first_step is None:
            self._first_step = step
        messages = [self._switch(each, step) for each in self._planned if each.is_on != each.is_wanted(step)]
        for each in self._planned:
            if each.is_on:
                each.fault.at_step(step)
        return messages

    def transform(self, batch: Batch) -> Batch:
        """The batch as the faults want it; give every batch that will be trained, in order, after the first `at_step`.

        A pipeline takes batches before their step: the faults are those of the step that will train this one.
        """
        if not self._planned:
            return batch
        assert self._first_step is not None and self._target is not None, "transform before attach and at_step"
        step = self._first_step + self._num_batches
        self._num_batches += 1
        for each in self._planned:
            if each.is_wanted(step):
                batch = each.fault.transform(batch, self._target)
        return batch

    def delay_send(self) -> None:
        """Wait as long as a slow link holds up what this rank sends now."""
        for each in self._planned:
            if each.is_on:
                each.fault.delay_send()

    def close(self) -> None:
        """Take off every hook, end every process; nothing is planted any more."""
        for each in self._planned:
            each.fault.remove()
        self._planned = []

    def _switch(self, each: Planned, step: int) -> str:
        assert self._target is not None, "at_step before attach"
        each.is_on = not each.is_on
        if not each.is_on:
            each.fault.remove()
            return f"planted fault is over: {each.config}"
        each.fault.plant(self._target)
        last = "the end" if each.config.to_step is None else each.config.to_step
        return f"planted fault: {each.config}, steps {step} to {last}"


def _build_fault(config: InjectionConfig, rank: int, device: torch.device) -> Fault:
    """What this rank has of a fault; `attach` raises for a kind that there is not."""
    is_here = config.ranks is None or rank in config.ranks
    return (FAULTS.get(config.kind, Fault) if is_here else Fault)(config, rank, device)


def _tables(model: nn.Module) -> dict[str, dict[str, int]]:
    """Rows of every table, by table and feature."""
    return {
        table_name(config.name): dict.fromkeys(config.feature_names, config.num_embeddings)
        for collection in sharded_collections(model)
        for config in collection._embedding_bag_configs
    }
