"""What a run says on the terminal: its plan, one live line (or plain lines), warnings, verdicts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cluster.imbalance.verdict import Cause
from launcher.preparation import Prepared
from launcher.views.base import Observer
from launcher.views.plan import render_plan
from launcher.views.tables import MAX_WIDTH, human_seconds, number

# Where the output is not a terminal, lines come no faster than this.
PLAIN_INTERVAL_S = 5.0
STARTING = "starting the workers"
# Told in lines of their own, and in this colour on a terminal.
NOTABLE = ("verdict", "warning", "decision", "migration", "outcome")
NOTABLE_STYLE = "yellow"


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


class LiveLine(Observer):
    """One line that is overwritten with the newest window; events stand above it."""

    def __init__(self, console: Console, live: Live) -> None:
        self._console, self._live = console, live
        self._pace = Pace()
        self._findings = Findings()

    def show(self, record: dict[str, Any]) -> None:
        """See Observer."""
        if record["kind"] == "window":
            line = render_window(record, self._pace, self._findings.flag)
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
            return
        self._findings.note(record)
        print_event(self._console, record)


class PlainLines(Observer):
    """Now and then a line; every event."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pace = Pace()
        self._findings = Findings()
        self._next = 0.0

    def show(self, record: dict[str, Any]) -> None:
        """See Observer."""
        if record["kind"] != "window":
            self._findings.note(record)
            print_event(self._console, record)
            return
        line = render_window(record, self._pace, self._findings.flag)
        if time.monotonic() >= self._next:
            self._console.print(line, soft_wrap=True)
            self._next = time.monotonic() + PLAIN_INTERVAL_S


class Findings:
    """The verdicts that hold now, in a few characters."""

    def __init__(self) -> None:
        self._held: dict[int | str, tuple[str, int | None]] = {}

    def note(self, record: dict[str, Any]) -> None:
        """Take notice of a verdict, or of its end; of those that no plan can mend, and of other records, none.

        A migration ends all that was found of the plan before it.
        """
        if record["kind"] == "migration" and record["is_committed"]:
            self._held.clear()
        if record["kind"] != "verdict" or record["cause"] == Cause.GLOBAL_DRIFT:
            return
        # A slow link may be found before its rank is known, and a slow rank may turn out to have hot tables: each stays
        # one finding.
        key = record["cause"] if record["cause"] == Cause.SLOW_LINK else record["rank"]
        if record["is_over"]:
            self._held.pop(key, None)
        else:
            self._held[key] = (record["cause"], record["rank"])

    @property
    def flag(self) -> str:
        """`  !slow_device 3`, with the number of further findings; empty while all is well."""
        if not self._held:
            return ""
        cause, rank = next(iter(self._held.values()))
        more = f" +{len(self._held) - 1}" if len(self._held) > 1 else ""
        return f"  !{cause}{'' if rank is None else f' {rank}'}{more}"


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


def render_window(record: dict[str, Any], pace: Pace, flag: str = "") -> str:
    """One line: step, loss, NE, AUC, samples a second, step of the fastest and the slowest rank, flag, time to go.

    Where a flag leaves no room for the time to go, that is left out.
    """
    total, step_ms = record["total_steps"], record["step_ms"]
    of = f"/{total}" if total else ""
    loss, ne, auc = number(record["loss"], 4), number(record["ne"], 3), number(record["auc"], 3)
    line = (
        f"step {record['step']}{of}  loss {loss}  NE {ne}  AUC {auc}  {record['qps']:,.0f} samples/s"
        f"  step {step_ms['fastest']:.1f}-{step_ms['slowest']:.1f} ms{flag}"
    )
    eta = pace.eta(record["step"], total)
    return line if flag and len(line) + len(eta) > MAX_WIDTH else line + eta


def print_event(console: Console, record: dict[str, Any]) -> None:
    """Any record but a window in a line; a probe of the links speaks through the verdict that it leads to."""
    if record["kind"] != "links":
        console.print(render_event(record), style=NOTABLE_STYLE if record["kind"] in NOTABLE else None)


def render_event(record: dict[str, Any]) -> str:
    """An evaluation as text, and whatever has a message of its own."""
    if record["kind"] == "evaluation":
        return (
            f"held-out at step {record['step']}: loss {number(record['loss'], 4)}  NE {number(record['ne'], 3)}"
            f"  AUC {number(record['auc'], 3)}  calibration {number(record['calibration'], 3)}"
            f"  ({record['samples']:,} samples)"
        )
    return f"{record['kind']} at step {record['step']}: {record['message']}"
