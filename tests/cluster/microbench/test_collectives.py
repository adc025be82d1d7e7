"""Collectives are measured alike by all ranks of a group, and a late rank is waited for."""

from typing import Any

import pytest

from cluster.microbench.groups import list_shapes
from tests.ranks import run_ranks

LATE_MS = 30.0


def test_one_node_has_one_shape_and_one_rank_none() -> None:
    assert list_shapes([[0, 1, 2]]) == [("intra_node", [[0, 1, 2]])]
    assert list_shapes([[0]]) == []


def test_nodes_of_unequal_sizes_have_no_places_in_common() -> None:
    assert list_shapes([[0, 1], [2]]) == [("inter_node", [[0, 1, 2]]), ("intra_node", [[0, 1]])]
    assert list_shapes([[0], [1]]) == [("inter_node", [[0, 1]])]


def test_the_draw_covers_collectives_sizes_and_skew() -> None:
    from cluster.microbench.collectives import SHARES, draw_collectives

    drawn = draw_collectives(200, 0, 3)
    assert drawn == draw_collectives(200, 0, 3) and len(drawn) == 200 + 8
    assert {each.collective for each in drawn[:4]} == set(SHARES) == {each.collective for each in drawn[4:8]}
    assert all(size % 12 == 0 for each in drawn for size in each.sent_bytes)
    random = drawn[8:]
    uneven = [each for each in random if len(set(each.sent_bytes)) > 1]
    assert {each.collective for each in uneven} == {"all_to_all"} and len(uneven) > 40
    skewed = [each for each in random if any(each.skew_ms)]
    assert 40 < len(skewed) < 80 and all(min(each.skew_ms) == 0 for each in skewed)
    assert min(max(each.sent_bytes) for each in random) < 2**11 and max(max(e.sent_bytes) for e in random) > 2**25


def measurements(rank: int, world_size: int) -> tuple[Any, ...]:
    import torch
    import torch.distributed as dist

    from cluster.microbench.collectives import SHARES, CollectiveRecipe, Group, measure_collective
    from cluster.microbench.repeats import Limits

    group = Group(dist.group.WORLD, "intra_node", torch.device("cpu"))
    limits = Limits(num_warmups=1, max_repeats=6, seconds=0.0)
    late = CollectiveRecipe("all_to_all", (4096, 8192), (0.0, LATE_MS))
    recipes = [CollectiveRecipe(name, (4096, 4096), (0.0, 0.0)) for name in SHARES]
    return tuple(measure_collective(recipe, group, limits) for recipe in [late, *recipes])


@pytest.mark.distributed
def test_all_ranks_get_one_result_and_the_early_rank_waits() -> None:
    first, second = run_ranks(measurements, 2)
    assert first == second
    late, *others = first
    assert late.sent_bytes == (4096, 8192) and late.skew_ms == (0.0, LATE_MS)
    # Rank 0 cannot end before rank 1 has begun: this is no matter of speed.
    assert late.duration_ms[0] > LATE_MS / 2
    assert late.slowest.median_ms < late.duration_ms[0]
    assert [each.collective for each in others] == ["all_to_all", "reduce_scatter", "all_gather", "all_reduce"]
    assert all(each.slowest.median_ms > 0 and each.canary_ms > 0 and each.world_size == 2 for each in first)
