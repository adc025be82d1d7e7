"""What every rank measured in every step, kept in the run folder as Apache Arrow IPC streams (zstd).

`telemetry/steps-000.arrow` has a row a step and rank, the ranks of a step in order:

| column | type | |
|---|---|---|
| `step`, `rank` | int64, int32 | steps count from 1 |
| `step_ms` | float32 | the step |
| `data_wait_ms` | float32 | waiting for the batch |
| `input_dist_ms`, `output_dist_forward_ms`, `output_dist_backward_ms`, `all_reduce_ms` | float32 | collectives; \
waiting for the last rank is a part of them |
| `lookup_forward_ms`, `lookup_backward_ms` | float32 | embedding kernels, fused updates |
| `lookup_forward_ms/TYPE`, `lookup_backward_ms/TYPE` | float32 | their parts by sharding type, if several |
| `dense_forward_ms`, `dense_backward_ms`, `optimizer_ms`, `other_ms` | float32 | the remaining phases of a step |
| `ids` | int64 | ids that the rank looked up |
| `input_dist_bytes`, `output_dist_forward_bytes`, ... | int64 | the rank's input of each collective |
| `peak_bytes` | int64 | most memory of the rank so far |

`telemetry/shards-000.arrow` has a row a window, rank and table: what was looked up in the last step of the window.

| column | type | |
|---|---|---|
| `step`, `rank` | int64, int32 | |
| `table`, `sharding_type` | dictionary of strings | |
| `ids` | int64 | ids that the rank looked up in the table |
| `distinct_ids` | int64, null where not counted | different ones among them |

With another plan, or other columns or shards, the next number begins. A batch is what one poll delivered; the system
has it at once, so a killed run keeps all of them. Rows that no poll fetched in time are missing steps. To read:

    import pyarrow as pa
    with pa.ipc.open_stream("runs/NAME/telemetry/steps-000.arrow") as stream:
        steps = stream.read_all().to_pandas()
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.telemetry import Block
from launcher.priced_plan import PricedPlan
from launcher.run_dir import RunDir
from launcher.views.base import Observer

# A batch up to this size is one write to the file; one poll of 256 ranks at 30 steps a second takes 0.4 MB.
WRITE_BYTES = 1 << 20
# Batches carry it beside their rows: older rows that were overwritten before this poll.
NUM_DROPPED = b"num_dropped"


class TelemetryFile(Observer):
    """Writes every delivered block of the series `steps` and `shards` into a run's folder."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._streams: dict[str, _Stream] = {}

    def show_block(self, block: Block) -> None:
        """Append the block; it is in the file when this returns."""
        if not len(block.steps):
            return
        kind = _kind_of(block)
        stream = self._streams.get(block.name)
        if stream is None or stream.kind != kind:
            if stream is not None:
                stream.close()
            stream = self._streams[block.name] = _Stream(self._run.new_telemetry(block.name), kind)
        stream.write(block)

    def show_plan(self, planned: PricedPlan, step: int) -> None:
        """Close the files: rows under another plan go into the next ones."""
        self.close()

    def close(self) -> None:
        """Close the files; they can be read without it."""
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()


def read_steps(run: RunDir) -> list[Block]:
    """The measured steps, a block a file: rows [N, W, C], `labels["columns"]` as in the file, times in ms."""
    return _read(run, "steps")


def read_shards(run: RunDir) -> list[Block]:
    """What was looked up in sampled steps, a block a file: rows [N, S, 2] of `ids` and `distinct_ids` (NaN unknown).

    `labels["ranks"]`, `labels["tables"]` and `labels["sharding_types"]` say which S shards these are.
    """
    return _read(run, "shards")


def iterate_blocks(path: Path) -> Iterator[Block]:
    """The blocks of one file as they were delivered; what a kill cut short at its end is left out."""
    decode = _SERIES[path.name.split("-")[0]].decode
    with pa.OSFile(str(path)) as file:
        for batch, metadata in _batches(file, path):
            block = decode(batch)
            yield replace(block, num_dropped=int(metadata[NUM_DROPPED])) if metadata else block


class _Stream:
    """One file that is being written."""

    def __init__(self, path: Path, kind: str) -> None:
        self.kind = kind
        self._file = io.BufferedWriter(io.FileIO(path, "x"), WRITE_BYTES)
        self._writer: Any = None

    def write(self, block: Block) -> None:
        columns = _SERIES[block.name].encode(block)
        batch = pa.record_batch(list(columns.values()), names=list(columns))
        if self._writer is None:
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            self._writer = pa.ipc.new_stream(self._file, batch.schema, options=options)
        metadata = {NUM_DROPPED: str(block.num_dropped)} if block.num_dropped else None
        self._writer.write_batch(batch, custom_metadata=metadata)
        self._file.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._file.close()


