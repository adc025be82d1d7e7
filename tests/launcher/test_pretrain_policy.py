"""`pretrain policy` writes weights that plan, curves that can be read back and a card that says how good they are."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launcher import policy_exam
from launcher.pretrain_policy import PretrainedPolicy, Pretraining, pool_tables, pretrain_policy
from planner.check import check
from planner.policy.decode import PolicyStrategy
from planner.policy.training_tasks import TaskSource

SECONDS = 4.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> PretrainedPolicy:
    """A policy of a few seconds, with its ablations, examined on two tasks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_exam, "NUM_TASKS", 2)
        patch.setattr(policy_exam, "POLISH_S", 0.2)
        asked = Pretraining(
            tmp_path_factory.mktemp("policy"), seed=3, minutes=SECONDS / 60, ablation_minutes=SECONDS / 4 / 60
        )
        return pretrain_policy(asked, Console(stderr=True))


def test_the_weights_plan(made: PretrainedPolicy) -> None:
    tasks = TaskSource(ranks=(4,), units=(6, 6)).draw(np.random.default_rng(0), lambda world_size, num_units: 1)
    problem = tasks.problems[0]
    check(PolicyStrategy(tasks.estimator, weights=made.weights).plan(problem), problem)


def test_the_card_has_figures_and_ablations(made: PretrainedPolicy) -> None:
    assert set(made.card["ablations"]) == {"full", "without cost features", "without current table"}
    assert made.card["num_updates"] > 0 and made.card["seed"] == 3
    page = made.card_page.read_text()
    for name, marks in (made.card["figures"] | made.card["ablations"]).items():
        assert f"| {name} | {marks['over_processing']:.3f} | {marks['over_rule']:.3f} |" in page
        assert 0 < marks["success"] <= 1


def test_curves_can_be_read_back(made: PretrainedPolicy) -> None:
    events = EventAccumulator(str(made.weights.parent / "events" / "policy")).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"exam/over_processing", "exam/over_rule", "reinforcement/entropy", "reinforcement/gradient"} <= tags


def test_tables_may_come_from_a_file(shared_data: Path) -> None:
    draw = pool_tables(shared_data / "tables" / "dlrm_tables_2021.csv")
    tables = draw(np.random.default_rng(0), 20, 4096)
    assert len(tables) == 20 and all(each.access is not None and each.access.samples == 4096 for each in tables)
