"""Steps measured by a baseline: what the fleet has in common is no imbalance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.imbalance.baseline import Channels, beyond_others, learn_baseline
from cluster.imbalance.best_of import BestReader, BestSteps
from tests.cluster.imbalance.fleets import COLLECTIVES, DENSE, LOOKUPS, Rows, column, make_rows, scale, steps_block

ALL = slice(None)


def signals_of(rows: Rows) -> BestSteps:
    return BestReader().read(steps_block(rows))


@settings(deadline=None)
@given(seed=st.integers(0, 1000), num_ranks=st.integers(2, 7))
def test_beyond_others_leaves_a_rank_out_of_what_it_is_held_against(seed: int, num_ranks: int) -> None:
    values = np.random.default_rng(seed).integers(0, 4, (5, num_ranks)).astype(float)
    for rank in range(num_ranks):
        others = np.sort(np.delete(values, rank, axis=1), axis=1)[:, (num_ranks - 2) // 2]
        assert (beyond_others(values)[:, rank] == values[:, rank] - others).all()


@settings(deadline=None)
@given(factor=st.floats(0.5, 3), num_ranks=st.sampled_from([2, 3, 8]))
def test_a_slower_fleet_is_no_slower_rank(factor: float, num_ranks: int) -> None:
    rows = make_rows(60, num_ranks, noise=0.0)
    baseline = learn_baseline(signals_of(rows))
    scale(rows, (*LOOKUPS, *DENSE, *COLLECTIVES), factor, ALL, ALL)
    channels, growth = Channels(num_ranks), baseline.measure(signals_of(rows)).growth
    assert growth[:, : channels.transfer] == pytest.approx(0, abs=1e-9)
    # Of a fleet that is faster no faster transfers are expected.
    assert growth[:, channels.transfer].max() <= 0.01
    assert growth[0, channels.drift] == pytest.approx(np.log(factor), abs=0.03)


def test_of_two_ranks_the_slower_one_stands_out() -> None:
    rows = make_rows(60, 2, noise=0.0)
    baseline = learn_baseline(signals_of(rows))
    scale(rows, LOOKUPS, 1.2, 1, ALL)
    growth = baseline.measure(signals_of(rows)).growth[0]
    assert growth[1] == pytest.approx(np.log(1.2), abs=0.02) and growth[0] == -growth[1]
    assert growth[2:4] == pytest.approx(0) and 0.05 < growth[5] < 0.1


def test_more_bytes_may_take_longer_and_fewer_need_not_be_faster() -> None:
    rows = make_rows(60, 2, noise=0.0)
    baseline = learn_baseline(signals_of(rows))
    usual_ms = baseline.transfer_ms
    scale(rows, ("input_dist_ms", "input_dist_bytes"), 3.0, ALL, slice(30, None))
    scale(rows, ("output_dist_forward_bytes",), 0.1, ALL, slice(0, 30))
    assert baseline.measure(signals_of(rows)).transfer_ms[[*range(30), *range(40, 60)]] == pytest.approx(usual_ms)
    scale(rows, ("input_dist_ms",), 2.0, ALL, ALL)
    assert (baseline.measure(signals_of(rows)).transfer_ms[40:] > 1.2 * usual_ms).all()


def test_a_rank_that_looks_up_next_to_nothing_may_take_twice_as_long() -> None:
    rows = make_rows(60, 4, noise=0.0)
    scale(rows, LOOKUPS, 1e-3, 2, ALL)
    baseline = learn_baseline(signals_of(rows))
    scale(rows, LOOKUPS, 2.0, 2, ALL)
    growth = baseline.measure(signals_of(rows)).growth
    assert np.abs(baseline.standardize(growth)).max() < 1


def test_no_channel_is_taken_to_be_quieter_than_clocks_are() -> None:
    baseline = learn_baseline(signals_of(make_rows(60, 4, noise=0.0)))
    assert baseline.scale.min() >= 0.05


def test_a_rank_without_exchange_or_lookups_is_measured_too() -> None:
    rows = make_rows(60, 2)
    for name in (*LOOKUPS, *COLLECTIVES, "ids"):
        column(rows, name)[:] = 0
    for name in COLLECTIVES:
        column(rows, name.replace("_ms", "_bytes"))[:] = 0
    signals = signals_of(rows)
    assert np.isfinite(learn_baseline(signals).measure(signals).growth).all()
