"""Model configurations drawn at random, for steps that are measured through the real trainer."""

import numpy as np

from dlrm.config import ModelConfig, SparseOptimizerConfig, TrainConfig
from dlrm.data.config import DataConfig, SyntheticConfig, SyntheticTableConfig
from launcher.preparation import describe_task
from launcher.schema import (
    ClusterSection,
    ConstraintSection,
    OptimizerSection,
    PlannerSection,
    ProfileSection,
    RunConfig,
)
from planner.sharding import MIN_COLUMN_WIDTH

WORLD_SIZE = 2
WARMUP_STEPS = 10
MEASURED_STEPS = 40
NUM_STEPS = WARMUP_STEPS + MEASURED_STEPS

STRATEGIES = ("size_greedy", "dim_greedy", "random", "longest_processing_time")
TABLE_DIMS = (4, 8, 16, 32, 48, 64, 96, 128)
LAYER_WIDTHS = (32, 64, 128, 256, 384, 512)
# A configuration beyond these is drawn again: each bound is some tens of milliseconds of one CPU core, or what two
# ranks of a small machine hold at ease.
MOST_IDS_PER_RANK = 250_000
MOST_FLOPS_PER_RANK = 3e9
MOST_TABLES_BYTES = 500e6
# Wide tables have fewer rows, so that models of many tables are not the ones that are drawn again.
MOST_TABLE_BYTES = 64e6
# The gradient of a replicated table is as large as the table, and is summed up in every step.
MOST_REPLICATED_BYTES = 2e6
# In this share of the configurations each table is forced to a type other than table_wise with this probability.
MIXED_SHARE, FORCED_SHARE = 0.6, 0.4


def draw_configs(count: int, seed: int) -> list[RunConfig]:
    """Synthetic configurations for two CPU ranks; the first ones of a seed do not depend on `count`.

    3 to 24 tables of 1e3 to 1e6 rows (fewer where they are wide) and 4 to 128 columns, mean pooling factors 1 to 40,
    skews 0 to 1.3, 128 to 2,048 samples a rank, both archs with MLPs of different widths and depths, plans by four
    strategies; in some of them row-, column-wise and replicated tables. A step takes about 5 to 150 ms of one core.
    """
    return [_draw_config(np.random.default_rng([seed, index]), seed) for index in range(count)]


def _draw_config(generator: np.random.Generator, seed: int) -> RunConfig:
    """Draw until the configuration is within the bounds."""
    while True:
        tables = [_draw_table(generator, number) for number in range(int(generator.integers(3, 25)))]
        batch_size = int(generator.choice([128, 256, 512, 1024, 2048]))
        samples = WORLD_SIZE * batch_size
        synthetic = SyntheticConfig(seed, NUM_STEPS * samples, samples, int(generator.integers(4, 33)), tables=tables)
        config = RunConfig(
            cluster=ClusterSection(device="cpu", num_workers=WORLD_SIZE),
            data=DataConfig(synthetic=synthetic),
            model=_draw_model(generator),
            optimizer=OptimizerSection(sparse=SparseOptimizerConfig(str(generator.choice(["rowwise_adagrad", "sgd"])))),
            planner=PlannerSection(str(generator.choice(STRATEGIES)), constraints=_draw_constraints(generator, tables)),
            profile=ProfileSection(enabled=False),
            train=TrainConfig(batch_size, NUM_STEPS, window_steps=NUM_STEPS, checkpoint=False),
        )
        if _is_within_bounds(config):
            return config


def _draw_table(generator: np.random.Generator, number: int) -> SyntheticTableConfig:
    embedding_dim = int(generator.choice(TABLE_DIMS))
    return SyntheticTableConfig(
        name=f"table_{number}",
        num_embeddings=round(min(10 ** generator.uniform(3, 6), MOST_TABLE_BYTES / (4 * embedding_dim))),
        embedding_dim=embedding_dim,
        pooling_factor=float(np.round(40 ** generator.uniform(0, 1), 2)),
        zipf_alpha=float(np.round(generator.uniform(0, 1.3), 2)),
    )


def _draw_model(generator: np.random.Generator) -> ModelConfig:
    def layers() -> list[int]:
        return generator.choice(LAYER_WIDTHS, int(generator.integers(1, 4))).tolist()

    return ModelConfig(
        arch=str(generator.choice(["dlrm", "dlrm_dcn"])),
        embedding_dim=int(generator.choice([16, 32, 64, 128])),
        dense_arch=layers(),
        over_arch=layers(),
        dcn_num_layers=int(generator.integers(1, 4)),
        dcn_low_rank_dim=int(generator.choice([8, 16, 32, 64])),
    )


def _draw_constraints(generator: np.random.Generator, tables: list[SyntheticTableConfig]) -> list[ConstraintSection]:
    if generator.random() >= MIXED_SHARE:
        return []
    forced = [table for table in tables if generator.random() < FORCED_SHARE]
    return [
        ConstraintSection([table.name], sharding_types=[str(generator.choice(_legal_types(table)))]) for table in forced
    ]


def _legal_types(table: SyntheticTableConfig) -> list[str]:
    types = ["row_wise"]
    if table.embedding_dim >= WORLD_SIZE * MIN_COLUMN_WIDTH:
        types.append("column_wise")
    if _table_bytes(table) <= MOST_REPLICATED_BYTES:
        types.append("data_parallel")
    return types


def _is_within_bounds(config: RunConfig) -> bool:
    tables, batch_size = config.data.synthetic.tables, config.train.batch_size
    return (
        batch_size * sum(table.pooling_factor for table in tables) <= MOST_IDS_PER_RANK
        and sum(map(_table_bytes, tables)) <= MOST_TABLES_BYTES
        # Backward costs twice the forward pass: gradients of inputs and of weights.
        and 3 * batch_size * describe_task(config).dense.flops <= MOST_FLOPS_PER_RANK
    )


def _table_bytes(table: SyntheticTableConfig) -> float:
    return 4.0 * table.num_embeddings * table.embedding_dim
