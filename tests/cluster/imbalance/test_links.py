"""Which rank a probe of the links blames: with a healthy probe none for being on another node."""

import numpy as np
import pytest

from cluster.imbalance.diagnosis import find_slow_sender
from cluster.imbalance.settings import WatchSettings
from cluster.imbalance.verdict import Cause
from cluster.imbalance.watcher import Watcher
from tests.cluster.imbalance.fleets import COLLECTIVES, FIRST_CHANGE, Rows, column, make_rows, steps_block

NODES = [(2, 1), (8, 4), (4, 4)]


def probe(nodes: tuple[int, ...], seed: int = 0) -> Rows:
    """One-way times [W, W]: 0.02 ms inside a node, 0.2 ms between two, and a tenth of noise."""
    node = np.repeat(np.arange(len(nodes)), nodes)
    send_ms = np.where(node[:, None] == node, 0.02, 0.2)
    send_ms *= np.exp(np.random.default_rng(seed).normal(0, 0.1, send_ms.shape))
    np.fill_diagonal(send_ms, np.nan)
    return send_ms


@pytest.mark.parametrize("nodes", NODES)
def test_a_rank_on_another_node_is_not_to_blame(nodes: tuple[int, ...]) -> None:
    usual_ms = probe(nodes)
    assert all(find_slow_sender(probe(nodes, seed), usual_ms) is None for seed in range(1, 20))


def test_without_a_healthy_probe_the_slowest_sender_is_the_one() -> None:
    assert find_slow_sender(probe((2, 1))) == 2


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("are_both_slow", [False, True])
def test_the_rank_whose_links_got_slow_is_named(nodes: tuple[int, ...], are_both_slow: bool) -> None:
    for rank in range(sum(nodes)):
        send_ms = probe(nodes, 1)
        send_ms[rank] *= 2.5
        if are_both_slow:
            send_ms[:, rank] *= 2.5
        assert find_slow_sender(send_ms, probe(nodes)) == rank


def test_links_that_were_not_probed_then_say_nothing() -> None:
    usual_ms, send_ms = probe((2, 2)), probe((2, 2), 1)
    usual_ms[1] = np.nan
    send_ms[1] *= 9
    assert find_slow_sender(send_ms, usual_ms) is None
    assert find_slow_sender(send_ms, np.full((4, 4), np.nan)) is None


def test_a_healthy_probe_of_other_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"found \(3, 3\), expected \(12, 12\)"):
        find_slow_sender(probe((2, 1)), probe((8, 4)))


@pytest.mark.parametrize("num_learned", [2, 3])
def test_a_watch_keeps_the_healthy_links_over_a_reset(num_learned: int) -> None:
    """Those of another number of ranks are of no use: then links are held against each other."""
    watcher = Watcher(WatchSettings(warmup_steps=5, baseline_steps=40))
    watcher.learn_links(probe((2, 1))[:num_learned, :num_learned])
    watcher.reset()
    rows = make_rows(180, 3)
    column(rows, COLLECTIVES[0])[FIRST_CHANGE:] += 6.0
    assert [each.cause for each in watcher.update(steps_block(rows))] == [Cause.SLOW_LINK]
    found = watcher.locate(probe((2, 1), 1))
    assert (found and found.rank) == (None if num_learned == 3 else 2)