def _kind_of(block: Block) -> str:
    """What blocks of one file have in common."""
    return json.dumps([dict(block.labels), block.rows.shape[1:]], sort_keys=True)


def _batches(file: Any, path: Path) -> Iterator[tuple[Any, Any]]:
    """Batches with their metadata, up to the end of the stream or of what is there of it.

    Raises OSError where bytes follow that cannot be read: a kill leaves none behind the cut, so the file is damaged.
    """
    try:
        reader = pa.ipc.open_stream(file)
        while True:
            yield reader.read_next_batch_with_custom_metadata()
    except StopIteration:
        return
    except (EOFError, pa.ArrowInvalid, OSError) as error:
        if file.tell() < file.size():
            raise OSError(f"{path} is damaged near byte {file.tell()} of {file.size()}: {error}") from error


def _read(run: RunDir, name: str) -> list[Block]:
    found = [list(iterate_blocks(path)) for path in run.telemetry_files(name)]
    return [_join(blocks) for blocks in found if blocks]


def _join(blocks: list[Block]) -> Block:
    return Block(
        blocks[0].name,
        blocks[0].labels,
        np.concatenate([block.steps for block in blocks]),
        np.concatenate([block.rows for block in blocks]),
        sum(block.num_dropped for block in blocks),
    )


def _encode_steps(block: Block) -> dict[str, Any]:
    num_steps, num_ranks, _ = block.rows.shape
    ranks = np.arange(num_ranks, dtype=np.int32)
    columns = {"step": np.repeat(block.steps, num_ranks), "rank": np.tile(ranks, num_steps)}
    values = {name: _column(name, block.rows[..., i]) for i, name in enumerate(block.labels["columns"])}
    return columns | values


def _decode_steps(batch: Any) -> Block:
    steps, names = batch.column("step").to_numpy(), batch.schema.names[2:]
    num_ranks = int(batch.column("rank")[-1].as_py()) + 1
    values = np.stack([_numbers(batch.column(name)) for name in names], axis=-1)
    return Block("steps", {"columns": names}, steps[::num_ranks], values.reshape(-1, num_ranks, len(names)))


def _encode_shards(block: Block) -> dict[str, Any]:
    num_steps, num_shards, _ = block.rows.shape
    labels = block.labels
    return {
        "step": np.repeat(block.steps, num_shards),
        "rank": np.tile(np.asarray(labels["ranks"], dtype=np.int32), num_steps),
        "table": _words(labels["tables"], num_steps),
        "sharding_type": _words(labels["sharding_types"], num_steps),
        **{name: _column(name, block.rows[..., i]) for i, name in enumerate(labels["columns"])},
    }


def _decode_shards(batch: Any) -> Block:
    steps, names = batch.column("step").to_numpy(), batch.schema.names[4:]
    num_shards = int(np.count_nonzero(steps == steps[0]))
    labels = {
        "columns": names,
        "ranks": batch.column("rank")[:num_shards].to_pylist(),
        "tables": batch.column("table")[:num_shards].to_pylist(),
        "sharding_types": batch.column("sharding_type")[:num_shards].to_pylist(),
    }
    values = np.stack([_numbers(batch.column(name)) for name in names], axis=-1)
    return Block("shards", labels, steps[::num_shards], values.reshape(-1, num_shards, len(names)))


def _column(name: str, values: NDArray[np.float64]) -> Any:
    """Times as float32, which is finer than any clock's noise; counts as int64, null where there is none."""
    flat = values.ravel()
    if name.partition("/")[0].endswith("_ms"):
        return flat.astype(np.float32)
    is_missing = np.isnan(flat)
    return pa.array(np.where(is_missing, 0, flat).astype(np.int64), mask=is_missing)


def _numbers(column: Any) -> NDArray[np.float64]:
    """A column as float64, NaN where it is null."""
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def _words(words: Iterable[str], times: int) -> Any:
    """The words, over and over, each kept once."""
    encoded = pa.array(words, pa.string()).dictionary_encode()
    return pa.DictionaryArray.from_arrays(np.tile(encoded.indices.to_numpy(), times), encoded.dictionary)


@dataclass(frozen=True)
class _Series:
    """How a series becomes columns and a batch of those a block again."""

    encode: Callable[[Block], dict[str, Any]]
    decode: Callable[[Any], Block]


_SERIES = {"steps": _Series(_encode_steps, _decode_steps), "shards": _Series(_encode_shards, _decode_shards)}
