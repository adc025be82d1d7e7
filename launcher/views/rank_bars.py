"""Ranks of a plan with a bar each: what it has to do in a step that another placement could take from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style
from rich.table import Table

from launcher.views.tables import make_table
from planner.text import human_bytes
from planner.topology import Topology

MOST_RANKS = 64
"""Ranks that are shown one by one; of more the busiest, the idlest and quantiles."""

TIGHT = (0, 1, 0, 0)
"""Padding of a table with two columns between numbers instead of three."""

NUM_BUSIEST, NUM_IDLEST = 12, 6
QUANTILES = ("least", "a quarter below", "median", "a quarter above", "most")
COLUMNS = ("rank", "node", "memory", "free", "shards", "lookup", "comms", "total")


class Part(NamedTuple):
    """One kind of work in a bar; the dense layers and the host are in none, since no placement changes them."""

    name: str
    block: str
    ascii: str
    style: Style


PARTS = (
    Part("lookups", "█", "#", Style(color="cyan")),
    Part("transfers", "▒", "=", Style(color="yellow")),
)


def _glyph(part: Part, console: Console, options: ConsoleOptions) -> str:
    return part.block if console.is_terminal and not options.ascii_only else part.ascii


class Legend:
    """What the parts of a bar mean."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The parts' characters and names."""
        for index, part in enumerate(PARTS):
            yield Segment("  " if index else "")
            yield Segment(_glyph(part, console, options), part.style)
            yield Segment(f" {part.name}")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """One line."""
        width = sum(len(part.name) + 4 for part in PARTS) - 2
        return Measurement(width, width)


@dataclass(frozen=True)
class Bar:
    """Parts of a whole as one line, in blocks on a terminal and in plain ASCII elsewhere.

    Attributes:
        parts: Amounts in the order of `PARTS`.
        whole: The amount that fills the line.
    """

    parts: tuple[float, ...]
    whole: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As long as the room that there is, rounded where parts meet, so that the whole bar is right."""
        ends = [round(end / self.whole * options.max_width) if self.whole else 0 for end in accumulate(self.parts)]
        for part, start, end in zip(PARTS, [0, *ends], ends, strict=False):
            yield Segment(_glyph(part, console, options) * (end - start), part.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """All room that there is."""
        return Measurement(1, options.max_width)


def render_ranks(plan: dict[str, Any], topology: Topology) -> Iterator[Table | str]:
    """The ranks of a plan (`plan --json`) with bars; of many the busiest, the idlest and quantiles."""
    ranks = plan["ranks"]
    shown = ranks if len(ranks) <= MOST_RANKS else _extremes(ranks)
    table = make_table(f"ranks of {topology.name}, own work in ms", COLUMNS, (), left=2)
    table.padding, table.expand = TIGHT, True
    table.add_column(Legend(), ratio=1, no_wrap=True)
    whole_ms = max(sum(_parts(rank)) for rank in ranks)
    for rank in shown:
        table.add_row(*_cells(rank, topology), Bar(_parts(rank), whole_ms))
    yield table
    if shown is not ranks:
        yield _quantiles([rank["total_ms"] for rank in ranks])


def _cells(rank: dict[str, Any], topology: Topology) -> tuple[str, ...]:
    device = topology.devices[rank["rank"]]
    return (
        str(rank["rank"]),
        rank["node"][:12],
        human_bytes(rank["hbm_bytes"]),
        human_bytes(device.hbm_bytes - device.reserved_bytes - rank["hbm_bytes"]),
        str(rank["num_shards"]),
        f"{rank['lookup_ms']:.2f}",
        f"{rank['comms_ms']:.2f}",
        f"{rank['total_ms']:.2f}",
    )


def _parts(rank: dict[str, Any]) -> tuple[float, ...]:
    return rank["lookup_ms"], rank["comms_ms"]


def _extremes(ranks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    busiest_first = sorted(ranks, key=lambda rank: -rank["total_ms"])
    return busiest_first[:NUM_BUSIEST] + busiest_first[-NUM_IDLEST:]


def _quantiles(total_ms: list[float]) -> str:
    values = np.quantile(total_ms, np.linspace(0, 1, len(QUANTILES)))
    words = ", ".join(f"{name} {value:.2f}" for name, value in zip(QUANTILES, values, strict=True))
    return (
        f"  the {NUM_BUSIEST} busiest and {NUM_IDLEST} idlest of {len(total_ms)} ranks (--json lists all)\n"
        f"  total: {words}"
    )
