"""Embedding tables and the training job that looks rows up in them."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from planner.access import AccessStatistics
from planner.errors import PlanningError

DIM_MULTIPLE = 4
"""Columns of a table and of a column shard come in multiples of this.

Source: FBGEMM reads rows as vectors of four elements (`SplitTableBatchedEmbeddingBagsCodegen`: D % 4 == 0).
"""


class OptimizerKind(StrEnum):
    """Optimizers that FBGEMM fuses into the backward pass of a lookup."""

    SGD = "sgd"
    ROWWISE_ADAGRAD = "rowwise_adagrad"
    ADAM = "adam"


class MemoryCount(StrEnum):
    """What counts against the memory of a device."""

    FULL = "full"
    """Weights, optimizer state, gradients, inputs and outputs, and what every rank holds: what training takes."""

    WEIGHTS = "weights"
    """Weights of the tables alone. Source: NeuroShard (arXiv 2305.01868), `utils.table_size`, and its predecessors."""


@dataclass(frozen=True)
class TableSpec:
    """One embedding matrix and the sparse features that read it.

    Attributes:
        name: Unique within the model.
        num_embeddings: Rows.
        embedding_dim: Columns, a multiple of `DIM_MULTIPLE`.
        feature_names: Sparse input keys that look up in this table.
        pooling_factor: Mean ids per sample and feature.
        access: How its rows are looked up; None where that is not known: then ids are taken as uniform.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    feature_names: tuple[str, ...]
    pooling_factor: float = 1.0
    access: AccessStatistics | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raises PlanningError listing everything that is wrong with the table."""
        found = []
        if self.num_embeddings < 1:
            found.append(f"num_embeddings is {self.num_embeddings}, expected 1 or more")
        if self.embedding_dim < 1 or self.embedding_dim % DIM_MULTIPLE:
            found.append(f"embedding_dim is {self.embedding_dim}, expected a multiple of {DIM_MULTIPLE} (FBGEMM)")
        if not self.feature_names:
            found.append("no feature reads it, expected one name or more in feature_names")
        if not 0.0 <= self.pooling_factor < float("inf"):
            found.append(f"pooling_factor is {self.pooling_factor}, expected a finite number >= 0")
        if found:
            raise PlanningError(f"table {self.name!r}: " + "; ".join(found), reason="workload")


@dataclass(frozen=True)
class Workload:
    """What one training step does, as far as a placement cares.

    Attributes:
        tables: All embedding tables, names unique.
        batch_size: Samples per rank and step.
        optimizer: The fused optimizer of the tables.
        weight_bytes: Bytes of one weight (4: fp32).
        batches_in_flight: Batches whose inputs lie on a device at once (pipeline stages).
        dense_parameters: Parameters of the dense part, replicated on every rank.
        dense_flops_per_sample: Floating point operations of one sample's dense forward pass.
        dense_layers: Operations of the dense forward pass, a linear layer with its activation counting as one.
        dense_activations: Floats that one sample's dense forward pass reads and writes between operations.
        memory: What counts against a device's memory; jobs that train count everything.
    """

    tables: tuple[TableSpec, ...]
    batch_size: int
    optimizer: OptimizerKind
    weight_bytes: int = 4
    batches_in_flight: int = 1
    dense_parameters: int = 0
    dense_flops_per_sample: float = 0.0
    dense_layers: int = 0
    dense_activations: float = 0.0
    memory: MemoryCount = MemoryCount.FULL

    def __post_init__(self) -> None:
        """Raises PlanningError listing everything that is wrong with the workload."""
        found = [
            f"table name {name!r} is used {count} times, expected once"
            for name, count in Counter(table.name for table in self.tables).items()
            if count > 1
        ]
        found += [
            f"{field} is {getattr(self, field)}, expected 1 or more"
            for field in ("batch_size", "weight_bytes", "batches_in_flight")
            if getattr(self, field) < 1
        ]
        found += [
            f"{field} is {getattr(self, field)}, expected 0 or more"
            for field in ("dense_parameters", "dense_flops_per_sample", "dense_layers", "dense_activations")
            if getattr(self, field) < 0
        ]
        if not self.tables:
            found.append("there are no tables, expected at least one")
        if found:
            raise PlanningError("workload: " + "; ".join(found), reason="workload")
