"""The policy draws what its probabilities say, under masks, whatever the order and number of ranks."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from planner.policy.env import Episodes, Temper
from planner.policy.network import BLOCKED, SHARD_WIDTH, Blindness, Logits, PolicyNetwork, draw_actions, log_probability
from planner.policy.observation import Observation, observe
from planner.policy.tasks import Tasks

DRAWS = 40_000


@pytest.fixture(scope="module")
def state(two_tasks: Tasks) -> tuple[Observation, torch.Tensor]:
    """A state in the middle of an episode, and sets of its ranks."""
    episodes = Episodes(two_tasks, np.array([0, 1]), Temper.calm(2))
    for _ in range(5):
        episodes.act(episodes.candidates().greedy_actions())
    sets = torch.rand(2, two_tasks.world_size, SHARD_WIDTH, generator=torch.Generator().manual_seed(1))
    return observe(episodes, episodes.candidates()), sets


def test_draws_occur_as_often_as_their_log_probabilities_say() -> None:
    """Option 0 draws two of three ranks in order, option 1 none, option 2 is not legal."""
    logits = Logits(torch.tensor([[0.3, -0.2, BLOCKED]]), torch.tensor([[[0.5, -1.0, 0.1], [BLOCKED] * 3, [0.0] * 3]]))
    num_draws = torch.tensor([[2, 0, 1]])
    many = Logits(*(each.expand(DRAWS, *each.shape[1:]) for each in logits))
    option, draws = draw_actions(many, num_draws, torch.ones(DRAWS), torch.Generator().manual_seed(0))
    assert set(option.tolist()) == {0, 1}
    for first, second in ((0, 1), (0, 2), (1, 0), (2, 0), (1, 2), (2, 1)):
        drawn = torch.tensor([[first, second]])
        chance = log_probability(logits, torch.tensor([2]), torch.tensor([0]), drawn).exp()
        share = ((option == 0) & (draws == drawn).all(dim=1)).float().mean()
        assert float(share) == pytest.approx(float(chance), abs=0.01)
    none = log_probability(logits, torch.tensor([0]), torch.tensor([1]), torch.tensor([[0, 1]])).exp()
    assert float((option == 1).float().mean()) == pytest.approx(float(none), abs=0.01)


def test_without_noise_the_most_likely_action_is_taken() -> None:
    logits = Logits(torch.tensor([[0.0, 1.0]]), torch.tensor([[[0.0, 0.0, 0.0], [0.1, 0.3, 0.2]]]))
    option, draws = draw_actions(logits, torch.tensor([[1, 2]]), torch.zeros(1), torch.Generator())
    assert option.tolist() == [1] and draws.tolist() == [[1, 2]]


def test_ranks_that_change_places_take_their_probabilities_along(
    untrained: PolicyNetwork, state: tuple[Observation, torch.Tensor]
) -> None:
    seen, sets = state
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    moved = replace(
        seen, pair=seen.pair[:, :, order], device=seen.device[:, order], may_draw=seen.may_draw[:, :, order]
    )
    with torch.no_grad():
        before, after = untrained(seen, sets), untrained(moved, sets[:, order])
    torch.testing.assert_close(after.rank, before.rank[:, :, order])
    torch.testing.assert_close(after.option, before.option)


def test_what_is_not_legal_has_no_probability(
    untrained: PolicyNetwork, state: tuple[Observation, torch.Tensor]
) -> None:
    seen, sets = state
    barred = replace(seen, is_legal=seen.is_legal & (torch.arange(seen.is_legal.shape[1]) == 0))
    with torch.no_grad():
        logits = untrained(barred, sets)
    assert logits.option.softmax(dim=-1)[:, 0].tolist() == [1.0, 1.0]
    assert (logits.rank[~seen.may_draw] == BLOCKED).all()


def test_a_blind_policy_does_not_see_what_it_is_not_shown(state: tuple[Observation, torch.Tensor]) -> None:
    seen, sets = state
    torch.manual_seed(0)
    blind = PolicyNetwork(Blindness(table=True))
    other = replace(seen, table=seen.table + 1)
    with torch.no_grad():
        torch.testing.assert_close(blind(seen, sets).option, blind(other, sets).option)


def test_the_sets_of_ranks_and_the_table_matter(
    untrained: PolicyNetwork, state: tuple[Observation, torch.Tensor]
) -> None:
    seen, sets = state
    with torch.no_grad():
        before = untrained(seen, sets)
        other_sets, other_table = untrained(seen, sets.flip(1)), untrained(replace(seen, table=seen.table + 1), sets)
    assert not torch.allclose(before.option, other_table.option)
    assert not torch.allclose(before.rank, other_sets.rank)
