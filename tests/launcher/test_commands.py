"""The queue in front of the workers' inboxes: one command at a time, a stop at once."""

from typing import Any

import pytest

from launcher.commands import Commands

PLAN = {"world_size": 2, "tables": []}


@pytest.fixture
def posted() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def commands(posted: list[dict[str, Any]]) -> Commands:
    return Commands(posted.append)  # type: ignore[arg-type]


def kinds(posted: list[dict[str, Any]]) -> list[str]:
    return [command["kind"] for command in posted]


def test_the_next_command_waits_for_the_answer_to_the_last(commands: Commands, posted: list[dict[str, Any]]) -> None:
    commands.probe_links()
    commands.reshard(1, PLAN, "why")
    assert kinds(posted) == ["probe_links"] and not commands.is_idle
    commands.take_answer({"kind": "window"})
    assert kinds(posted) == ["probe_links"]
    commands.take_answer({"kind": "links"})
    assert posted[1:] == [{"kind": "reshard", "move": 1, "plan": PLAN, "reason": "why"}]
    commands.take_answer({"kind": "migration"})
    assert commands.is_idle


def test_a_probe_that_is_under_way_serves_all_who_ask(commands: Commands, posted: list[dict[str, Any]]) -> None:
    for _ in range(3):
        commands.probe_links()
    commands.take_answer({"kind": "links"})
    assert kinds(posted) == ["probe_links"] and commands.is_idle


def test_a_stop_overtakes_all_and_stays_the_newest(commands: Commands, posted: list[dict[str, Any]]) -> None:
    commands.probe_links()
    commands.reshard(1, PLAN, "why")
    commands.stop()
    commands.stop()
    commands.take_answer({"kind": "links"})
    commands.reshard(2, PLAN, "why")
    assert kinds(posted) == ["probe_links", "stop"]
