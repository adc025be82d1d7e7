"""Criteo click logs: the reader of their rows, their schema, and the vocabulary where one is asked for."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlrm.data.bad_rows import BadRowLog
from dlrm.data.config import CriteoConfig, DataConfig
from dlrm.data.criteo_format import NUM_CATEGORIES, NUM_DENSE, CriteoBlock, read_criteo
from dlrm.data.criteo_vocabulary import CriteoEncoder, HashedEncoder, Vocabulary, build_vocabulary, load_vocabulary
from dlrm.data.file_source import holdout_mask
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

    def read(self, bad_rows: BadRowLog) -> Iterator[Rows]:
        """One pass over the good rows."""
        for block in read_criteo(self.files, self.pads_ragged, bad_rows):
            ids = self.encoder.encode(block)
            offsets = np.arange(len(ids) + 1)
            features = tuple(Ragged(np.ascontiguousarray(ids[:, i]), offsets) for i in range(NUM_CATEGORIES))
            yield Rows(block.dense, block.labels, features)


def open_criteo_reader(config: DataConfig, path: str | None) -> CriteoReader:
    """The reader of the files at `path`; with a vocabulary, of the one that `describe_criteo` built."""
    return CriteoReader(list_files(path), config.criteo.ragged == "pad", _encoder(config.criteo))


def describe_criteo(config: DataConfig) -> DataSchema:
    """The schema; builds and saves the vocabulary where `criteo.vocabulary` is `frequency` and its file is absent.

    Raises:
        DataError: what reading the files, or loading the vocabulary, raises.
    """
    files = list_files(config.path)
    if config.criteo.vocabulary == "frequency" and not _vocabulary_path(config.criteo).exists():
        _build(config, files).save(_vocabulary_path(config.criteo))
    rows = _encoder(config.criteo).num_embeddings
    features = tuple(FeatureSpec(name, num) for name, num in zip(FEATURE_NAMES, rows, strict=True))
    return DataSchema(DENSE_NAMES, features)


def _build(config: DataConfig, files: list[Path]) -> Vocabulary:
    """The vocabulary of the rows trained on: what is held out stays unseen here too."""

    def training_blocks() -> Iterator[CriteoBlock]:
        first_number = 0
        for block in read_criteo(files, config.criteo.ragged == "pad", BadRowLog(config.max_bad_rows)):
            num_rows = len(block.labels)
            held_out = holdout_mask(first_number, num_rows, config.holdout_every) & (config.eval_path is None)
            first_number += num_rows
            kept = ~held_out
            yield CriteoBlock(block.labels[kept], block.dense[kept], block.categories[kept], block.is_missing[kept])

    return build_vocabulary(training_blocks(), _settings(config.criteo))


def _encoder(config: CriteoConfig) -> CriteoEncoder:
    """The encoder that the configuration names."""
    if config.vocabulary == "hashed":
        return HashedEncoder(config.num_embeddings)
    return load_vocabulary(_vocabulary_path(config), _settings(config))


def _settings(config: CriteoConfig) -> dict[str, int]:
    """What a vocabulary must have been built with."""
    return {"min_count": config.min_count, "num_embeddings": config.num_embeddings}


def _vocabulary_path(config: CriteoConfig) -> Path:
    """The vocabulary's file."""
    if config.vocabulary_path is None:
        raise DataError(
            "data.criteo.vocabulary=frequency needs data.criteo.vocabulary_path, a .npz file to keep it in.", "config"
        )
    return Path(config.vocabulary_path)
