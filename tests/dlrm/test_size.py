import pytest
from torch import nn

from dlrm.config import ModelConfig
from dlrm.data.schema import DataSchema, FeatureSpec
from dlrm.model import build_dlrm
from dlrm.size import count_dense_parameters, declare_tables

SCHEMA = DataSchema(
    ("d0", "d1", "d2"), (FeatureSpec("a", 100, 2.0, 8), FeatureSpec("type", 50, 1.0, 16), FeatureSpec("c", 10))
)


@pytest.mark.parametrize("arch", ["dlrm", "dlrm_dcn"])
@pytest.mark.parametrize("layers", [[32], [64, 32]])
def test_the_count_is_that_of_the_model(arch: str, layers: list[int]) -> None:
    config = ModelConfig(arch, 16, layers, layers, 2, 4)
    tables = declare_tables(SCHEMA, config.embedding_dim)
    model: nn.Module = build_dlrm(config, tables, SCHEMA.num_dense, seed=0)
    built = sum(p.numel() for p in model.parameters() if not p.is_meta)
    assert count_dense_parameters(config, tables, SCHEMA.num_dense) == built


def test_a_feature_without_its_own_width_takes_the_models() -> None:
    tables = declare_tables(SCHEMA, 24)
    assert [table.embedding_dim for table in tables] == [8, 16, 24]
    assert [table.pooling_factor for table in tables] == [2.0, 1.0, 1.0]
