"""A guess at what a misspelt name was meant to be."""

import difflib
from collections.abc import Sequence


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """A clause to append to a message, empty where no name is close.

    >>> did_you_mean("scor", ["user", "score"])
    " (did you mean 'score'?)"
    """
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
