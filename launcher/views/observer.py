"""Everyone who wants to see a run: the record file, the telemetry file, TensorBoard, the terminal."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from cluster.telemetry import Block
from dlrm.records import warning_record
from launcher.preparation import Prepared
from launcher.priced_plan import PricedPlan
from launcher.run_dir import RunDir
from launcher.telemetry_file import TelemetryFile
from launcher.views.base import Observer
from launcher.views.health import LearningHealth
from launcher.views.prometheus import Mirror
from launcher.views.report import read_report
from launcher.views.tensorboard import TensorBoardView
from launcher.views.terminal import Terminal

__all__ = ["Observer", "Observers", "RecordFile", "open_observers"]


class Observers(Observer):
    """Several observers as one; a warning on the model's health becomes a record of its own.

    One that can no longer write, as on a full disk, is left out from then on, which the others tell: it is no reason to
    end a training run.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)
        self._health = LearningHealth()
        self._last_step = 0

    def show(self, record: dict[str, Any]) -> None:
        """See Observer."""
        self._last_step = record["step"]
        warning = self._health.judge(record)
        for each in [record, *([warning] if warning else [])]:
            self._each(lambda observer, shown=each: observer.show(shown))  # type: ignore[misc]

    def show_plan(self, planned: PricedPlan, step: int) -> None:
        """See Observer."""
        self._each(lambda observer: observer.show_plan(planned, step))

    def show_block(self, block: Block) -> None:
        """See Observer."""
        self._each(lambda observer: observer.show_block(block))

    def flush(self) -> None:
        """See Observer."""
        self._each(lambda observer: observer.flush())

    def _each(self, act: Callable[[Observer], None]) -> None:
        """Let every observer do something."""
        for observer in list(self._observers):
            try:
                act(observer)
            except OSError as error:
                self._observers.remove(observer)
                self.show(warning_record(f"{type(observer).__name__} writes no more: {error}", self._last_step))


class RecordFile(Observer):
    """Appends every record to records.jsonl."""

    def __init__(self, run: RunDir) -> None:
        self._file = run.open_records()

    def show(self, record: dict[str, Any]) -> None:
        """See Observer."""
        self._file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def open_observers(run: RunDir, terminal: Terminal, prepared: Prepared) -> Iterator[Observers]:
    """All observers of a run; their files are closed at the end, and a run that did not fail gets its results."""
    with ExitStack() as files:
        records = files.enter_context(closing(RecordFile(run)))
        telemetry = files.enter_context(closing(TelemetryFile(run)))
        board = files.enter_context(closing(TensorBoardView(run.tensorboard)))
        board.show_plan(prepared.planned, step=0)
        with terminal.follow() as line:
            yield Observers([records, telemetry, board, Mirror(run.path.name), line])
        board.show_results(prepared.task.config, read_report(run.path))
