"""All that measures one rank's steps: the clock, the counters, the sample of its shards; or nothing of it."""

from typing import Protocol

import numpy as np
import torch
from torchrec.distributed import DistributedModelParallel

from dlrm.job import TrainJob
from dlrm.memory import peak_bytes
from dlrm.phases import PhaseHooks
from dlrm.place import Rings
from dlrm.profiler import StepProfiler
from dlrm.shard_sample import SHARD_COLUMNS, ShardSampler, is_distinct_window, split_shards
from dlrm.shards import sharded_collections
from dlrm.step_columns import PEAK_BYTES, StepColumns
from dlrm.timing import NoClock, PhaseClock, make_clock
from dlrm.traffic import TrafficHooks


class StepMeter(Protocol):
    """Measures steps, or does not.

    Attributes:
        clock: To be told of steps and phases.
        num_columns: C, of a step's row.
        most_shards: The most tables that a rank holds a part of.
    """

    clock: PhaseClock
    num_columns: int
    most_shards: int

    def declare(self, rings: Rings) -> None:
        """Name the series of steps and of shards."""

    def end_step(self) -> None:
        """The step is over."""

    def count_shards(self) -> torch.Tensor:
        """What this rank's shards looked up in the latest step, `[shards, len(SHARD_COLUMNS)]`."""

    def join_shards(self, gathered: np.ndarray) -> np.ndarray:
        """All ranks' counts `[S, len(SHARD_COLUMNS)]` in the order that was declared."""

    def close(self) -> None:
        """Take the hooks off the model, for another meter once its tables are sharded anew."""


def make_meter(
    job: TrainJob, model: DistributedModelParallel, rank: int, device: torch.device, profiler: StepProfiler | None
) -> StepMeter:
    """What measures the steps of this job and tells a profiler; make it before a pipeline is built over the model."""
    return ModelMeter(job, model, rank, device, profiler) if job.telemetry.enabled else NoMeter(device)


class ModelMeter:
    """Measures every step of a sharded model."""

    def __init__(
        self,
        job: TrainJob,
        model: DistributedModelParallel,
        rank: int,
        device: torch.device,
        profiler: StepProfiler | None,
    ) -> None:
        """Put the hooks on the model."""
        types = [kind for collection in sharded_collections(model) for kind in collection._sharding_types]
        self._columns = StepColumns.of(types)
        clock = make_clock(device, job.train.window_steps, self._columns)
        self.clock = clock if profiler is None else profiler.label(clock, self._columns.names)
        self.num_columns = len(self._columns.names)
        self._traffic = TrafficHooks(self.clock)
        self._traffic.attach(model)
        self._phases = PhaseHooks(self.clock, self._columns)
        self._phases.attach(model)
        self._sampler = ShardSampler(job.plan, job.tables, rank)
        self.most_shards = max(self._sampler.sizes)
        self._device = device
        self._peak_bytes = peak_bytes(device)
        self._num_windows = 0

    def declare(self, rings: Rings) -> None:
        """See StepMeter."""
        sizes = self._sampler.sizes
        rings.declare("steps", (len(sizes), self.num_columns), {"columns": list(self._columns.names)})
        rings.declare("shards", (sum(sizes), len(SHARD_COLUMNS)), self._sampler.labels)

    def end_step(self) -> None:
        """See StepMeter."""
        self.clock.count(PEAK_BYTES, self._peak_bytes)
        self.clock.end_step()

    def count_shards(self) -> torch.Tensor:
        """See StepMeter."""
        # Asking the system takes as long as fifty phases: once a window is enough for a peak.
        self._peak_bytes = peak_bytes(self._device)
        is_distinct = is_distinct_window(self._num_windows)
        self._num_windows += 1
        return self._sampler.count(self._traffic.latest, is_distinct, self._device)

    def join_shards(self, gathered: np.ndarray) -> np.ndarray:
        """See StepMeter."""
        return split_shards(gathered, self._sampler.sizes)

    def close(self) -> None:
        """See StepMeter."""
        self._phases.remove()
        self._traffic.remove()


class NoMeter:
    """Measures nothing, for runs without telemetry."""

    num_columns = most_shards = 0

    def __init__(self, device: torch.device) -> None:
        self.clock: PhaseClock = NoClock()
        self._device = device

    def declare(self, rings: Rings) -> None:
        """No series."""

    def end_step(self) -> None:
        """Nothing to count."""

    def count_shards(self) -> torch.Tensor:
        """No shards."""
        return torch.zeros(0, len(SHARD_COLUMNS), dtype=torch.float64, device=self._device)

    def join_shards(self, gathered: np.ndarray) -> np.ndarray:
        """No shards."""
        return np.zeros((0, len(SHARD_COLUMNS)))

    def close(self) -> None:
        """No hooks."""
