"""Trained weights as files: an npz of plain arrays with a JSON page about them, so that nothing is unpickled."""

import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError, BadZipFile)
"""What reading a file of another kind, or building a network from it, may raise."""

NETWORK = "network."
"""Stands before the names of a network's tensors, which other arrays could otherwise clash with."""


def save_weights(path: Path, about: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Write arrays and what is to be known about them, beside and renamed."""
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("wb") as file:
        np.savez(file, about=np.array(json.dumps(about)), **arrays)
    beside.rename(path)


def read_weights(path: Path, version: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What `save_weights` wrote under the format of this version; raises one of `UNREADABLE` for any other file."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    about = json.loads(str(arrays.pop("about")))
    if about["format"] != version:
        raise ValueError(f"format {about['format']}, expected {version}")
    return about, arrays
