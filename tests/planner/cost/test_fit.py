"""Training finds a law again, and a few dozen measurements move a trained model to another device."""

import numpy as np
import pytest
import torch

from planner.cost.canary import WINDOW, canaries_ms
from planner.cost.compute import ComputeModel
from planner.cost.features import WORK_TERMS
from planner.cost.fit import FORWARD_BACKWARD, FitOptions, adapt_compute, fit_compute, measured_sets, relative_loss
from planner.lookups import LookupArrays
from tests.planner.cost.lookup_sets import PRICES, law_ms, measurements, random_sets

QUICK = FitOptions(num_members=2, num_steps=300, batch_size=32)


@pytest.fixture(scope="module")
def model() -> ComputeModel:
    sets = random_sets(500, seed=1)
    return fit_compute(LookupArrays.of(sets), law_ms(sets), 0, outputs=FORWARD_BACKWARD, options=QUICK)


def mape(estimated: np.ndarray, measured: np.ndarray) -> float:
    return float(np.abs(estimated / measured - 1).mean())


def test_a_law_is_learned_to_a_few_percent(model: ComputeModel) -> None:
    unseen = random_sets(100, seed=2)
    assert mape(model.predict_ms(LookupArrays.of(unseen)), law_ms(unseen)) < 0.05


def test_a_model_serves_sets_larger_than_it_was_trained_on(model: ComputeModel) -> None:
    unseen = random_sets(50, seed=3, most_shards=40)
    assert mape(model.predict_ms(LookupArrays.of(unseen)), law_ms(unseen)) < 0.15


def test_a_seed_gives_the_same_weights_whatever_happened_before() -> None:
    sets = random_sets(40, seed=1)
    lines: list[str] = []
    options = FitOptions(num_members=2, num_steps=20, batch_size=16)

    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.rand(7)
        state = torch.random.get_rng_state()
        found = fit_compute(LookupArrays.of(sets), law_ms(sets), seed, lines.append, FORWARD_BACKWARD, options)
        assert torch.equal(state, torch.random.get_rng_state()), "training leaves the caller's generator alone"
        return found.network.state_dict()

    first, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert len(lines) == 21 and lines[0].startswith("epoch 1/7")


def test_the_loss_weighs_long_sets_by_their_noise_and_short_ones_by_their_share() -> None:
    one = torch.ones(1)
    assert relative_loss(one, one, one).item() == 0.0
    short, long = torch.tensor([0.01]), torch.tensor([10.0])
    assert relative_loss(1.1 * long, long, one) > relative_loss(1.1 * short, short, one)
    # The same in another unit.
    torch.testing.assert_close(relative_loss(2.2 * one, 2 * one, 2 * one), relative_loss(1.1 * one, one, one))


def test_a_few_measurements_move_the_prices_to_another_device(model: ComputeModel) -> None:
    prices = PRICES * np.where(np.array(WORK_TERMS) == "gathered", 2.0, 1.0)
    seen, unseen = random_sets(30, seed=5), random_sets(100, seed=6)
    adapted = adapt_compute(model, measurements(seen, law_ms(seen, 3.0, prices), 3.0), 3.0)
    wanted = law_ms(unseen, 3.0, prices)
    before, after = (mape(each.predict_ms(LookupArrays.of(unseen), 3.0), wanted) for each in (model, adapted))
    assert after < 0.06 and after < 0.7 * before, (before, after)


def test_adapting_to_the_same_device_does_no_harm(model: ComputeModel) -> None:
    seen, unseen = random_sets(30, seed=5), random_sets(100, seed=6)
    rng = np.random.default_rng(0)
    noisy = law_ms(seen) * rng.lognormal(0, 0.05, (30, 2))
    adapted = adapt_compute(model, measurements(seen, noisy), 1.0)
    own = LookupArrays.of(seen)
    assert mape(adapted.predict_ms(own), noisy) <= 1.001 * mape(model.predict_ms(own), noisy)
    wanted = law_ms(unseen)
    before, after = (mape(each.predict_ms(LookupArrays.of(unseen)), wanted) for each in (model, adapted))
    assert after < before + 0.02


def test_one_wild_measurement_does_not_steer(model: ComputeModel) -> None:
    seen, unseen = random_sets(30, seed=5), random_sets(100, seed=6)
    wild = law_ms(seen)
    wild[7] *= 20
    adapted = adapt_compute(model, measurements(seen, wild), 1.0)
    assert mape(adapted.predict_ms(LookupArrays.of(unseen)), law_ms(unseen)) < 0.08


def test_adapting_leaves_the_model_and_what_it_learned_alone(model: ComputeModel) -> None:
    kept = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    seen = random_sets(30, seed=5)
    adapted = adapt_compute(model, measurements(seen, 2 * law_ms(seen)), 1.0).network.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.network.state_dict().items())
    moved = {name for name in kept if not torch.equal(kept[name], adapted[name])}
    assert moved == {"log_price", "log_base"}


def test_times_are_in_the_canary_of_the_device_or_of_each_set() -> None:
    sets = random_sets(3, seed=5)
    measured = measurements(sets, law_ms(sets, 4.0))
    lookups, times = measured_sets(measured, 4.0)
    np.testing.assert_allclose(times, law_ms(sets))
    assert lookups.num_sets == 3
    _, times = measured_sets(measured, np.array([4.0, 8.0, 2.0]))
    np.testing.assert_allclose(times * [[1.0], [2.0], [0.5]], law_ms(sets))


def test_the_canary_follows_the_device_and_no_outlier() -> None:
    sets = random_sets(4 * WINDOW, seed=5, most_shards=1)
    canary_ms = np.where(np.arange(len(sets)) < 2 * WINDOW, 1.0, 2.0)
    canary_ms[3] = 50.0
    measured = [measurements([each], law_ms([each]), float(ms))[0] for each, ms in zip(sets, canary_ms, strict=True)]
    running = canaries_ms(measured)
    assert (running[: 2 * WINDOW - WINDOW // 2] == 1.0).all() and (running[2 * WINDOW + WINDOW // 2 :] == 2.0).all()
    assert (canaries_ms(measured[:5]) == 1.0).all()
