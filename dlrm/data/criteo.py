"""Criteo click logs: the reader of their rows, their schema, and the vocabulary where one is asked for."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlrm.data.bad_rows import BadRowLog
from dlrm.data.config import CriteoConfig, DataConfig
from dlrm.data.criteo_format import NUM_CATEGORIES, NUM_DENSE, CriteoBlock, read_criteo
from dlrm.data.criteo_origin import VocabularyOrigin
from dlrm.data.criteo_vocabulary import CriteoEncoder, HashedEncoder, Vocabulary, build_vocabulary, load_vocabulary
from dlrm.data.file_source import holdout_mask, read_head
from dlrm.data.files import list_files
from dlrm.data.rows import Ragged, Rows
from dlrm.data.schema import DataSchema, FeatureSpec
from dlrm.errors import DataError

DENSE_NAMES = tuple(f"int_{i}" for i in range(NUM_DENSE))
FEATURE_NAMES = tuple(f"cat_{i}" for i in range(NUM_CATEGORIES))


@dataclass(frozen=True)
class CriteoReader:
    """Reads files of Criteo rows with an encoder of their categories."""

    files: list[Path]
    pads_ragged: bool
    encoder: CriteoEncoder

    def read(self, bad_rows: BadRowLog) -> Iterator[CriteoBlock]:
        """One pass over the good rows."""
        return read_criteo(self.files, self.pads_ragged, bad_rows)

    def encode(self, rows: CriteoBlock) -> Rows:
        """The rows with ids, one for every category."""
        lengths = np.ones(len(rows), np.int64)
        ids = np.ascontiguousarray(self.encoder.encode(rows).T)
        return Rows(rows.dense, rows.labels, tuple(Ragged(column, lengths) for column in ids))


def open_criteo_reader(config: DataConfig, path: str | None) -> CriteoReader:
    """The reader of the files at `path`; with a vocabulary, of the one that `describe_criteo` built."""
    return CriteoReader(list_files(path), config.criteo.ragged == "pad", _encoder(config))


def describe_criteo(config: DataConfig) -> DataSchema:
    """The schema; builds and saves the vocabulary where `criteo.vocabulary` is `frequency` and its file is absent.

    Raises:
        DataError: what reading the heads of the files, those of `eval_path` included, or loading the vocabulary raises.
    """
    for path in (config.eval_path, config.path):
        if path is not None:
            _check_head(config, path)
    if config.criteo.vocabulary == "frequency" and not _vocabulary_path(config.criteo).exists():
        _build(config).save(_vocabulary_path(config.criteo))
    rows = _encoder(config).num_embeddings
    features = tuple(FeatureSpec(name, num) for name, num in zip(FEATURE_NAMES, rows, strict=True))
    return DataSchema(DENSE_NAMES, features)


def _check_head(config: DataConfig, path: str) -> None:
    """Raise where there are no files, or the first of them does not begin with Criteo rows."""
    # What the rows encode to does not matter, and the vocabulary may not exist yet.
    reader = CriteoReader(list_files(path), config.criteo.ragged == "pad", HashedEncoder(config.criteo.num_embeddings))
    read_head(reader, config.max_bad_rows, path)


def _build(config: DataConfig) -> Vocabulary:
    """The vocabulary of the rows trained on: what is held out stays unseen here too."""
    files = list_files(config.path)

    def training_blocks() -> Iterator[CriteoBlock]:
        first_number = 0
        for block in read_criteo(files, config.criteo.ragged == "pad", BadRowLog(config.max_bad_rows)):
            held_out = holdout_mask(first_number, len(block), config.holdout_every) & (config.eval_path is None)
            first_number += len(block)
            yield block.take(np.flatnonzero(~held_out))

    return build_vocabulary(training_blocks(), VocabularyOrigin.of(config, files))


def _encoder(config: DataConfig) -> CriteoEncoder:
    """The encoder that the configuration names."""
    if config.criteo.vocabulary == "hashed":
        return HashedEncoder(config.criteo.num_embeddings)
    return load_vocabulary(_vocabulary_path(config.criteo), VocabularyOrigin.of(config, list_files(config.path)))


def _vocabulary_path(config: CriteoConfig) -> Path:
    """The vocabulary's file."""
    if config.vocabulary_path is None:
        raise DataError(
            "data.criteo.vocabulary=frequency needs data.criteo.vocabulary_path, a .npz file to keep it in.", "config"
        )
    return Path(config.vocabulary_path)
