"""Rows that cannot be read: counted, located, and too many of them end the run."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from dlrm.errors import DataError

NUM_EXAMPLES = 5


@dataclass(frozen=True)
class BadRow:
    """One unreadable row: `line` counts from 1 in the file (for Parquet it is the row)."""

    path: str
    line: int
    why: str

    def __str__(self) -> str:
        """`file:line: why`, which editors can open."""
        return f"{self.path}:{self.line}: {self.why}"


@dataclass
class BadRowLog:
    """The bad rows of one pass over the data; every rank reads the same rows and so keeps the same log.

    Attributes:
        limit: bad rows tolerated; the next one raises.
        count: bad rows met.
        examples: the first few of them.
    """

    limit: int
    count: int = 0
    examples: list[BadRow] = field(default_factory=list)

    def add(self, rows: Iterable[BadRow]) -> None:
        """Count the rows, in the order of the file.

        Raises:
            DataError: `bad_rows`, naming the row that passes the limit and the first ones.
        """
        for row in rows:
            # The example comes first: a thread that reads a count above 0 finds one.
            if len(self.examples) < NUM_EXAMPLES:
                self.examples.append(row)
            self.count += 1
            if self.count > self.limit:
                self._raise(row)

    def _raise(self, row: BadRow) -> None:
        """Say which row was one too many."""
        first = "\n".join(f"  {example}" for example in self.examples)
        raise DataError(
            f"{row} is bad row number {self.count}; data.max_bad_rows allows {self.limit} in one pass. "
            f"The first of them:\n{first}\n"
            f"Mend the data, or raise data.max_bad_rows.",
            "bad_rows",
        )
