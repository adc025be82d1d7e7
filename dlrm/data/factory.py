"""The two doors to data: its schema before the plan, and a rank's stream of batches."""

from collections.abc import Iterator
from typing import Any

from dlrm.data.check import check_config
from dlrm.data.config import DataConfig
from dlrm.data.criteo import describe_criteo, open_criteo_reader
from dlrm.data.file_source import FileSource, RankShare, RowReader, Split
from dlrm.data.rows import Rows
from dlrm.data.schema import DataSchema
from dlrm.data.stream import BatchSource, BatchStream
from dlrm.data.synthetic import SyntheticSource, describe_synthetic, find_synthetic_shortage
from dlrm.data.table import describe_table, find_table_shortage, open_table_reader
from dlrm.errors import DataError


def open_schema(config: DataConfig) -> DataSchema:
    """The schema of the data; call it once, on the driver, before streams are opened.

    The files of `eval_path` are looked at too, so that a wrong one does not come to light after training only. Cheap
    (heads and footers of files are read), but for a Criteo frequency vocabulary that does not exist yet: that takes
    one pass over the data and writes `criteo.vocabulary_path`.

    Raises:
        DataError: the configuration is wrong, or the data is not as declared.
    """
    check_config(config)
    if config.kind == "synthetic":
        return describe_synthetic(config.synthetic)
    return describe_criteo(config) if config.kind == "criteo" else describe_table(config)


def check_size(config: DataConfig, batch_size: int, world_size: int) -> None:
    """Raise where the data is known to be too little to train on or to evaluate with, without a pass over it.

    Known are the sample counts of synthetic data, and the rows of Parquet files, of which none is taken to be bad.
    Files of text are not counted: a stream that ends too early says so.

    Args:
        config: the data, which `open_schema` accepts.
        batch_size: samples per rank.
        world_size: ranks.

    Raises:
        DataError: `too_short`, with one line for each split that is.
    """
    share = RankShare(batch_size, 0, world_size)
    shortages = [_find_shortage(config, split, share) for split in Split]
    if any(shortages):
        raise DataError("\n".join(shortage for shortage in shortages if shortage), "too_short")


def open_stream(
    config: DataConfig,
    schema: DataSchema,
    split: str,
    batch_size: int,
    rank: int,
    world_size: int,
    seed: int,
    num_epochs: int | None = None,
    is_pinned: bool = False,
) -> BatchStream:
    """One rank's batches; every rank gets the same number of them.

    Training drops the rows at the end of an epoch that fill no global batch. Evaluation on files keeps them, in one
    smaller batch that is equally large on every rank.

    Args:
        config: the data.
        schema: what `open_schema` gave for it.
        split: "train" or "eval".
        batch_size: samples per rank.
        rank: of `world_size`.
        world_size: ranks.
        seed: of shuffling and of synthetic samples; the same on every rank.
        num_epochs: epochs after which the stream ends; None = endless.
        is_pinned: put batches into page-locked memory, for a GPU.

    Raises:
        DataError: the configuration is wrong, the files are absent, or the schema is not that of the data.
    """
    check_config(config)
    share = RankShare(batch_size, rank, world_size)
    source = _open_source(config, schema, Split(split), share, seed)
    return BatchStream(source, config.prefetch_batches, num_epochs, is_pinned)


def read_training_rows(config: DataConfig, schema: DataSchema, batch_size: int, seed: int) -> Iterator[Rows]:
    """The rows of the first epoch's training batches, as one rank alone gets them; files only. Loads no torch.

    Raises:
        DataError: what reading raises, `too_short` where there is no batch.
    """
    check_config(config)
    return _open_files(config, schema, Split.TRAIN, RankShare(batch_size, rank=0, world_size=1), seed).read_rows(0, 0)


def _find_shortage(config: DataConfig, split: Split, share: RankShare) -> str | None:
    """What to say where a split is known to have no batch."""
    if config.kind == "synthetic":
        return find_synthetic_shortage(config.synthetic, split, share)
    return find_table_shortage(config, split, share) if config.kind == "table" else None


def _open_source(config: DataConfig, schema: DataSchema, split: Split, share: RankShare, seed: int) -> BatchSource:
    """The source of the configured kind."""
    if config.kind == "synthetic":
        if describe_synthetic(config.synthetic) != schema:
            raise DataError("The schema is not that of data.synthetic: open it with the same configuration.", "config")
        return SyntheticSource(config.synthetic, split, share, seed)
    return _open_files(config, schema, split, share, seed)


def _open_files(config: DataConfig, schema: DataSchema, split: Split, share: RankShare, seed: int) -> FileSource[Any]:
    """The source of a kind that reads files."""
    uses_eval_path = split is Split.EVAL and config.eval_path is not None
    return FileSource(
        _open_reader(config, config.eval_path if uses_eval_path else config.path),
        schema.feature_names,
        split,
        share,
        holdout_every=config.holdout_every if config.eval_path is None else None,
        shuffle_rows=config.shuffle_rows,
        max_bad_rows=config.max_bad_rows,
        seed=seed,
    )


def _open_reader(config: DataConfig, path: str | None) -> RowReader[Any]:
    """The reader of the configured kind of files."""
    return open_criteo_reader(config, path) if config.kind == "criteo" else open_table_reader(config, path)
