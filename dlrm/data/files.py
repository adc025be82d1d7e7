"""The files of a data set, and their lines in blocks of bounded size."""

import gzip
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dlrm.errors import DataError

# Measured on Criteo rows: parsing costs least per row here, since a block and all that is derived from it (about twenty
# times its size) stay near the processor's caches.
BLOCK_BYTES = 512 * 2**10


@dataclass(frozen=True)
class LineBlock:
    """Whole lines of one file.

    Attributes:
        path: the file.
        first_line: number of the first line, counted from 1.
        data: the lines, each with its newline (added where the file's last line has none).
    """

    path: str
    first_line: int
    data: bytes


def list_files(path: str | None, suffixes: tuple[str, ...] = ("",)) -> list[Path]:
    """The file itself, or a folder's files with one of the suffixes, in natural order (day_2 before day_10).

    Names that start with "." or "_" are markers, not data.

    Raises:
        DataError: `missing_file` where there is nothing to read.
    """
    if path is None:
        raise DataError("data.path is not set: name a file or a folder of files.", "config")
    root = Path(path)
    if root.is_file():
        files = [root]
    elif root.is_dir():
        files = [file for file in root.iterdir() if file.is_file() and not file.name.startswith((".", "_"))]
    else:
        raise DataError(
            f"{root.absolute()} is not on this machine: correct data.path or data.eval_path.", "missing_file"
        )
    files = [file for file in files if file.name.endswith(suffixes)]
    if not files:
        wanted = f" ending in {' or '.join(suffixes)}" if any(suffixes) else ""
        raise DataError(f"{root.absolute()} has no file{wanted}: correct data.path or data.eval_path.", "missing_file")
    return sorted(files, key=lambda file: _natural_key(file.name))


def read_line_blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[LineBlock]:
    """The lines of a file, plain or `.gz`, in blocks of at most about `block_bytes`.

    Raises:
        DataError: `unreadable` for a damaged gzip file or a line longer than a block.
    """
    line, rest = 1, b""
    with _open(path) as file:
        while chunk := _read(file, block_bytes, path):
            cut = chunk.rfind(b"\n") + 1
            if not cut and len(rest) + len(chunk) > block_bytes:
                raise DataError(
                    f"{path}:{line}: a line of over {block_bytes} bytes: this is no text table.", "unreadable"
                )
            if not cut:
                rest += chunk
                continue
            data = rest + chunk[:cut]
            yield LineBlock(str(path), line, data)
            line += data.count(b"\n")
            rest = chunk[cut:]
    if rest:
        yield LineBlock(str(path), line, rest + b"\n")


def _natural_key(name: str) -> list[tuple[int, str]]:
    """Digits compare as numbers, all else as text."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _open(path: Path) -> BinaryIO:
    """The file's bytes, decompressed."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _read(file: BinaryIO, num_bytes: int, path: Path) -> bytes:
    """The next bytes; a damaged gzip file is named."""
    try:
        return file.read(num_bytes)
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}): fetch it again.", "unreadable") from error
