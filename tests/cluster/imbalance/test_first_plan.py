"""Plans that are out of balance from the first step, and promises that are merely wrong by a little."""

import numpy as np
import pytest

from cluster.imbalance.verdict import Cause
from tests.cluster.imbalance.fleets import DENSE, LOOKUPS, SETTINGS, Rows, column, make_rows, scale, watch

ALL = slice(None)
NUM_STEPS = SETTINGS.warmup_steps + SETTINGS.baseline_steps


def uneven_rows(share: Rows, seed: int = 0) -> Rows:
    """Rows in which each rank looks up its share [W] of 8 ms."""
    rows = make_rows(NUM_STEPS, len(share), seed=seed)
    for name in LOOKUPS:
        column(rows, name)[:] *= share
    return rows


@pytest.mark.parametrize("num_ranks", [8, 64, 256])
def test_promises_that_are_a_tenth_wrong_are_kept(num_ranks: int) -> None:
    told = []
    for seed in range(20):
        generator = np.random.default_rng([seed, num_ranks])
        share = np.exp(generator.normal(0, 0.2, num_ranks))
        promised_ms = 8.0 * share * np.exp(generator.normal(0, 0.1, num_ranks))
        told += watch(uneven_rows(share, seed), expected_lookup_ms=promised_ms)
    assert told == []


@pytest.mark.parametrize("num_ranks", [8, 64, 256])
def test_of_many_ranks_one_that_is_far_too_slow_is_told(num_ranks: int) -> None:
    generator = np.random.default_rng(num_ranks)
    rows = make_rows(NUM_STEPS, num_ranks)
    scale(rows, LOOKUPS, 2.0, 5, ALL)
    (verdict,) = watch(rows, expected_lookup_ms=8.0 * np.exp(generator.normal(0, 0.1, num_ranks)))
    assert (verdict.cause, verdict.rank) == (Cause.SLOW_DEVICE, 5)
    assert verdict.severity_ms == pytest.approx(8, rel=0.2)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_only_ratios_of_a_promise_matter(unit: float) -> None:
    # Rank 0 has next to nothing to look up, so the offset decides what its ratio is.
    share = np.array([0.02, 1.0, 1.0, 1.6])
    rows = uneven_rows(share)
    assert watch(rows, expected_lookup_ms=unit * share) == []
    (verdict,) = watch(rows, expected_lookup_ms=unit * np.array([0.02, 1.0, 1.0, 1.0]))
    assert verdict.rank == 3


def test_a_rank_that_was_promised_less_but_that_nobody_waits_for_is_not_told() -> None:
    share = np.array([0.3, 1.0, 1.0, 1.0])
    assert watch(uneven_rows(share), expected_lookup_ms=np.array([0.1, 1.0, 1.0, 1.0])) == []


def test_a_promise_of_ranks_without_tables_says_nothing_of_them() -> None:
    share = np.array([1.0, 0.0, 0.0, 0.0])
    assert watch(uneven_rows(share), expected_lookup_ms=share) == []
    assert watch(uneven_rows(share), expected_lookup_ms=np.zeros(4)) == []


def test_several_slow_devices_are_told_with_what_they_cost_together() -> None:
    rows = make_rows(NUM_STEPS, 16)
    scale(rows, DENSE, 1.5, slice(0, 4), ALL)
    verdicts = watch(rows)
    assert sorted(each.rank for each in verdicts if each.rank is not None) == [0, 1, 2, 3]
    assert [each.severity_ms for each in verdicts] == pytest.approx([8.0] * 4, rel=0.1)
