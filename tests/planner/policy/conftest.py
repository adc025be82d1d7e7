"""Tasks to place and a policy that was not trained."""

import numpy as np
import pytest
import torch

from planner.policy.network import PolicyNetwork
from planner.policy.tasks import Tasks
from planner.policy.training_tasks import TaskSource


@pytest.fixture(scope="session")
def untrained() -> PolicyNetwork:
    """A network with first weights."""
    torch.manual_seed(0)
    return PolicyNetwork()


@pytest.fixture(scope="session")
def two_tasks() -> Tasks:
    """Two made-up tasks on six ranks."""
    return TaskSource(ranks=(6,), units=(12, 12)).draw(np.random.default_rng(3), lambda world_size, num_units: 2)
