"""What a model will be, computed without building it: planning needs neither torch nor a table's memory."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise

from dlrm.config import ModelConfig
from dlrm.data.schema import DataSchema
from planner.access import AccessStatistics
from planner.tables import TableSpec


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


def estimate_dense_flops(config: ModelConfig, tables: tuple[TableSpec, ...], num_dense: int) -> float:
    """Forward floating-point operations a sample outside the tables: two for each multiply-add.

    Every dense weight is used once a sample; the dot interaction of F features adds (F + 1)^2 D products.
    Source: Naumov et al. 2019 (arXiv 1906.00091), section 2.
    """
    num_vectors = 1 + sum(len(table.feature_names) for table in tables)
    interaction = num_vectors**2 * config.embedding_dim if config.arch == "dlrm" else 0
    return 2.0 * (count_dense_parameters(config, tables, num_dense) + interaction)


def _count_mlp(sizes: list[int]) -> int:
    """Weights and biases of a chain of linear layers."""
    return sum(inputs * outputs + outputs for inputs, outputs in pairwise(sizes))
