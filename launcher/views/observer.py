"""Everyone who wants to see a run's records: the record file, TensorBoard, the terminal."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from launcher.preparation import Prepared
from launcher.run_dir import RunDir
from launcher.views.health import LearningHealth
from launcher.views.tensorboard import TensorBoardView
from launcher.views.terminal import Terminal


class Observer(Protocol):
    """Takes the records of a run, one after the other."""

    def show(self, record: dict[str, Any]) -> None:
        """One window or evaluation (see README, records)."""


class Observers:
    """Several observers as one; a warning on the model's health becomes a record of its own."""

    def __init__(self, observers: list[Observer]) -> None:
        self._observers = observers
        self._health = LearningHealth()

    def show(self, record: dict[str, Any]) -> None:
        """See Observer."""
        warning = self._health.judge(record)
        for each in [record, *([warning] if warning else [])]:
            for observer in self._observers:
                observer.show(each)


class RecordFile:
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
    """All observers of a run; their files are closed at the end."""
    records = RecordFile(run)
    board = TensorBoardView(run.tensorboard)
    try:
        board.show_plan(prepared.planned, prepared.task)
        with terminal.follow() as line:
            yield Observers([records, board, line])
    finally:
        board.close()
        records.close()
