"""What a vocabulary of Criteo's categories was counted on, by which it is known to fit the data or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dlrm.data.config import DataConfig

# Files that a message names; of more it tells the number.
NUM_NAMED_FILES = 5


@dataclass(frozen=True)
class VocabularyOrigin:
    """The rows that were counted, and the rules.

    Attributes:
        min_count: occurrences from which a category owns a row.
        num_embeddings: the most rows of a table.
        holdout_every: every n-th good row was held out and left uncounted; None = all rows were counted.
        ragged: what was done with rows of too few columns.
        files: bytes of each data file, by its name below `data.path`.
    """

    min_count: int
    num_embeddings: int
    holdout_every: int | None
    ragged: str
    files: dict[str, int]

    @staticmethod
    def of(config: DataConfig, files: list[Path]) -> VocabularyOrigin:
        """The origin that a vocabulary built now, on these files, would have."""
        return VocabularyOrigin(
            min_count=config.criteo.min_count,
            num_embeddings=config.criteo.num_embeddings,
            holdout_every=config.holdout_every if config.eval_path is None else None,
            ragged=config.criteo.ragged,
            files={file.name: file.stat().st_size for file in files},
        )

    def differences(self, now: VocabularyOrigin) -> list[str]:
        """What was otherwise than now, in words; empty where nothing was."""
        found = []
        for name in ("min_count", "num_embeddings", "ragged"):
            old, new = getattr(self, name), getattr(now, name)
            if old != new:
                found.append(f"{name} = {old}, now {new}")
        if self.holdout_every != now.holdout_every:
            found.append(f"{_holdout(self.holdout_every)}, now {_holdout(now.holdout_every)}")
        files = list(_file_differences(self.files, now.files))
        if len(files) > NUM_NAMED_FILES:
            files[NUM_NAMED_FILES:] = [f"{len(files) - NUM_NAMED_FILES} more files that differ"]
        return found + files


def _holdout(holdout_every: int | None) -> str:
    """How rows were held out."""
    return "nothing held out (data.eval_path)" if holdout_every is None else f"holdout_every = {holdout_every}"


def _file_differences(old: dict[str, int], new: dict[str, int]) -> Iterator[str]:
    """Files that came, went or changed their size."""
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            yield f"{name} ({old[name]:,} bytes), now absent"
        elif name not in old:
            yield f"no {name}, now there ({new[name]:,} bytes)"
        elif old[name] != new[name]:
            yield f"{name} of {old[name]:,} bytes, now {new[name]:,} bytes"
