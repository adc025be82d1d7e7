"""TorchRec's own estimate of a step under a plan of ours."""

import numpy as np
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.planner import Topology as TorchRecTopology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator
from torchrec.distributed.planner.types import Shard as TorchRecShard

from launcher.bench.collectives import by_key
from launcher.views.profiling import effective_bytes_per_s, fit_line
from planner.plan import ShardingPlan, TablePlacement
from planner.problem import PlanningProblem
from planner.profile import Profile
from planner.topology import DeviceType
from planner.torchrec_bridge import MS_PER_S, FusedBagSharder, build_embeddings, module_name, quiet


def estimate_step_ms(problem: PlanningProblem, plan: ShardingPlan, profile: Profile) -> float:
    """The busiest rank's sum over shards of TorchRec's forward and backward compute and communication.

    TorchRec's planner balances this very figure. Its dense layers take no time. Given are the profile's bandwidths and
    the true batch size, pooling factors and shards.
    """
    constraints = {
        module_name(placed.name): ParameterConstraints(
            sharding_types=[placed.sharding_type.value],
            min_partition=min(shard.num_cols for shard in placed.shards),
            pooling_factors=[table.pooling_factor] * len(table.feature_names),
        )
        for placed in plan.tables
        for table in [problem.tables[placed.name]]
    }
    placements = {module_name(placed.name): placed for placed in plan.tables}
    with quiet():
        topology = _topology(problem, profile)
        enumerator = EmbeddingEnumerator(
            topology,
            batch_size=problem.workload.batch_size,
            constraints=constraints,
            estimator=EmbeddingPerfEstimator(topology, constraints),
        )
        sharder = FusedBagSharder(problem.workload.optimizer)
        options = enumerator.enumerate(build_embeddings(problem.workload.tables), [sharder])
        for option in options:
            option.shards = _shards(placements[option.name])
        enumerator.populate_estimates(options)
    busy_ms = np.zeros(plan.world_size)
    for option in options:
        for shard in option.shards:
            assert shard.perf is not None and shard.rank is not None
            busy_ms[shard.rank] += shard.perf.total
    return float(busy_ms.max())


def _shards(placed: TablePlacement) -> list[TorchRecShard]:
    return [
        TorchRecShard(
            size=[shard.num_rows, shard.num_cols], offset=[shard.row_offset, shard.col_offset], rank=shard.rank
        )
        for shard in placed.shards
    ]


def _topology(problem: PlanningProblem, profile: Profile) -> TorchRecTopology:
    """TorchRec's topology with measured bandwidths; sizes of memories have no influence on times."""
    topology, bandwidth = problem.topology, _lookup_bytes_per_s(profile) / MS_PER_S
    is_cpu = topology.devices[0].type is DeviceType.CPU
    return TorchRecTopology(
        world_size=topology.world_size,
        compute_device=topology.devices[0].type.value,
        local_world_size=len(topology.ranks_of(topology.nodes[0])),
        intra_host_bw=_all_to_all_bytes_per_s(profile, "intra_node", topology.intra_node.bytes_per_s) / MS_PER_S,
        inter_host_bw=_all_to_all_bytes_per_s(profile, "inter_node", topology.inter_node.bytes_per_s) / MS_PER_S,
        **({"ddr_mem_bw": bandwidth} if is_cpu else {"hbm_mem_bw": bandwidth}),
    )


def _lookup_bytes_per_s(profile: Profile) -> float:
    """Of the forward pass; TorchRec itself takes the backward pass for twice as slow."""
    return min(effective_bytes_per_s(device.lookups)[0] for device in profile.devices)


def _all_to_all_bytes_per_s(profile: Profile, link: str, declared: float) -> float:
    """Of all-to-alls that start together; the declared figure of a link that was not measured."""
    together = [
        each
        for (collective, found, _), group in by_key(profile.collectives).items()
        for each in group
        if (collective, found) == ("all_to_all", link) and not any(each.skew_ms)
    ]
    if not together:
        return declared
    sizes = np.array([max(each.sent_bytes) for each in together], dtype=np.float64)
    return fit_line(sizes, np.array([each.slowest.median_ms for each in together]))[1]
