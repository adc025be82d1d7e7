"""Fixtures of the cluster tests: one session and one warm group a module, over the head of the test session."""

from collections.abc import Iterator
from typing import Any

import pytest

from cluster.inventory import Inventory, take_inventory
from cluster.session import RaySession, open_session
from cluster.worker_group import GroupOptions, WorkerGroup
from tests.cluster.rank_functions import SMALL_OUTBOX


@pytest.fixture(scope="module")
def ray_session(ray_head: Any) -> Iterator[RaySession]:
    """This process, joined to the head."""
    with open_session(ray_head.address) as session:
        yield session


@pytest.fixture(scope="module")
def pair(ray_session: RaySession) -> Inventory:
    """The inventory of two CPU workers on the head."""
    return take_inventory("cpu", 2)


@pytest.fixture(scope="module")
def warm_group(pair: Inventory) -> Iterator[WorkerGroup]:
    """Two gloo workers with a small outbox; for tests that leave their process group intact."""
    with WorkerGroup.start(pair, GroupOptions(outbox_capacity=SMALL_OUTBOX)) as group:
        yield group
