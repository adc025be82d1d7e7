"""What a model will be, computed without building it: planning needs neither torch nor a table's memory."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from dlrm.config import ModelConfig
from dlrm.data.schema import DataSchema
from planner.access import AccessStatistics
from planner.tables import TableSpec


@dataclass(frozen=True)
class DenseWork:
    """What a model does outside its tables.

    Attributes:
        parameters: Replicated on every rank.
        flops: Floating-point operations of a sample's forward pass, two for each multiply-add.
        layers: Operations of the forward pass.
        activations: Floats of a sample that these read and write.
    """

    parameters: int
    flops: float
    layers: int
    activations: float


def declare_tables(schema: DataSchema, embedding_dim: int) -> tuple[TableSpec, ...]:
    """One table a feature, named like it; a feature without its own width takes `embedding_dim`."""
    return tuple(
        TableSpec(
            name=feature.name,
            num_embeddings=feature.num_embeddings,
            embedding_dim=feature.embedding_dim or embedding_dim,
            feature_names=(feature.name,),
            pooling_factor=feature.pooling_factor,
        )
        for feature in schema.features
    )


def add_access(tables: Iterable[TableSpec], statistics: Mapping[str, AccessStatistics]) -> tuple[TableSpec, ...]:
    """The tables with their access statistics and the pooling factors of these; without either where there are none."""
    return tuple(
        replace(table, access=statistics[table.name], pooling_factor=statistics[table.name].pooling.mean)
        if table.name in statistics
        else table
        for table in tables
    )


def count_dense_parameters(config: ModelConfig, tables: tuple[TableSpec, ...], num_dense: int) -> int:
    """Parameters outside the tables, which every rank replicates; equal to those of `dlrm.model.build_dlrm`."""
    width = config.embedding_dim
    num_vectors = 1 + sum(len(table.feature_names) for table in tables)
    projections = sum(t.embedding_dim * width * len(t.feature_names) for t in tables if t.embedding_dim != width)
    if config.arch == "dlrm_dcn":
        flat = num_vectors * width
        # A low-rank cross layer: W [flat, rank], V [rank, flat] and a bias [flat].
        # Source: Wang et al. 2021, DCN V2 (arXiv 2008.13535), equation 2; TorchRec LowRankCrossNet.
        interaction = config.dcn_num_layers * (2 * flat * config.dcn_low_rank_dim + flat)
        over_in = flat
    else:
        interaction, over_in = 0, width + num_vectors * (num_vectors - 1) // 2
    bottom = _count_mlp([num_dense, *config.dense_arch, width])
    return projections + bottom + interaction + _count_mlp([over_in, *config.over_arch, 1])


def describe_dense(config: ModelConfig, tables: tuple[TableSpec, ...], num_dense: int) -> DenseWork:
    """The work of a sample outside the tables.

    Every dense weight is used once a sample, in one multiply-add; the dot interaction of F features adds
    (F + 1)^2 D products. Layers read their inputs and write their outputs; projected vectors are stacked, and
    the interaction's products copied next to the dense vector.
    Source: Naumov et al. 2019 (arXiv 1906.00091), section 2; TorchRec 1.8 `models.dlrm`.
    """
    width = config.embedding_dim
    num_vectors = 1 + sum(len(table.feature_names) for table in tables)
    parameters = count_dense_parameters(config, tables, num_dense)
    chains = [[num_dense, *config.dense_arch, width]]
    chains += [[t.embedding_dim, width] for t in tables if t.embedding_dim != width for _ in t.feature_names]
    if config.arch == "dlrm_dcn":
        flat, products = num_vectors * width, 0
        chains += [[flat, config.dcn_low_rank_dim, flat, flat]] * config.dcn_num_layers
        chains.append([flat, *config.over_arch, 1])
    else:
        flat, products = num_vectors * width, num_vectors**2 * width
        pairs = num_vectors * (num_vectors - 1) // 2
        chains += [[flat, num_vectors**2, pairs, width + pairs], [width + pairs, *config.over_arch, 1]]
    stacked = 2 * num_vectors * width
    return DenseWork(
        parameters=parameters,
        flops=2.0 * (parameters + products),
        layers=sum(len(chain) - 1 for chain in chains),
        activations=float(stacked + sum(inputs + outputs for chain in chains for inputs, outputs in pairwise(chain))),
    )


def _count_mlp(sizes: list[int]) -> int:
    """Weights and biases of a chain of linear layers."""
    return sum(inputs * outputs + outputs for inputs, outputs in pairwise(sizes))
