"""The `data` section of the configuration: which data, where, and how rows become features."""

from dataclasses import dataclass, field

from dlrm.options import option


@dataclass
class SyntheticTableConfig:
    """One synthetic table, listed by hand."""

    name: str = option("", "name of the table and of its feature")
    num_embeddings: int = option(1000, "rows", at_least=1)
    embedding_dim: int = option(32, "columns", at_least=1)
    pooling_factor: float = option(1.0, "mean ids per sample; counts vary unless it is 1")
    zipf_alpha: float = option(
        1.05, "skew: the k-th hottest row is drawn in proportion to k^-alpha; 0 = uniform", at_least=0.0
    )


@dataclass
class DriftConfig:
    """One change of the synthetic training data, from a step on."""

    step: int = option(0, "first training batch drawn the new way, counted over all epochs", at_least=0)
    tables: list[str] = option([], "names of the tables that change")
    pooling_factor: float | None = option(None, "their new mean ids per sample; none = as before")
    hot_rows_shift: float | None = option(
        None, "how far past row 0 the hot rows now stand, as a share of the rows, in [0, 1)"
    )


@dataclass
class SyntheticConfig:
    """Synthetic tables, drawn from declared ranges unless `tables` lists them, with labels of a planted teacher."""

    seed: int = option(0, "of tables and teacher; the run's seed draws the samples", at_least=0)
    num_samples: int = option(1_048_576, "training samples in an epoch, all ranks together", at_least=1)
    num_eval_samples: int = option(32_768, "held-out samples, all ranks together", at_least=1)
    num_dense: int = option(13, "dense columns", at_least=0)
    num_tables: int = option(8, "tables to draw; unused where `tables` lists them", at_least=1)
    min_rows: int = option(100, "fewest rows of a drawn table, log-uniform", at_least=1)
    max_rows: int = option(20_000, "most rows of a drawn table")
    embedding_dims: list[int] = option([32], "columns of a drawn table, one of these", at_least=1, min_items=1)
    min_pooling_factor: float = option(1.0, "lowest mean ids per sample of a drawn table")
    max_pooling_factor: float = option(8.0, "highest mean ids per sample of a drawn table")
    min_zipf_alpha: float = option(0.8, "lowest skew of a drawn table (uniform)", at_least=0.0)
    max_zipf_alpha: float = option(1.2, "highest skew of a drawn table")
    tables: list[SyntheticTableConfig] = option([], "the tables, instead of drawn ones")
    drift: list[DriftConfig] = option([], "changes of the training data at given steps")
    label_scale: float = option(2.0, "standard deviation of the teacher's logit: larger labels are less noisy")


@dataclass
class CriteoConfig:
    """Criteo logs as distributed: label, 13 integers, 26 hexadecimal categories, tab-separated, empty = missing."""

    vocabulary: str = option(
        "hashed",
        "hashed: ids are hashes of the category | frequency: frequent categories own a row",
        choices=("hashed", "frequency"),
    )
    num_embeddings: int = option(100_000, "rows of each of the 26 tables; with `frequency` the most", at_least=3)
    min_count: int = option(10, "frequency: occurrences from which a category owns a row", at_least=1)
    vocabulary_path: str | None = option(
        None, "frequency: .npz file of the vocabulary; built there when absent, read by every rank"
    )
    ragged: str = option(
        "refuse",
        "a row with too few columns: refuse = error with file and line | pad = what lacks is missing values",
        choices=("refuse", "pad"),
    )


@dataclass
class TableConfig:
    """Columns of Parquet or CSV files."""

    label: str = option("label", "column of the label, 0 or 1")
    label_at_least: float | None = option(None, "the label is 1 where the column reaches this value")
    dense: list[str] = option([], "numeric columns taken as they are; missing = 0")
    dense_log: list[str] = option([], "numeric columns taken as log(1 + max(x, 0)); missing = 0")
    categorical: dict[str, int] = option(
        {}, "categorical columns, lists included: name -> rows of its table (row 0 = missing)"
    )
    csv_lists: list[str] = option([], "categorical columns of text that hold lists, as in a CSV")
    csv_list_separator: str = option("|", "what stands between the values of such a list")


@dataclass
class DeclaredAccessConfig:
    """What is known of some tables; it wins over what the sample tells."""

    tables: list[str] = option([], "names of tables, or patterns such as user_*")
    pooling_factor: float | None = option(None, "mean ids per sample; null: as found", at_least=0.0)
    zipf_alpha: float | None = option(
        None,
        "skew: the k-th hottest row is looked up in proportion to k^-alpha, 0 = all alike; null: as found",
        at_least=0.0,
    )


@dataclass
class AccessConfig:
    """How often rows are looked up, counted before the plan on a sample of the training data, which is then kept."""

    num_samples: int = option(
        65_536,
        "training samples counted, one global batch at least; synthetic data needs none, its distribution is known; "
        "0: nothing is counted or known, ids are taken to be uniform",
        at_least=0,
    )
    declared: list[DeclaredAccessConfig] = option([], "tables of which more is known; a later entry wins")


@dataclass
class DataConfig:
    """Where samples come from and how they are split, shuffled and prefetched."""

    kind: str = option("synthetic", "synthetic | criteo | table", choices=("synthetic", "criteo", "table"))
    path: str | None = option(None, "a file or a folder of files; not for synthetic")
    eval_path: str | None = option(None, "files for evaluation alone, instead of held-out rows of `path`")
    holdout_every: int = option(
        10, "every n-th good row is held out for evaluation, never trained; unused with eval_path", at_least=2
    )
    shuffle_rows: int = option(
        0, "training rows permuted together; give sorted files a large window; 0 = order of the file", at_least=0
    )
    prefetch_batches: int = option(4, "batches made ahead in a background thread", at_least=1)
    max_bad_rows: int = option(100, "unreadable rows tolerated in one pass over the data", at_least=0)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig, metadata={"help": "kind = synthetic"})
    criteo: CriteoConfig = field(default_factory=CriteoConfig, metadata={"help": "kind = criteo"})
    table: TableConfig = field(default_factory=TableConfig, metadata={"help": "kind = table"})
    access: AccessConfig = field(default_factory=AccessConfig, metadata={"help": "how often rows are looked up"})
