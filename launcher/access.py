"""Access statistics for a plan: known, or counted once and kept beside the runs."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dlrm.data.access import MeasuredAccess, measure_access
from dlrm.data.files import list_files
from dlrm.data.known_access import apply_declared, check_declared, describe_synthetic_access
from dlrm.data.schema import DataSchema
from launcher.schema import RunConfig
from planner.access import AccessStatistics
from planner.errors import PlanningError

# Changes whenever statistics of an earlier version would be read or understood wrongly.
VERSION = 1
# Keys of `data` that change nothing of what is read, or stand in the digest in another way.
FREE_KEYS = ("path", "eval_path", "prefetch_batches", "max_bad_rows", "synthetic", "access")

UNIFORM = "ids are taken to be uniform over the rows of a table: data.access.num_samples is 0"


@dataclass(frozen=True)
class KnownAccess:
    """Statistics by table, none where nothing is known, and what a user should know about them."""

    statistics: dict[str, AccessStatistics]
    notes: tuple[str, ...]


def find_access(config: RunConfig, schema: DataSchema, world_size: int) -> KnownAccess:
    """The access statistics of the data for the global batch of so many ranks, with what the user declared.

    Synthetic data is not read, and torch is not loaded for any.

    Raises:
        DataError: a declaration is wrong, or the data cannot be read.
    """
    access, batch_size = config.data.access, config.train.batch_size
    check_declared(access, schema)
    if not access.num_samples:
        found = KnownAccess({}, (UNIFORM,))
    elif config.data.kind == "synthetic":
        found = KnownAccess(describe_synthetic_access(config.data.synthetic, batch_size * world_size), ())
    else:
        found = _read_or_measure(config, schema, world_size)
    statistics = apply_declared(access, schema, found.statistics, batch_size * world_size)
    return KnownAccess(statistics, found.notes)


def _read_or_measure(config: RunConfig, schema: DataSchema, world_size: int) -> KnownAccess:
    """Statistics of an earlier command where they fit, else counted now and kept."""
    path = _cache_path(config, schema, world_size)
    measured = _read(path)
    if measured is not None:
        return KnownAccess(measured.statistics, (f"{_words(measured)}, cached",))
    start_s = time.monotonic()
    measured = measure_access(config.data, schema, config.train.batch_size, world_size, config.train.seed)
    seconds = time.monotonic() - start_s
    _write(path, measured)
    return KnownAccess(measured.statistics, (f"{_words(measured)}, counted in {seconds:.1f} s",))


def _words(measured: MeasuredAccess) -> str:
    batches = "batch" if measured.num_batches == 1 else "batches"
    return f"access statistics of {measured.num_batches} {batches} of {measured.batch_samples:,} samples"


def _cache_path(config: RunConfig, schema: DataSchema, world_size: int) -> Path:
    """A file beside the runs, named after everything that the statistics depend on."""
    data, train = config.data, config.train
    settings = {key: value for key, value in asdict(data).items() if key not in FREE_KEYS}
    depends = [VERSION, settings, data.access.num_samples, train.batch_size, world_size, train.seed, asdict(schema)]
    depends += [str(data.path), data.eval_path is None, list(_file_facts(config))]
    digest = hashlib.blake2b(json.dumps(depends).encode(), digest_size=6).hexdigest()
    return Path(config.run.dir) / "access" / f"{Path(str(data.path)).stem}-{digest}.json"


def _file_facts(config: RunConfig) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of change of every file that is read, the vocabulary included."""
    vocabulary = config.data.criteo.vocabulary_path
    files = list_files(config.data.path) + ([Path(vocabulary)] if vocabulary and Path(vocabulary).exists() else [])
    for file in files:
        facts = file.stat()
        yield file.name, facts.st_size, facts.st_mtime_ns


def _write(path: Path, measured: MeasuredAccess) -> None:
    """Write beside and rename, so that no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    statistics = {name: each.to_dict() for name, each in measured.statistics.items()}
    values = {"num_batches": measured.num_batches, "batch_samples": measured.batch_samples, "tables": statistics}
    beside.write_text(json.dumps(values))
    os.replace(beside, path)


def _read(path: Path) -> MeasuredAccess | None:
    """What `_write` wrote; None where there is no such file, or another: then it is written anew."""
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        statistics = {name: AccessStatistics.from_dict(each) for name, each in values["tables"].items()}
        return MeasuredAccess(statistics, values["num_batches"], values["batch_samples"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, PlanningError):
        return None
