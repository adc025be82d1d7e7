"""Tables for people: at most 100 columns wide, plain where the output is not a terminal."""

import sys
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

MAX_WIDTH = 100


def make_console(stderr: bool = False) -> Console:
    """A console that never writes wider than 100 columns, and no escape codes into files or pipes."""
    stream = sys.stderr if stderr else sys.stdout
    width = Console(file=stream).width if stream.isatty() else MAX_WIDTH
    return Console(file=stream, width=min(width, MAX_WIDTH), highlight=False, markup=False, soft_wrap=False)


def make_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], left: int = 1) -> Table:
    """A table whose first `left` columns are words, flush left, and the others numbers, flush right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < left else "right", overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    return table


def human_seconds(seconds: float) -> str:
    """A duration as h:mm:ss, or m:ss under an hour.

    >>> human_seconds(75)
    '1:15'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def number(value: float | None, digits: int) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
