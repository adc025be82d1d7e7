"""Quantities and hints as people read them."""

from collections.abc import Iterable
from difflib import get_close_matches

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
"""Binary units, each 1,024 of the one before."""


def human_bytes(num_bytes: float, digits: int = 1) -> str:
    """Bytes in the largest binary unit that leaves a number of at least 1.

    >>> human_bytes(3 * 1024**3)
    '3.0 GiB'
    """
    scaled, unit = float(num_bytes), 0
    while abs(scaled) >= 1024 and unit < len(UNITS) - 1:
        scaled, unit = scaled / 1024, unit + 1
    return f"{scaled:.{digits if unit else 0}f} {UNITS[unit]}"


def render_bytes(num_bytes: int) -> str:
    """Bytes for people, and exactly.

    >>> render_bytes(3 * 1024**3)
    '3.00 GiB (3,221,225,472 bytes)'
    """
    exact = f"{num_bytes:,} bytes"
    return f"{human_bytes(num_bytes, digits=2)} ({exact})" if abs(num_bytes) >= 1024 else exact


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known name nearest to a wrong one, to be appended to a message; empty where none is near.

    >>> did_you_mean("size_greedi", ["random", "size_greedy"])
    "; did you mean 'size_greedy'?"
    """
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
