"""Training: the gradient is of the actions taken, the baseline is the others', and the policy gets better."""

import numpy as np
import torch

from planner.policy.env import Episodes, Temper
from planner.policy.network import Logits, PolicyNetwork, log_probability
from planner.policy.observation import Observation
from planner.policy.rollout import follow_rule, join_outcomes, play, record, sample
from planner.policy.tasks import Tasks
from planner.policy.train import Update, advantages, final_steps_ms, train_policy
from planner.policy.training_tasks import TaskSource


def episodes_of(tasks: Tasks, each: int) -> Episodes:
    task = np.repeat(np.arange(len(tasks.problems)), each)
    return Episodes(tasks, task, Temper.draw(np.random.default_rng(0), len(task)))


def test_an_update_gives_the_actions_the_probabilities_they_were_drawn_with(
    untrained: PolicyNetwork, two_tasks: Tasks
) -> None:
    """Observations, masks and sets are rebuilt from the record exactly as they were when the actions were drawn."""
    drawn: list[torch.Tensor] = []
    choose = sample(untrained, torch.ones(6), torch.Generator().manual_seed(0))

    def decide(found, seen: Observation, sets: torch.Tensor):
        action = choose(found, seen, sets)
        option, draws = torch.from_numpy(action.option), torch.from_numpy(action.draws)
        counts = seen.num_draws[torch.arange(len(option)), option]
        drawn.append(log_probability(untrained(seen, sets), counts, option, draws))
        return action

    played = record(untrained, episodes_of(two_tasks, 3), decide)
    seen = Observation(*(values.flatten(0, 1) for values in vars(played.seen).values()))
    with torch.no_grad():
        logits = Logits(*untrained(seen, played.sets(untrained).flatten(0, 1)))
    option = torch.from_numpy(played.outcome.option).flatten()
    counts = seen.num_draws[torch.arange(len(option)), option]
    again = log_probability(logits, counts, option, torch.from_numpy(played.outcome.draws).flatten(0, 1))
    torch.testing.assert_close(again, torch.stack(drawn, dim=1).flatten(), rtol=1e-3, atol=1e-3)


def test_advantages_of_a_task_sum_to_zero_and_favour_the_shorter_step(
    untrained: PolicyNetwork, two_tasks: Tasks
) -> None:
    played = record(untrained, episodes_of(two_tasks, 4), sample(untrained, torch.ones(8), torch.Generator()))
    gains = advantages(two_tasks, played).reshape(2, 4, -1)
    np.testing.assert_allclose(gains.sum(axis=1), 0.0, atol=1e-9)
    # Before the first decision all episodes of a task expect the same, so only their final steps count.
    first = gains[:, :, 0]
    order = final_steps_ms(two_tasks, played.outcome).reshape(2, 4).argsort(axis=1)
    assert (np.diff(np.take_along_axis(first, order, axis=1), axis=1) <= 1e-9).all()


def test_a_dead_episode_costs_more_than_any_other_of_its_task(untrained: PolicyNetwork, two_tasks: Tasks) -> None:
    outcome = play(untrained, episodes_of(two_tasks, 2), follow_rule)
    outcome.num_placed[0] -= 1
    costs = final_steps_ms(two_tasks, outcome)
    assert costs[0] > costs[1] and costs[0] > outcome.step_ms[0]
    np.testing.assert_array_equal(costs[1:], outcome.step_ms[1:])


def test_plays_are_joined_with_the_widest_draws(untrained: PolicyNetwork, two_tasks: Tasks) -> None:
    outcomes = [play(untrained, episodes_of(two_tasks, each), follow_rule) for each in (1, 2)]
    both = join_outcomes(outcomes)
    assert len(both.task) == 6 and both.option.shape == (6, two_tasks.num_units)
    np.testing.assert_array_equal(both.step_ms[:2], outcomes[0].step_ms)


def test_the_same_seed_draws_the_same_tasks() -> None:
    first, again = (
        TaskSource(ranks=(4,), units=(5, 9)).draw(np.random.default_rng(7), lambda world_size, num_units: 2)
        for _ in range(2)
    )
    assert [each.workload for each in first.problems] == [each.workload for each in again.problems]
    np.testing.assert_array_equal(first.options.loads, again.options.loads)


def test_training_goes_through_both_stages_and_changes_the_policy() -> None:
    updates: list[Update] = []
    network = train_policy(
        TaskSource(ranks=(2, 4), units=(4, 8)), seed=1, budget_s=4.0, follow=lambda update, _: updates.append(update)
    )
    torch.manual_seed(1)
    first = PolicyNetwork()
    assert {update.stage for update in updates} == {"imitation", "reinforcement"}
    assert all(np.isfinite([update.loss, update.gradient, update.entropy]).all() for update in updates)
    assert any(
        not torch.equal(before, after) for before, after in zip(first.parameters(), network.parameters(), strict=True)
    )
