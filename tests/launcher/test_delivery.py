"""What the driver carries from the ranks to everyone who looks, and what it asks of them in return."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cluster.imbalance.verdict import Cause, Verdict
from cluster.mailbox import Drained
from cluster.telemetry import Block
from launcher.delivery import Delivery, in_order
from launcher.views.base import Observer
from launcher.views.observer import Observers


class Group:
    """Ranks whose answers are at hand, and which note what is asked of them."""

    world_size = 2

    def __init__(self, *answers: Drained) -> None:
        self.answers, self.posted = list(answers), []

    def poll(self, timeout_s: float, ranks: list[int]) -> tuple[Drained]:
        return (self.answers.pop(0) if self.answers else Drained(),)

    def poll_survivor(self, timeout_s: float) -> Drained:
        return self.answers.pop(0) if self.answers else Drained()

    def poll_rest(self, timeout_s: float) -> tuple[Drained, ...]:
        return (Drained(), Drained(({"kind": "note", "step": 9, "message": "of rank 1"},)))

    def post(self, command: dict[str, Any]) -> None:
        self.posted.append(command["kind"])


class Watcher:
    """Finds a slow link in every block, and its rank in every probe but the first."""

    def __init__(self) -> None:
        self.learned: list[np.ndarray] = []
        self.updated: list[list[int]] = []

    def update(self, block: Block) -> list[Verdict]:
        self.updated.append(block.steps.tolist())
        return [Verdict(5, Cause.SLOW_LINK, None, (), 2.0, 3)]

    def learn_links(self, send_ms: np.ndarray) -> None:
        self.learned.append(send_ms)

    def locate(self, send_ms: np.ndarray) -> Verdict:
        return Verdict(5, Cause.SLOW_LINK, int(np.nanargmax(send_ms) // 2), (), 2.0, 3)


class Seen(Observer):
    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.num_rows = 0

    def show(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def show_block(self, block: Block) -> None:
        self.num_rows += len(block.steps)

    def kinds(self) -> list[str]:
        return [record["kind"] for record in self.records]


WINDOW = {"kind": "window", "step": 10, "loss": 0.5, "ne": 0.9, "auc": 0.7}
BLOCK = Block("steps", {"columns": ["step_ms"]}, np.arange(3), np.ones((3, 2, 1)))


def links(*send_ms: list[float | None]) -> dict[str, Any]:
    return {"kind": "links", "step": 10, "send_ms": list(send_ms)}


def test_a_slow_link_is_probed_and_named() -> None:
    usual, slow = links([None, 0.1], [0.1, None]), links([None, 0.1], [3.0, None])
    group = Group(Drained((WINDOW,)), Drained((usual,)), Drained((), 0, (BLOCK,)), Drained((slow,)))
    seen, watcher = Seen(), Watcher()
    delivery = Delivery(group, seen, watcher)  # type: ignore[arg-type]
    for _ in range(4):
        delivery.carry(1.0)
    assert group.posted == ["probe_links", "probe_links"]
    assert np.nanmax(watcher.learned) == 0.1 and len(watcher.learned) == 1
    assert seen.kinds() == ["window", "links", "verdict", "links", "verdict"] and seen.num_rows == 3
    assert [record["rank"] for record in seen.records if record["kind"] == "verdict"] == [None, 1]


def test_nothing_is_asked_after_a_stop() -> None:
    group = Group(Drained((WINDOW,), 0, (BLOCK,)))
    delivery = Delivery(group, Seen(), Watcher())  # type: ignore[arg-type]
    delivery.stop()
    delivery.stop()
    delivery.carry(1.0)
    assert group.posted == ["stop"]


def test_the_end_brings_a_survivors_rows_and_everybodys_notes() -> None:
    survivor = Drained((WINDOW,), 0, (BLOCK,))
    seen = Seen()
    Delivery(Group(Drained((WINDOW,), 2), survivor), seen, None).carry_last(1.0)  # type: ignore[arg-type]
    assert seen.kinds() == ["window", "warning", "note"] and seen.num_rows == 3
    assert "2 records or rows were lost" in seen.records[1]["message"]


def migration(step: int, is_committed: bool = True) -> dict[str, Any]:
    return {"kind": "migration", "step": step, "move": 1, "is_committed": is_committed}


def told(drained: Drained) -> list[Any]:
    """Steps of blocks and kinds of records, in the order in which they are handed on."""
    return [each.steps.tolist() if isinstance(each, Block) else each["kind"] for each in in_order(drained)]


def test_a_committed_migration_parts_the_rows_before_it_from_those_after() -> None:
    shards = replace(BLOCK, name="shards", steps=np.array([1]), rows=np.ones((1, 2, 1)))
    records = (WINDOW, migration(1), WINDOW)
    assert told(Drained(records, 0, (BLOCK, shards))) == [[0, 1], [1], "window", "migration", [2], "window"]
    refused = (WINDOW, migration(1, is_committed=False))
    assert told(Drained(refused, 0, (BLOCK,))) == [[0, 1, 2], "window", "migration"]
    assert told(Drained((migration(0), migration(2)), 0, (BLOCK,))) == [[0], "migration", [1, 2], "migration"]


def test_rows_of_a_plan_whose_record_was_lost_do_not_reach_the_watch() -> None:
    other = Block("steps", {"columns": ["step_ms", "more_ms"]}, np.arange(3, 6), np.ones((3, 2, 2)))
    watcher, seen = Watcher(), Seen()
    drains = [Drained((), 0, (BLOCK,)), Drained((), 0, (other,)), Drained((migration(5),), 0, (other,))]
    delivery = Delivery(Group(*drains), seen, watcher)  # type: ignore[arg-type]
    for _ in drains:
        delivery.carry(1.0)
    assert watcher.updated == [[0, 1, 2]] and seen.num_rows == 9


class Broken(Seen):
    def show_block(self, block: Block) -> None:
        raise OSError(28, "No space left on device")


def test_an_observer_that_cannot_write_is_left_out_and_told_of() -> None:
    broken, seen = Broken(), Seen()
    observers = Observers([broken, seen])
    observers.show({**WINDOW, "calibration": 1.0})
    for _ in range(2):
        observers.show_block(BLOCK)
    observers.show({**WINDOW, "step": 20})
    assert broken.kinds() == ["window"] and seen.kinds() == ["window", "warning", "window"] and seen.num_rows == 6
    assert "Broken writes no more" in seen.records[1]["message"] and "No space left" in seen.records[1]["message"]


@pytest.mark.parametrize("watcher", [None, Watcher()])
def test_a_poll_without_news_is_nothing(watcher: Any) -> None:
    seen = Seen()
    Delivery(Group(), seen, watcher).carry(1.0)  # type: ignore[arg-type]
    assert seen.records == []


def test_a_note_of_the_rank_that_spoke_last_is_kept() -> None:
    seen = Seen()
    note = {"kind": "note", "step": 8, "message": "of the survivor"}
    group = Group(Drained(), Drained((note, {"kind": "window", "step": 8})))
    Delivery(group, seen, None).carry_last(1.0)
    assert [record["message"] for record in seen.records] == ["of the survivor", "of rank 1"]
