"""What a data set offers a model: its dense columns and its sparse features."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FeatureSpec:
    """One sparse feature, which looks up rows of one table.

    Attributes:
        name: the key in the batch's KeyedJaggedTensor.
        num_embeddings: ids lie in `[0, num_embeddings)`.
        pooling_factor: mean ids per sample, declared or measured at the head of the data.
        embedding_dim: columns of its table where the data declares them (synthetic), else None: the model decides.
    """

    name: str
    num_embeddings: int
    pooling_factor: float = 1.0
    embedding_dim: int | None = None


@dataclass(frozen=True)
class DataSchema:
    """The columns of every batch, in order.

    Attributes:
        dense_names: names of the columns of `Batch.dense_features` [B, D].
        features: the keys of `Batch.sparse_features`, in order.
    """

    dense_names: tuple[str, ...]
    features: tuple[FeatureSpec, ...]

    @property
    def num_dense(self) -> int:
        """D, the number of dense columns."""
        return len(self.dense_names)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The sparse features' names, in the order of the batch's keys."""
        return tuple(feature.name for feature in self.features)
