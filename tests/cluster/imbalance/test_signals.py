"""Own work, transfer and waiting are told apart by column names."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.imbalance.signals import split_steps
from planner.cost.estimator import COMMS_PHASES
from tests.cluster.imbalance.fleets import COLLECTIVES, COLUMNS, DENSE, LOOKUPS, column, make_rows


@settings(deadline=None)
@given(seed=st.integers(0, 1000), num_ranks=st.integers(1, 5))
def test_work_transfer_and_waiting_make_up_the_times(seed: int, num_ranks: int) -> None:
    rows = np.random.default_rng(seed).random((4, num_ranks, len(COLUMNS)))
    signals = split_steps(np.arange(4), rows, COLUMNS)
    durations = np.stack([column(rows, name) for name in COLLECTIVES], axis=2)
    assert signals.transfer_ms[:, None] + signals.waiting_ms == pytest.approx(durations)
    assert (signals.waiting_ms.min(axis=1) == 0).all()
    assert signals.lookup_ms == pytest.approx(sum(column(rows, name) for name in LOOKUPS))
    assert signals.work_ms - signals.lookup_ms == pytest.approx(sum(column(rows, name) for name in DENSE))


def test_columns_are_found_by_name() -> None:
    rows = make_rows(3, 2)
    order = np.random.default_rng(0).permutation(len(COLUMNS))
    shuffled = split_steps(np.arange(3), rows[..., order], [COLUMNS[index] for index in order])
    plain = split_steps(np.arange(3), rows, COLUMNS)
    assert all((vars(shuffled)[name] == vars(plain)[name]).all() for name in vars(plain))


def test_bytes_follow_the_collectives() -> None:
    rows = make_rows(1, 2)
    column(rows, "output_dist_backward_bytes")[0] = [7, 8]
    signals = split_steps(np.arange(1), rows, COLUMNS)
    assert signals.bytes[0, :, COMMS_PHASES.index("output_dist_backward")].tolist() == [7, 8]


def test_every_missing_column_is_named() -> None:
    names = [name for name in COLUMNS if name not in ("ids", "optimizer_ms")]
    with pytest.raises(ValueError, match="optimizer_ms, ids"):
        split_steps(np.arange(1), np.zeros((1, 2, len(names))), names)
