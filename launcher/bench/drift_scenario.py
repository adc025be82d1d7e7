"""The job of `bench drift`: tables whose lookups are nearly all of a step, and a load that moves to one rank's."""

from copy import deepcopy
from dataclasses import dataclass

from dlrm.config import DenseOptimizerConfig, ModelConfig, SparseOptimizerConfig, TrainConfig
from dlrm.data.config import DataConfig, DeclaredAccessConfig, SyntheticConfig, SyntheticTableConfig
from dlrm.injection.config import HOT_TABLE, InjectionConfig
from launcher.config import ConfigError
from launcher.preparation import Prepared
from launcher.schema import ConstraintSection, RunConfig
from planner.sharding import ShardingType

# Wide rows, many ids, few of them twice in a batch: an id costs a lookup and its update many times what it costs to be
# drawn, exchanged or pooled behind it.
EMBEDDING_DIM, BATCH_SIZE = 128, 128
POOLING_FACTORS = (44.0, 40.0, 36.0, 32.0, 28.0, 24.0, 20.0, 16.0)
ZIPF_ALPHA = 0.0
# 31 MB a table: more than a core's caches hold, and a fraction of a second to move.
NUM_ROWS = 60_000
MODEL = ModelConfig(embedding_dim=EMBEDDING_DIM, dense_arch=[32], over_arch=[32])
NUM_DENSE = 4
WINDOW_STEPS = 10
# All tables of one rank get so many more: of two ranks one then has four times its load, where two and a half times
# would be its share. With less the oracle's advantage comes near the noise of a machine that others use as well.
HOT_PERCENT = 300.0


@dataclass(frozen=True)
class Hot:
    """Where the load moves to.

    Attributes:
        tables: Which get more ids, all of one rank.
        rank: That rank.
        from_step: First step with them.
    """

    tables: tuple[str, ...]
    rank: int
    from_step: int

    @property
    def injection(self) -> InjectionConfig:
        """The fault that plants it."""
        return InjectionConfig(HOT_TABLE, from_step=self.from_step, percent=HOT_PERCENT, tables=list(self.tables))


def make_scenario(config: RunConfig, num_steps: int) -> RunConfig:
    """The job: everything but cluster, profile, planner, watch and re-sharding is the scenario's own.

    Tables stay whole, so that a step's arithmetic is the same under every plan: a table cut by columns would have one
    Adagrad sum a part.

    Raises:
        ConfigError: The configuration wishes for sharding types of its own.
    """
    if config.planner.constraints:
        raise ConfigError(["planner.constraints: bench drift keeps all tables whole; expected none"])
    config = deepcopy(config)
    tables = [
        SyntheticTableConfig(f"table_{number}", NUM_ROWS, EMBEDDING_DIM, pooling, ZIPF_ALPHA)
        for number, pooling in enumerate(POOLING_FACTORS)
    ]
    samples = num_steps * BATCH_SIZE * 64  # one pass over the data is never over; drawn as they are needed
    config.data = DataConfig(synthetic=SyntheticConfig(num_samples=samples, num_dense=NUM_DENSE, tables=tables))
    config.model = MODEL
    config.optimizer.sparse = SparseOptimizerConfig(kind="rowwise_adagrad", learning_rate=0.05)
    config.optimizer.dense = DenseOptimizerConfig(kind="adam")
    config.train = TrainConfig(
        batch_size=BATCH_SIZE, steps=num_steps, window_steps=WINDOW_STEPS, eval_batches=1, seed=config.train.seed
    )
    config.planner.constraints = [ConstraintSection(["*"], sharding_types=[ShardingType.TABLE_WISE.value])]
    return config


def choose_hot(prepared: Prepared, after_step: int) -> Hot:
    """The tables of the rank that has most ids."""
    ids = {table.name: table.pooling_factor for table in prepared.task.tables}
    of_rank: dict[int, list[str]] = {}
    for table in prepared.planned.plan.tables:
        of_rank.setdefault(table.ranks[0], []).append(table.name)
    rank = max(of_rank, key=lambda each: sum(ids[name] for name in of_rank[each]))
    return Hot(tuple(of_rank[rank]), rank, after_step + 1)


def declare_hot(config: RunConfig, prepared: Prepared, hot: Hot) -> RunConfig:
    """The configuration of one who knew from the start what the hot tables would look up."""
    config = deepcopy(config)
    factor = 1 + HOT_PERCENT / 100
    config.data.access.declared = [
        DeclaredAccessConfig([table.name], pooling_factor=factor * table.pooling_factor)
        for table in prepared.task.tables
        if table.name in hot.tables
    ]
    return config
