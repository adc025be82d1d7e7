"""Builds a DLRM or DLRM-DCN-v2 from config; its tables stay on the meta device until a plan places them."""

from dataclasses import replace

import torch
from torch import nn
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRMTrain, SparseArch
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm.config import ModelConfig
from planner.tables import TableSpec
from planner.torchrec_bridge import build_embeddings


class ProjectedSparseArch(SparseArch):
    """Looks features up and brings tables of any width to the model's: `[B, F, D]` by key.

    A table as wide as the model passes unchanged; others go through one linear map a table.
    Source: Ginart et al. 2019, "Mixed Dimension Embeddings" (arXiv 1909.11810), section 3.
    """

    def __init__(self, embeddings: EmbeddingBagCollection, embedding_dim: int) -> None:
        super().__init__(embeddings)
        self.D = embedding_dim
        widths = {
            name: config.embedding_dim for config in embeddings.embedding_bag_configs() for name in config.feature_names
        }
        self.names = list(widths)
        self.projections = nn.ModuleList(
            nn.Linear(width, embedding_dim, bias=False) if width != embedding_dim else nn.Identity()
            for width in widths.values()
        )

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """Pooled and projected embeddings `[B, F, D]` of `features`, in the order of the tables."""
        pooled = self.embedding_bag_collection(features).to_dict()
        projected = [project(pooled[name]) for name, project in zip(self.names, self.projections, strict=True)]
        return torch.stack(projected, dim=1)


def build_dlrm(config: ModelConfig, tables: tuple[TableSpec, ...], num_dense: int, seed: int) -> DLRMTrain:
    """The whole model with its loss: dense parameters on the CPU, drawn from `seed`; tables on meta."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _assemble(config, tables, num_dense)


def _assemble(config: ModelConfig, tables: tuple[TableSpec, ...], num_dense: int) -> DLRMTrain:
    """TorchRec's model around our sparse arch.

    TorchRec's constructor wants tables of one width, so it is given uniform stand-ins on meta, whose
    sparse arch is then replaced.
    """
    stand_ins = build_embeddings(replace(table, embedding_dim=config.embedding_dim) for table in tables)
    sizes = {
        "dense_in_features": num_dense,
        "dense_arch_layer_sizes": [*config.dense_arch, config.embedding_dim],
        "over_arch_layer_sizes": [*config.over_arch, 1],
    }
    if config.arch == "dlrm_dcn":
        cross = {"dcn_num_layers": config.dcn_num_layers, "dcn_low_rank_dim": config.dcn_low_rank_dim}
        model: DLRM = DLRM_DCN(stand_ins, **sizes, **cross)
    else:
        model = DLRM(stand_ins, **sizes)
    model.sparse_arch = ProjectedSparseArch(build_embeddings(tables), config.embedding_dim)
    return DLRMTrain(model)
