"""The learned cost: what holds for any weights, trained or not, and its file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.compute import ComputeModel, LookupNetwork
from planner.cost.features import shard_features
from planner.cost.fit import FORWARD_BACKWARD, FitOptions, fit_compute
from planner.cost.pretrained import load_pretrained
from planner.errors import PlanningError
from planner.lookups import LookupArrays, LookupSet, LookupShard
from planner.tables import OptimizerKind
from planner.topology import DeviceType
from tests.planner.cost.lookup_sets import law_ms, random_sets, shards

SAMPLES = st.integers(1, 65_536)
SHARDS = st.lists(shards(), min_size=1, max_size=8)
FLOAT32_RTOL = 3e-5
"""Sums of tens of float32 figures in another order."""


def untrained() -> ComputeModel:
    """First weights; wide ones, so that every part of the network has a say."""
    torch.manual_seed(5)
    features = shard_features(LookupArrays.of(random_sets(50, seed=1)))
    network = LookupNetwork(3, 2, features.shape[1])
    for parameter in network.parameters():
        parameter.data *= 2
    return ComputeModel(network, features.mean(axis=0), features.std(axis=0) + 1e-6, FORWARD_BACKWARD, {})


def trained() -> ComputeModel:
    """A model of sets that disturb each other: their time is more than the sum over shards."""
    sets = random_sets(150, seed=2)
    times = law_ms(sets)
    times *= 1 + 0.1 * np.array([len(each.shards) for each in sets])[:, None]
    return fit_compute(LookupArrays.of(sets), times, 0, outputs=FORWARD_BACKWARD, options=FitOptions(4, 150, 32))


MODELS = {"untrained": untrained(), "trained": trained()}

for_each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def one_set(found: list[LookupShard], samples: int) -> LookupArrays:
    return LookupArrays.of([LookupSet(samples, OptimizerKind.ROWWISE_ADAGRAD, tuple(found))])


@for_each_model
@settings(max_examples=60, deadline=None)
@given(found=SHARDS, added=shards(), samples=SAMPLES)
def test_one_more_shard_never_costs_less(
    model: ComputeModel, found: list[LookupShard], added: LookupShard, samples: int
) -> None:
    before, after = (model.predict_ms(one_set(each, samples)) for each in (found, [*found, added]))
    assert (after >= before * (1 - FLOAT32_RTOL)).all()


@for_each_model
@settings(max_examples=40, deadline=None)
@given(found=SHARDS, samples=SAMPLES, data=st.data())
def test_the_order_of_shards_does_not_matter(
    model: ComputeModel, found: list[LookupShard], samples: int, data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(found))
    np.testing.assert_allclose(
        model.predict_ms(one_set(shuffled, samples)), model.predict_ms(one_set(found, samples)), rtol=FLOAT32_RTOL
    )


@for_each_model
@settings(max_examples=60, deadline=None)
@given(found=SHARDS, samples=SAMPLES, touched=st.lists(shards(), max_size=6))
def test_a_cost_is_positive_and_never_below_a_tangent(
    model: ComputeModel, found: list[LookupShard], samples: int, touched: list[LookupShard]
) -> None:
    loads = model.sum_loads(one_set(found, samples)).astype(np.float64)
    at = model.sum_loads(one_set(touched, samples))[0] if touched else np.zeros(model.num_loads)
    constant, prices = model.tangent(at.astype(np.float64))
    cost = model.cost_ms(loads)
    assert (prices >= 0).all() and (cost > 0).all()
    assert (cost >= (constant + loads @ prices.T) - FLOAT32_RTOL * (1 + cost + np.abs(constant))).all()


@for_each_model
@settings(max_examples=40, deadline=None)
@given(left=SHARDS, right=SHARDS, samples=SAMPLES, share=st.floats(0, 1))
def test_a_cost_is_convex(
    model: ComputeModel, left: list[LookupShard], right: list[LookupShard], samples: int, share: float
) -> None:
    ends = np.concatenate([model.sum_loads(one_set(each, samples)) for each in (left, right)]).astype(np.float64)
    shares = np.array([share, 1 - share])
    even = model.cost_ms(shares @ ends)
    assert (even <= shares @ model.cost_ms(ends) * (1 + FLOAT32_RTOL)).all()


@for_each_model
def test_a_tangent_touches_its_cost(model: ComputeModel) -> None:
    loads = model.sum_loads(LookupArrays.of(random_sets(1, seed=3)))[0].astype(np.float64)
    constant, prices = model.tangent(loads)
    np.testing.assert_allclose(model.cost_ms(loads[None])[0], constant + prices @ loads, rtol=1e-5)
    nothing, _ = model.tangent(np.zeros(model.num_loads))
    np.testing.assert_allclose(model.base, nothing, rtol=1e-6)


def test_shards_beside_each_other_cost_more_than_alone() -> None:
    model, lone = MODELS["trained"], random_sets(60, seed=9, most_shards=1)
    merged = [replace(lone[at], shards=sum((each.shards for each in lone[at : at + 6]), ())) for at in range(0, 60, 6)]
    samples = lone[0].samples
    lone = [replace(each, samples=samples) for each in lone]
    merged = [replace(each, samples=samples) for each in merged]
    apart = model.predict_ms(LookupArrays.of(lone)).reshape(10, 6, 2).sum(axis=1)
    together = model.predict_ms(LookupArrays.of(merged))
    assert np.median(together / apart) > 1.1


@for_each_model
def test_sets_in_one_call_cost_what_they_cost_alone(model: ComputeModel) -> None:
    sets = random_sets(20, seed=4)
    together = model.predict_ms(LookupArrays.of(sets), canary_ms=2.5)
    alone = [2.5 * model.predict_ms(LookupArrays.of([each]))[0] for each in sets]
    np.testing.assert_allclose(together, alone, rtol=FLOAT32_RTOL)
    assert together.shape == (20, 2)
    batched = model.cost_ms(np.stack([model.sum_loads(LookupArrays.of(sets))] * 3), 2.5)
    np.testing.assert_allclose(batched, [together] * 3, rtol=FLOAT32_RTOL)


def test_the_spread_is_wide_where_nothing_was_measured() -> None:
    model = MODELS["trained"]
    known = model.spread(model.sum_loads(LookupArrays.of(random_sets(100, seed=3))))
    sets = [
        replace(each, samples=65_536, shards=tuple(replace(one, num_cols=4096, num_rows=10**9) for one in each.shards))
        for each in random_sets(100, seed=3)
    ]
    foreign = model.spread(model.sum_loads(LookupArrays.of(sets)))
    assert (known >= 0).all() and np.median(foreign) > 2 * np.median(known)


def test_members_that_agree_have_no_spread() -> None:
    model = untrained()
    for parameter in model.network.parameters():
        parameter.data[:] = parameter.data[:1].clone()
    spread = model.spread(model.sum_loads(LookupArrays.of(random_sets(5, seed=3))))
    np.testing.assert_allclose(spread, 0.0, atol=1e-6)


@for_each_model
def test_a_file_gives_the_very_same_model(model: ComputeModel, tmp_path: Path) -> None:
    path = tmp_path / "cpu.npz"
    ComputeModel(model.network, model.mean, model.scale, model.outputs, {"seed": 3, "devices": ["x"]}).save(path)
    again = ComputeModel.load(path)
    sets = LookupArrays.of(random_sets(30, seed=6))
    assert (again.predict_ms(sets) == model.predict_ms(sets)).all()
    assert (again.outputs, again.card) == (FORWARD_BACKWARD, {"seed": 3, "devices": ["x"]})
    assert [each.name for each in tmp_path.iterdir()] == ["cpu.npz"]


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cpu.npz"
    MODELS["untrained"].save(path)
    whole = path.read_bytes()
    with np.load(path) as file:
        arrays = dict(file)
    about = json.loads(str(arrays["about"]))
    spoilt = {
        "none": None,
        "empty": b"",
        "text": b"no weights",
        "cut short": whole[: len(whole) // 2],
        "one array": {"about": arrays["about"]},
        "another version": arrays | {"about": np.array(json.dumps(about | {"format": 99}))},
        "another shape": arrays | {"about": np.array(json.dumps(about | {"shape": [3, 2]}))},
        "fewer members": arrays | {"about": np.array(json.dumps(about | {"shape": [2, *about["shape"][1:]]}))},
    }
    for name, content in spoilt.items():
        wrong = tmp_path / f"{name}.npz"
        if isinstance(content, bytes):
            wrong.write_bytes(content)
        elif content is not None:
            np.savez(wrong, **content)
        with pytest.raises(PlanningError, match="pretrain cost") as caught:
            ComputeModel.load(wrong)
        assert caught.value.reason == "weights" and str(wrong) in str(caught.value), name
    np.save(tmp_path / "array.npz.npy", np.zeros(3))
    with pytest.raises(PlanningError):
        ComputeModel.load(tmp_path / "array.npz.npy")


def test_what_ships_can_be_used() -> None:
    shipped = load_pretrained(DeviceType.CPU)
    if shipped is None:
        pytest.skip("no weights ship for CPUs yet")
    assert shipped.outputs == FORWARD_BACKWARD
    assert (shipped.predict_ms(LookupArrays.of(random_sets(5, seed=0))) > 0).all()


def test_a_subset_is_those_sets_in_that_order() -> None:
    sets = random_sets(12, seed=8)
    order = np.array([7, 0, 7, 11])
    shuffled = LookupArrays.of(sets)
    found, wanted = shuffled.subset(order), LookupArrays.of([sets[index] for index in order])
    assert found.num_sets == 4 and len(found) == len(wanted)
    for name in vars(wanted):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
    nothing = shuffled.subset(np.array([], dtype=np.int64))
    assert nothing.num_sets == 0 and len(nothing) == 0


def test_a_subset_needs_no_order_among_shards() -> None:
    arrays = LookupArrays.of(random_sets(6, seed=8))
    order = np.random.default_rng(0).permutation(len(arrays))
    mixed = LookupArrays(6, *(getattr(arrays, name)[order] for name in vars(arrays) if name != "num_sets"))
    found, wanted = mixed.subset(np.array([4, 1])), arrays.subset(np.array([4, 1]))
    for index in range(2):
        rows, expected = (np.sort(each.num_rows[each.set_index == index]) for each in (found, wanted))
        np.testing.assert_array_equal(rows, expected)
