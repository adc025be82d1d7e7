"""Communication costs keep their promises for any bytes, and a fit finds the figures that made the times."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from planner.cost.comms import CollectiveCost, CommsModel, TransferPlane, from_topology
from planner.cost.comms_fit import fit_collectives
from planner.errors import PlanningError
from planner.profile import COLLECTIVES, CollectiveMeasurement, Timing
from planner.topology import Topology

LINK = "intra_node"
UNKNOWN = Timing(0.0, 0.0, 0)

_figures = st.floats(0, 1e-4)
_planes = st.builds(TransferPlane, st.floats(-50, 5), _figures, _figures, st.floats(0, 1))
_first = st.builds(TransferPlane, st.floats(1e-3, 5), _figures, _figures, st.floats(0, 1))
_bytes = st.lists(st.integers(0, 1 << 30), min_size=2, max_size=8)


@st.composite
def _models(draw: st.DrawFn, collective: str) -> CommsModel:
    planes = (draw(_first), *draw(st.lists(_planes, max_size=3)))
    return CommsModel((CollectiveCost(collective, LINK, draw(st.integers(2, 8)), planes),))


def _measured(
    sent_bytes: NDArray[np.float64],
    end_ms: NDArray[np.float64],
    collective: str = "all_to_all",
    skew_ms: NDArray[np.float64] | None = None,
    canary_ms: NDArray[np.float64] | None = None,
) -> list[CollectiveMeasurement]:
    """Measurements whose ranks all end together, at `end_ms` [N] after the first start."""
    skews = np.zeros_like(sent_bytes) if skew_ms is None else skew_ms
    canaries = np.ones(len(end_ms)) if canary_ms is None else canary_ms
    return [
        CollectiveMeasurement(
            collective,
            LINK,
            tuple(int(value) for value in sent),
            tuple(skew),
            tuple(end - skew),
            UNKNOWN,
            float(canary),
        )
        for sent, skew, end, canary in zip(sent_bytes, skews, end_ms, canaries, strict=True)
    ]


def _random_bytes(num: int, world_size: int = 4, seed: int = 0) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    return np.floor(2 ** generator.uniform(12, 24, (num, 1)) * generator.uniform(0.1, 1, (num, world_size)))


@given(data=st.data(), collective=st.sampled_from(COLLECTIVES), sent=_bytes)
@settings(max_examples=150)
def test_times_are_positive_and_never_fall_with_bytes(data: st.DataObject, collective: str, sent: list[int]) -> None:
    model = data.draw(_models(collective))
    more = list(sent)
    more[data.draw(st.integers(0, len(sent) - 1))] += data.draw(st.integers(0, 1 << 30))
    before, after = model.estimate_ms(collective, LINK, [sent, more])
    assert (before > 0).all()
    assert (after >= before * (1 - 1e-9)).all()


@given(data=st.data(), collective=st.sampled_from(COLLECTIVES), sent=_bytes)
@settings(max_examples=100)
def test_a_rank_keeps_its_time_when_ranks_are_renumbered(data: st.DataObject, collective: str, sent: list[int]) -> None:
    model = data.draw(_models(collective))
    order = data.draw(st.permutations(range(len(sent))))
    straight = model.estimate_ms(collective, LINK, sent)
    renumbered = model.estimate_ms(collective, LINK, [sent[index] for index in order])
    np.testing.assert_allclose(renumbered, straight[list(order)], rtol=1e-9)


@given(data=st.data(), collective=st.sampled_from(COLLECTIVES), sent=_bytes, number=st.integers(1, 3))
@settings(max_examples=150)
def test_no_floor_lies_above_the_slowest_rank(
    data: st.DataObject, collective: str, sent: list[int], number: int
) -> None:
    model = data.draw(_models(collective))
    slowest = model.estimate_ms(collective, LINK, sent, number).max()
    for floor in model.linear_floors(collective, LINK, len(sent)):
        by_total = floor.constant_ms + floor.ms_per_total_byte * sum(sent)
        by_own = floor.constant_ms + floor.ms_per_own_byte * max(sent)
        assert max(by_total, by_own) <= slowest * (1 + 1e-9)


@given(
    data=st.data(),
    sent=_bytes,
    starts=st.lists(st.floats(0, 30), min_size=8, max_size=8),
)
@settings(max_examples=100)
def test_a_collective_ends_after_its_last_start_and_no_sooner_than_without_waiting(
    data: st.DataObject, sent: list[int], starts: list[float]
) -> None:
    model = data.draw(_models("all_to_all"))
    start_ms = starts[: len(sent)]
    end = model.end_ms("all_to_all", LINK, sent, start_ms)
    assert end >= max(start_ms)
    assert end >= model.estimate_ms("all_to_all", LINK, sent).max() * (1 - 1e-9)


def test_one_plane_is_recovered_from_noisy_times() -> None:
    """alpha 0.5 ms; 2 ms a MB out and 1 ms a MB in, of the three quarters that leave a rank of four."""
    sent = _random_bytes(60)
    truth = CommsModel((CollectiveCost("all_to_all", LINK, 4, (TransferPlane(0.5, 2e-6, 1e-6),)),))
    noise = np.random.default_rng(1).normal(1, 0.02, len(sent))
    end_ms = truth.estimate_ms("all_to_all", LINK, sent).max(axis=1) * noise
    # Fewer than two planes' worth of measurements: one plane, whose figures can be read.
    (cost,) = fit_collectives(_measured(sent, end_ms)[:39]).costs
    (plane,) = cost.planes
    assert plane.constant_ms == pytest.approx(0.5, rel=0.1)
    assert plane.ms_per_byte_out == pytest.approx(2e-6, rel=0.15)
    assert plane.ms_per_byte_in == pytest.approx(1e-6, rel=0.3)
    fitted = fit_collectives(_measured(sent, end_ms))
    unseen = _random_bytes(200, seed=5)
    expected = truth.estimate_ms("all_to_all", LINK, unseen).max(axis=1)
    np.testing.assert_allclose(fitted.estimate_ms("all_to_all", LINK, unseen).max(axis=1), expected, rtol=0.05)


def test_several_planes_follow_a_time_that_one_cannot() -> None:
    """Messages up to a point are cheap, and above it the busiest rank holds up the others."""
    planes = (TransferPlane(1.0, 1e-6, 1e-6), TransferPlane(-20.0, 8e-6, 1e-6), TransferPlane(-10.0, 1e-6, 5e-6))
    truth = CommsModel((CollectiveCost("all_to_all", LINK, 4, planes),))
    sent, unseen = _random_bytes(400), _random_bytes(200, seed=7)

    def slowest(model: CommsModel, num_bytes: NDArray[np.float64]) -> NDArray[np.float64]:
        return model.estimate_ms("all_to_all", LINK, num_bytes).max(axis=1)

    measured = _measured(sent, slowest(truth, sent) * np.random.default_rng(2).normal(1, 0.02, len(sent)))
    errors = {
        num: np.abs(slowest(fit_collectives(measured[:num]), unseen) / slowest(truth, unseen) - 1).mean()
        for num in (39, 400)
    }
    assert errors[400] < 0.03
    assert errors[39] > 3 * errors[400]


def test_late_starts_become_waiting() -> None:
    """With half of every late start hidden behind the others, the fit finds one half."""
    sent = np.full((39, 4), 1e6) * np.arange(1, 40)[:, None]
    skew_ms = np.zeros_like(sent)
    skew_ms[:, 3] = np.random.default_rng(3).uniform(0, 5, len(sent))
    end_ms = 1 + 4e-6 * 0.75 * sent[:, 0] + 0.5 * skew_ms[:, 3]
    model = fit_collectives(_measured(sent, end_ms, skew_ms=skew_ms))
    (plane,) = model.costs[0].planes
    assert plane.waiting_share == pytest.approx(0.5, abs=0.02)
    waited = model.end_ms("all_to_all", LINK, [1e6] * 4, [0, 0, 0, 4.0])
    assert waited - model.end_ms("all_to_all", LINK, [1e6] * 4, [0.0] * 4) == pytest.approx(2.0, abs=0.1)
    # Bytes that leave and bytes that reach a rank cannot be told apart here, so they share.
    assert plane.ms_per_byte_out == pytest.approx(plane.ms_per_byte_in, rel=1e-3)


def test_without_skews_in_the_measurements_a_late_rank_delays_the_end_fully() -> None:
    sent = _random_bytes(20)
    model = fit_collectives(_measured(sent, 1 + 1e-6 * sent.sum(axis=1)))
    ends = [model.end_ms("all_to_all", LINK, [1e6] * 4, [late] * 4) for late in (0.0, 7.0)]
    assert ends[1] - ends[0] == pytest.approx(7.0)


@pytest.mark.parametrize("is_drift_real", [True, False])
def test_the_canary_corrects_drift_and_is_left_alone_where_it_is_noise(is_drift_real: bool) -> None:
    sent = _random_bytes(200)
    canary_ms = np.where(np.arange(200) < 60, 3.0, 2.0)
    steady_ms = 1 + 1e-6 * sent.sum(axis=1)
    end_ms = steady_ms * canary_ms / 2 if is_drift_real else steady_ms
    model = fit_collectives(_measured(sent, end_ms, canary_ms=canary_ms))
    np.testing.assert_allclose(model.estimate_ms("all_to_all", LINK, sent).max(axis=1), steady_ms, rtol=0.03)


def test_a_topology_promises_latency_and_the_larger_of_bytes_out_and_in(
    make_topology: Callable[..., Topology],
) -> None:
    """Links of 3e11 B/s, 10 us within a node of two; 5e10 B/s, 20 us between two nodes."""
    model = from_topology(make_topology(num_nodes=2, per_node=2))
    sent = np.array([8e8, 0.0, 4e8, 0.0])
    expected_ms = 0.02 + np.maximum(sent * 3 / 4, (sent.sum() - sent) / 4) / 5e7
    np.testing.assert_allclose(model.estimate_ms("all_to_all", "inter_node", sent), expected_ms)
    np.testing.assert_allclose(model.estimate_ms("all_to_all", LINK, sent[:2]), 0.01 + np.array([4e8, 4e8]) / 3e8)
    np.testing.assert_allclose(model.estimate_ms("all_reduce", "inter_node", np.full(4, 4e8)), 6 * (0.02 + 1e8 / 5e7))
    np.testing.assert_allclose(model.estimate_ms("all_gather", LINK, np.full(2, 3e8)), 0.01 + 1.0)


def test_several_collectives_pay_a_latency_each_and_none_costs_nothing(
    make_topology: Callable[..., Topology],
) -> None:
    model = from_topology(make_topology())
    sent, number = np.array([[0.0, 0.0], [2e8, 2e8], [2e8, 2e8]]), np.array([[0], [1], [3]])
    none, one, three = model.estimate_ms("all_to_all", LINK, sent, number)
    assert (none == 0).all()
    np.testing.assert_allclose(three - one, 2 * 0.01)


def test_one_rank_has_nobody_to_wait_for(make_topology: Callable[..., Topology]) -> None:
    model = from_topology(make_topology(per_node=1))
    assert model.estimate_ms("all_reduce", LINK, [[5.0], [1e9]]).tolist() == [[0.0], [0.0]]


def test_the_nearest_group_size_is_used_and_a_ring_pays_for_its_steps() -> None:
    costs = tuple(CollectiveCost("all_reduce", LINK, size, (TransferPlane(size, 0.0, 0.0),)) for size in (2, 8))
    model = CommsModel(costs)
    estimates = {size: model.estimate_ms("all_reduce", LINK, np.ones(size))[0] for size in (2, 3, 6, 8, 15)}
    assert estimates == pytest.approx({2: 2.0, 3: 4.0, 6: 8.0 * 5 / 7, 8: 8.0, 15: 16.0})


def test_measured_costs_are_completed_by_a_topology(make_topology: Callable[..., Topology]) -> None:
    sent = _random_bytes(10)
    measured = fit_collectives(_measured(sent, 1 + 1e-6 * sent.sum(axis=1)))
    described = from_topology(make_topology(num_nodes=2, per_node=2))
    both = measured.completed(described)
    np.testing.assert_array_equal(
        both.estimate_ms("all_to_all", LINK, sent), measured.estimate_ms("all_to_all", LINK, sent)
    )
    np.testing.assert_array_equal(
        both.estimate_ms("all_to_all", "inter_node", sent), described.estimate_ms("all_to_all", "inter_node", sent)
    )
    with pytest.raises(PlanningError, match=r"nothing is known of all_reduce on intra_node, only of all_to_all on"):
        measured.estimate_ms("all_reduce", LINK, sent)


def test_a_scaled_model_is_slower_by_its_factor() -> None:
    plane = TransferPlane(1.0, 1e-6, 0.0, 0.25)
    model = CommsModel((CollectiveCost("all_to_all", LINK, 4, (plane,)),))
    sent = _random_bytes(5)
    np.testing.assert_allclose(
        model.scaled(1.4).estimate_ms("all_to_all", LINK, sent), 1.4 * model.estimate_ms("all_to_all", LINK, sent)
    )


@given(data=st.data(), collective=st.sampled_from(COLLECTIVES))
@settings(max_examples=30)
def test_a_model_survives_json(data: st.DataObject, collective: str) -> None:
    model = data.draw(_models(collective))
    assert CommsModel.from_dict(json.loads(json.dumps(model.to_dict()))) == model


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"collectives": [{"collective": "broadcast", "link": LINK, "group_size": 2, "planes": [{}]}]},
        {"collectives": [{"collective": "all_reduce", "link": LINK, "group_size": 2, "planes": []}]},
        {"collectives": [{"collective": "all_reduce", "link": LINK, "group_size": 2, "planes": [{"slope": 1}]}]},
    ],
)
def test_json_of_another_form_is_refused(content: dict[str, object]) -> None:
    with pytest.raises(PlanningError, match="communication costs"):
        CommsModel.from_dict(content)


@pytest.mark.parametrize(
    ("sent", "durations", "collective"),
    [
        ((8,), (1.0,), "all_reduce"),
        ((8, 8), (1.0,), "all_reduce"),
        ((8, 8), (1.0, 0.0), "all_reduce"),
        ((8, 8), (1.0, 1.0), "broadcast"),
    ],
)
def test_measurements_without_sense_are_refused(
    sent: tuple[int, ...], durations: tuple[float, ...], collective: str
) -> None:
    measured = CollectiveMeasurement(collective, LINK, sent, (0.0,) * len(sent), durations, UNKNOWN, 1.0)
    with pytest.raises(PlanningError, match="collective measurement 0"):
        fit_collectives([measured])
