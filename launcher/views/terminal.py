"""What a run says on the terminal: its plan, one live line (or plain lines), warnings."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from launcher.preparation import Prepared
from launcher.views.plan import render_plan
from launcher.views.tables import human_seconds, number

# Where the output is not a terminal, lines come no faster than this.
PLAIN_INTERVAL_S = 5.0
STARTING = "starting the workers"
# Beyond this many ranks a line shows the range of their step times.
MOST_RANKS_IN_LINE = 4


class Terminal:
    """The console of one command."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def show_plan(self, prepared: Prepared) -> None:
        """The plan as tables, and notes on its figures."""
        for part in render_plan(prepared.planned, prepared.task.tables, prepared.topology):
            self.console.print(part)
        for note in prepared.notes:
            self.console.print(f"note: {note}")

    def show_run(self, path: Path) -> None:
        """Where the run's records are."""
        self.console.print(f"run folder: {path}", soft_wrap=True)
        self.console.print(f"watch it:   tensorboard --logdir {path.parent}", soft_wrap=True)

    @contextmanager
    def follow(self) -> Iterator["LiveLine | PlainLines"]:
        """A view that shows progress until the context ends."""
        if not self.console.is_terminal:
            self.console.print(STARTING)
            yield PlainLines(self.console)
            return
        with Live(Text(STARTING), console=self.console, refresh_per_second=4) as live:
            yield LiveLine(self.console, live)


class LiveLine:
    """One line that is overwritten with the newest window."""

    def __init__(self, console: Console, live: Live) -> None:
        self._console, self._live = console, live
        self._pace = Pace()

    def show(self, record: dict[str, Any]) -> None:
        """See Observer."""
        if record["kind"] == "window":
            self._live.update(Text(render_window(record, self._pace), no_wrap=True, overflow="ellipsis"))
        else:
            self._console.print(render_event(record))


class PlainLines:
    """Now and then a line; every evaluation and warning."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pace = Pace()
        self._next = 0.0

    def show(self, record: dict[str, Any]) -> None:
        """See Observer."""
        if record["kind"] != "window":
            self._console.print(render_event(record))
            return
        line = render_window(record, self._pace)
        if time.monotonic() >= self._next:
            self._console.print(line, soft_wrap=True)
            self._next = time.monotonic() + PLAIN_INTERVAL_S


class Pace:
    """Estimates when a run ends, from the steps since its first window."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def eta(self, step: int, total_steps: int | None) -> str:
        """`eta m:ss`, or nothing while the number of steps or the speed is unknown."""
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        if total_steps is None or step == self._first[0]:
            return ""
        seconds = (now - self._first[1]) / (step - self._first[0]) * (total_steps - step)
        return f"  eta {human_seconds(seconds)}"


def render_window(record: dict[str, Any], pace: Pace) -> str:
    """One line: step, loss, NE, AUC, samples a second, step time of the ranks, time to go."""
    step_ms = [row[record["columns"].index("step_ms")] for row in record["ranks"]]
    if len(step_ms) > MOST_RANKS_IN_LINE:
        times = f"{min(step_ms):.1f}-{max(step_ms):.1f}"
    else:
        times = "/".join(f"{ms:.1f}" for ms in step_ms)
    total = record["total_steps"]
    of = f"/{total}" if total else ""
    loss, ne, auc = number(record["loss"], 4), number(record["ne"], 3), number(record["auc"], 3)
    return (
        f"step {record['step']}{of}  loss {loss}  NE {ne}  AUC {auc}  {record['qps']:,.0f} samples/s"
        f"  step {times} ms{pace.eta(record['step'], total)}"
    )


def render_event(record: dict[str, Any]) -> str:
    """An evaluation or a warning as text."""
    if record["kind"] == "evaluation":
        return (
            f"held-out at step {record['step']}: loss {number(record['loss'], 4)}  NE {number(record['ne'], 3)}"
            f"  AUC {number(record['auc'], 3)}  calibration {number(record['calibration'], 3)}"
            f"  ({record['samples']:,} samples)"
        )
    return f"{record['kind']} at step {record['step']}: {record['message']}"
