"""The `data` section of the configuration: which data, where, and how rows become features."""

from dataclasses import dataclass, field


@dataclass
class SyntheticTableConfig:
    """One synthetic table, listed by hand."""

    name: str = field(default="", metadata={"help": "name of the table and of its feature"})
    num_embeddings: int = field(default=1000, metadata={"help": "rows"})
    embedding_dim: int = field(default=32, metadata={"help": "columns"})
    pooling_factor: float = field(default=1.0, metadata={"help": "mean ids per sample; counts vary unless it is 1"})
    zipf_alpha: float = field(
        default=1.05, metadata={"help": "skew: the k-th hottest row is drawn in proportion to k^-alpha; 0 = uniform"}
    )


@dataclass
class DriftConfig:
    """One change of the synthetic training data, from a step on."""

    step: int = field(default=0, metadata={"help": "first training batch drawn the new way, counted over all epochs"})
    tables: list[str] = field(default_factory=list, metadata={"help": "names of the tables that change"})
    pooling_factor: float | None = field(
        default=None, metadata={"help": "their new mean ids per sample; none = as before"}
    )
    hot_rows_shift: float | None = field(
        default=None, metadata={"help": "how far past row 0 the hot rows now stand, as a share of the rows, in [0, 1)"}
    )


@dataclass
class SyntheticConfig:
    """Synthetic tables, drawn from declared ranges unless `tables` lists them, with labels of a planted teacher."""

    seed: int = field(default=0, metadata={"help": "of tables and teacher; the run's seed draws the samples"})
    num_samples: int = field(default=1_048_576, metadata={"help": "training samples in an epoch, all ranks together"})
    num_eval_samples: int = field(default=32_768, metadata={"help": "held-out samples, all ranks together"})
    num_dense: int = field(default=13, metadata={"help": "dense columns"})
    num_tables: int = field(default=8, metadata={"help": "tables to draw; unused where `tables` lists them"})
    min_rows: int = field(default=100, metadata={"help": "fewest rows of a drawn table, log-uniform"})
    max_rows: int = field(default=20_000, metadata={"help": "most rows of a drawn table"})
    embedding_dims: list[int] = field(
        default_factory=lambda: [32], metadata={"help": "columns of a drawn table, one of these"}
    )
    min_pooling_factor: float = field(default=1.0, metadata={"help": "lowest mean ids per sample of a drawn table"})
    max_pooling_factor: float = field(default=8.0, metadata={"help": "highest mean ids per sample of a drawn table"})
    min_zipf_alpha: float = field(default=0.8, metadata={"help": "lowest skew of a drawn table (uniform)"})
    max_zipf_alpha: float = field(default=1.2, metadata={"help": "highest skew of a drawn table"})
    tables: list[SyntheticTableConfig] = field(
        default_factory=list, metadata={"help": "the tables, instead of drawn ones"}
    )
    drift: list[DriftConfig] = field(
        default_factory=list, metadata={"help": "changes of the training data at given steps"}
    )
    label_scale: float = field(
        default=2.0, metadata={"help": "standard deviation of the teacher's logit: larger labels are less noisy"}
    )


@dataclass
class CriteoConfig:
    """Criteo logs as distributed: label, 13 integers, 26 hexadecimal categories, tab-separated, empty = missing."""

    vocabulary: str = field(
        default="hashed",
        metadata={"help": "hashed: ids are hashes of the category | frequency: frequent categories own a row"},
    )
    num_embeddings: int = field(
        default=100_000, metadata={"help": "rows of each of the 26 tables; with `frequency` the most"}
    )
    min_count: int = field(default=10, metadata={"help": "frequency: occurrences from which a category owns a row"})
    vocabulary_path: str | None = field(
        default=None,
        metadata={"help": "frequency: .npz file of the vocabulary; built there when absent, read by every rank"},
    )
    ragged: str = field(
        default="refuse",
        metadata={
            "help": "a row with too few columns: refuse = error with file and line | pad = what lacks is missing values"
        },
    )


@dataclass
class TableConfig:
    """Columns of Parquet or CSV files."""

    label: str = field(default="label", metadata={"help": "column of the label, 0 or 1"})
    label_at_least: float | None = field(
        default=None, metadata={"help": "the label is 1 where the column reaches this value"}
    )
    dense: list[str] = field(default_factory=list, metadata={"help": "numeric columns taken as they are; missing = 0"})
    dense_log: list[str] = field(
        default_factory=list, metadata={"help": "numeric columns taken as log(1 + max(x, 0)); missing = 0"}
    )
    categorical: dict[str, int] = field(
        default_factory=dict,
        metadata={"help": "categorical columns, lists included: name -> rows of its table (row 0 = missing)"},
    )
    csv_lists: list[str] = field(
        default_factory=list, metadata={"help": "categorical columns of text that hold lists, as in a CSV"}
    )
    csv_list_separator: str = field(default="|", metadata={"help": "what stands between the values of such a list"})


@dataclass
class DataConfig:
    """Where samples come from and how they are split, shuffled and prefetched."""

    kind: str = field(default="synthetic", metadata={"help": "synthetic | criteo | table"})
    path: str | None = field(default=None, metadata={"help": "a file or a folder of files; not for synthetic"})
    eval_path: str | None = field(
        default=None, metadata={"help": "files for evaluation alone, instead of held-out rows of `path`"}
    )
    holdout_every: int = field(
        default=10,
        metadata={"help": "every n-th good row is held out for evaluation, never trained; unused with eval_path"},
    )
    shuffle_rows: int = field(
        default=0,
        metadata={"help": "training rows permuted together; give sorted files a large window; 0 = order of the file"},
    )
    prefetch_batches: int = field(default=4, metadata={"help": "batches made ahead in a background thread"})
    max_bad_rows: int = field(default=100, metadata={"help": "unreadable rows tolerated in one pass over the data"})
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig, metadata={"help": "kind = synthetic"})
    criteo: CriteoConfig = field(default_factory=CriteoConfig, metadata={"help": "kind = criteo"})
    table: TableConfig = field(default_factory=TableConfig, metadata={"help": "kind = table"})
