"""The estimator of a measured cluster: learned lookups, fitted collectives and dense layers, the host's own time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.cost.comms_fit import fit_collectives
from planner.cost.compute import ComputeModel
from planner.cost.dense import DenseModel, fit_dense
from planner.cost.fit import FORWARD_BACKWARD, FitOptions, adapt_compute, fit_compute, measured_sets
from planner.cost.loads import REPLICATED, shard_ids_per_sample, shard_samples
from planner.cost.parts import LookupFloor
from planner.cost.pretrained import load_host, load_pretrained
from planner.cost.step import StepEstimator
from planner.errors import PlanningError
from planner.lookups import LookupArrays, state_bytes
from planner.problem import PlanningProblem
from planner.profile import DeviceProfile, Profile
from planner.sharding import ShardingType
from planner.shards import ShardArrays, whole_tables
from planner.topology import Topology

LEAST_SETS = 150
"""Measured sets from which a network is trained where no weights are shipped for a type of device."""

FROM_SCRATCH = FitOptions(batch_size=32)
"""Training on the few sets of one profile."""


@dataclass(frozen=True, eq=False)
class LearnedLookups:
    """Lookup times by a set network; loads are its own, summed over the shards of a rank.

    Attributes:
        model: The network, adapted to the devices.
        canary_ms: float64 [W], the fixed lookup on each rank's device.
    """

    model: ComputeModel
    canary_ms: NDArray[np.float64]

    def shard_loads(self, problem: PlanningProblem, shards: ShardArrays) -> NDArray[np.float64]:
        """The network's loads [S, model.num_loads]."""
        return self.model.loads(lookup_arrays(problem, shards)).astype(np.float64)

    def times_ms(
        self,
        problem: PlanningProblem,
        loads: NDArray[np.float64],
        num_kernels: NDArray[np.float64],
        ranks: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Milliseconds [2, ...] of summed loads [..., K]; every kernel beyond the first costs a base again."""
        canaries = np.moveaxis(self.model.cost_ms(loads), -1, 0).astype(np.float64)
        more = np.multiply.outer(self._base, num_kernels - 1.0)
        return np.asarray((canaries + more) * self.canary_ms[ranks])

    def floors(self, problem: PlanningProblem, at: Sequence[NDArray[np.float64]] = ()) -> tuple[LookupFloor, ...]:
        """Tangents at no loads, at those of the average rank when tables are whole, and where asked for."""
        whole = whole_tables(problem, ShardingType.TABLE_WISE)
        average = self.shard_loads(problem, whole).sum(axis=0) / problem.topology.world_size
        rate_ms = np.stack([self.canary_ms, self.canary_ms])
        return tuple(LookupFloor(*self.model.tangent(each), rate_ms) for each in (np.zeros_like(average), average, *at))

    @cached_property
    def _base(self) -> NDArray[np.float64]:
        return self.model.base


def lookup_arrays(problem: PlanningProblem, shards: ShardArrays) -> LookupArrays:
    """Shards of a plan as their kernels see them, all in one set."""
    tables, workload = problem.arrays, problem.workload
    is_replicated = shards.type_code == REPLICATED
    distinct = np.where(is_replicated, tables.local_distinct_rows[shards.table], tables.distinct_rows[shards.table])
    reuse = np.where(is_replicated[:, None], tables.local_reuse[shards.table], tables.reuse[shards.table])
    return LookupArrays(
        num_sets=1,
        set_index=np.zeros(len(shards), dtype=np.int64),
        samples=shard_samples(problem, shards),
        num_rows=shards.num_rows,
        num_cols=shards.num_cols,
        ids_per_sample=shard_ids_per_sample(problem, shards),
        num_features=tables.num_features[shards.table].astype(np.float64),
        distinct_rows=distinct * shards.num_rows / tables.num_rows[shards.table],
        weight_bytes=np.full(len(shards), float(workload.weight_bytes)),
        state_bytes=state_bytes(workload.optimizer, shards.num_cols),
        reuse=reuse,
    )


def learn_estimator(topology: Topology, profile: Profile, weights: Path | None = None) -> StepEstimator:
    """The estimator for these devices, from what was measured on the same kinds.

    Args:
        topology: The devices, all of one type.
        profile: Has an entry for each of their kinds.
        weights: A file of `pretrain cost`; None takes the shipped ones.

    Raises:
        PlanningError: The profile lacks a kind, or has too few sets to learn from (reason `profile`).
    """
    known = {device.kind: device for device in profile.devices}
    missing = sorted({device.kind for device in topology.devices} - set(known))
    if missing:
        raise PlanningError(
            f"the profile has no device kind {', '.join(missing)}, only {', '.join(sorted(known))}; measure the "
            "devices that the plan is for (shardwright profile), or leave the profile out",
            reason="profile",
        )
    kernels = measured_kernels(topology, profile, learn_compute(profile, weights))
    host = load_host(topology.devices[0].type, weights.parent if weights else None)
    if host is None:
        return kernels
    dense_ms = [known[device.kind].dense_canary.median_ms for device in topology.devices]
    return replace(kernels, host=host.scaled(float(np.mean(dense_ms))))


def measured_kernels(topology: Topology, profile: Profile, model: ComputeModel) -> StepEstimator:
    """The estimator of kernels and transfers alone, for devices that all have their kind in the profile."""
    known = {device.kind: device for device in profile.devices}
    kinds = [known[device.kind] for device in topology.devices]
    measured = tuple(dict.fromkeys(kinds))
    dense_ms = np.array([kind.dense_canary.median_ms for kind in kinds])
    return StepEstimator(
        lookups=LearnedLookups(model, np.array([kind.lookup_canary.median_ms for kind in kinds])),
        dense=DenseModel(fit_dense([each for kind in measured for each in kind.dense]), dense_ms),
        comms=fit_collectives(profile.collectives) if profile.collectives else None,
        copy_bytes_per_s=_copy_bytes_per_s(measured),
    )


def learn_compute(profile: Profile, weights: Path | None = None) -> ComputeModel:
    """The lookup model of the profile's devices: trained weights adapted to it, or a network trained on it alone."""
    sets = [each for device in profile.devices for each in device.lookups]
    canary_ms = np.array([device.lookup_canary.median_ms for device in profile.devices for _ in device.lookups])
    model = ComputeModel.load(weights) if weights else load_pretrained(profile.topology.devices[0].type)
    if model is not None:
        return adapt_compute(model, sets, canary_ms)
    if len(sets) < LEAST_SETS:
        raise PlanningError(
            f"no lookup weights are shipped for {profile.topology.devices[0].type} devices and the profile has "
            f"{len(sets)} sets, {LEAST_SETS} are needed to learn from; measure longer: profile.budget_s",
            reason="profile",
        )
    lookups, times = measured_sets(sets, canary_ms)
    return fit_compute(lookups, times, seed=0, outputs=FORWARD_BACKWARD, options=FROM_SCRATCH)


def _copy_bytes_per_s(kinds: tuple[DeviceProfile, ...]) -> float | None:
    """Bytes read or written a second by the largest copies within a device; the slowest kind's."""
    rates = []
    for kind in kinds:
        copies = [copy for copy in kind.copies if copy.kind == "device_to_device"]
        if copies:
            largest = max(copies, key=lambda copy: copy.num_bytes)
            rates.append(2e3 * largest.num_bytes / largest.timing.median_ms)
    return min(rates, default=None)
