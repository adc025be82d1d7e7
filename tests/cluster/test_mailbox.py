"""The mailboxes never make training wait, count what they lose, and keep the newest command."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.mailbox import Drained, Inbox, Outbox


@given(st.lists(st.integers(), max_size=40), st.integers(1, 12))
def test_outbox_keeps_the_newest_and_counts_the_rest(records: list[int], capacity: int) -> None:
    outbox = Outbox(capacity)
    for record in records:
        outbox.put(record)
    assert outbox.drain() == Drained(tuple(records[-capacity:]), max(0, len(records) - capacity))
    assert outbox.drain() == Drained()


def test_outbox_loses_nothing_uncounted_between_threads() -> None:
    outbox, count, drains = Outbox(16), 20_000, []
    producer = threading.Thread(target=lambda: [outbox.put(step) for step in range(count)])
    producer.start()
    while producer.is_alive():
        drains.append(outbox.drain())
    drains.append(outbox.drain())
    received = [record for drained in drains for record in drained.records]
    assert received == sorted(set(received))
    assert len(received) + sum(drained.num_dropped for drained in drains) == count


def test_outbox_needs_room_for_one() -> None:
    with pytest.raises(ValueError, match="found 0"):
        Outbox(0)


@given(st.permutations(range(1, 8)))
def test_inbox_gives_the_highest_id_in_whatever_order_commands_come(ids: list[int]) -> None:
    inbox = Inbox()
    assert inbox.latest() is None
    for command_id in ids:
        inbox.post({"id": command_id})
    assert inbox.latest() == {"id": 7}


def test_inbox_gives_copies() -> None:
    inbox = Inbox()
    inbox.post({"id": 1, "kind": "stop"})
    inbox.latest().clear()
    assert inbox.latest() == {"id": 1, "kind": "stop"}
