"""`pretrain cost` trains from profiles, tests on sets it never saw, and writes weights with their card."""

import json
from pathlib import Path

import numpy as np
import pytest

from launcher.cli import main
from launcher.measured_sets import PARTS, collect_sets, noise_floor, split_sets
from launcher.pretrain import LEAST_SETS, pretrain_cost
from planner.cost.compute import ComputeModel
from planner.cost.fit import FORWARD_BACKWARD
from planner.errors import PlanningError
from planner.profile import Timing
from tests.launcher.made_profiles import GPUS, keep, make_lookups, make_profile, slower

NOISE = 0.03


def ignore(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two profiles, of which one was measured while the device was at half its speed; it repeats 20 sets."""
    folder = tmp_path_factory.mktemp("profiles")
    first = make_lookups(200, seed=1, canary_ms=2.0, noise=NOISE)
    again = make_lookups(200, seed=1, canary_ms=2.0, noise=2 * NOISE)[:20]
    second = slower((*make_lookups(150, seed=2, canary_ms=2.0, noise=NOISE), *again), 2.0)
    paths = [folder / "a.json", folder / "b.json"]
    for path, lookups in zip(paths, (first, second), strict=True):
        keep(make_profile(lookups), path)
    return paths


@pytest.fixture(scope="module")
def made(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the command wrote to."""
    folder = tmp_path_factory.mktemp("made") / "weights"
    words = ["pretrain", "cost", "--profiles", *map(str, files), "--output", str(folder), "--seed", "3"]
    assert main(words) == 0
    return folder


def test_weights_of_a_known_law_are_right_on_sets_never_seen(made: Path) -> None:
    model = ComputeModel.load(made / "cpu.npz")
    assert model.outputs == FORWARD_BACKWARD
    (unseen,) = make_profile(make_lookups(100, seed=9, canary_ms=3.0)).devices
    sets = collect_sets([unseen])
    estimated = model.predict_ms(sets.lookups, canary_ms=3.0)
    assert np.abs(estimated / sets.times_ms - 1).mean() < 0.1


def test_the_card_tells_what_was_trained_on_and_how_good_it_is(made: Path) -> None:
    card = ComputeModel.load(made / "cpu.npz").card
    assert (card["num_sets"], card["num_distinct_sets"], card["seed"]) == (370, 350, 3)
    assert card["num_train"] + card["num_held_out"] == 370 and 0.1 < card["num_held_out"] / 370 < 0.2
    assert card["canary_ms"] == 3.0 and [each["canary_ms"] for each in card["profiles"]] == [[2.0], [4.0]]
    assert card["devices"] == ["some device"] and card["optimizers"] == ["rowwise_adagrad"]
    assert card["profiles"][0]["fingerprint"]["torch"] == "2.13.0"
    assert card["ranges"]["shards"] == [1, 12]
    for part in PARTS:
        assert card["figures"][part]["mape"] < 0.12 and card["figures"][part]["spearman"] > 0.98
        assert 0.3 * NOISE < card["noise_floor"][part] < 3 * NOISE


def test_the_page_has_the_figures_of_the_card(made: Path) -> None:
    card, page = ComputeModel.load(made / "cpu.npz").card, (made / "cpu.md").read_text()
    for part in PARTS:
        assert f"| {part} | {card['figures'][part]['mape']:.2%} |" in page
        assert f"{card['noise_floor'][part]:.2%} |" in page
    assert "some device" in page and "torch 2.13.0" in page and "370 measurements" in page
    assert "{" not in page and max(len(line) for line in page.splitlines() if not line.startswith("|")) <= 120


def test_json_is_the_card_and_the_default_folder_is_beside_the_runs(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", "cost", "--profiles", *map(str, files), "--json", f"run.dir={tmp_path}"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights"] == str(tmp_path / "weights" / "cpu.npz")
    assert found["card"] == json.loads(json.dumps(ComputeModel.load(Path(found["weights"])).card))


def test_one_training_is_of_one_device_type(tmp_path: Path) -> None:
    lookups = make_lookups(30, seed=1)
    keep(make_profile(lookups), tmp_path / "cpu.json")
    keep(make_profile(lookups, hardware=GPUS), tmp_path / "cuda.json")
    with pytest.raises(PlanningError, match="cpu, cuda") as caught:
        pretrain_cost([tmp_path / "cpu.json", tmp_path / "cuda.json"], tmp_path / "out", 0, ignore)
    assert caught.value.reason == "weights" and not (tmp_path / "out").exists()


def test_the_same_few_sets_many_times_are_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(make_profile(make_lookups(LEAST_SETS - 1, seed=1, passes=3)), tmp_path / "a.json")
    assert main(["pretrain", "cost", "--profiles", str(tmp_path / "a.json"), "--output", str(tmp_path)]) == 2
    assert f"{LEAST_SETS - 1} different sets" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "cpu.npz").exists()


def test_no_set_is_on_both_sides_of_the_split() -> None:
    sets = collect_sets(make_profile(make_lookups(50, seed=1, passes=3)).devices)
    train, held_out = split_sets(sets, 0.2, seed=0)
    assert (len(train), len(held_out)) == (120, 30)
    assert not set(train.sets) & set(held_out.sets)
    assert split_sets(sets, 0.2, seed=1)[1].sets != held_out.sets


def test_the_noise_floor_is_the_error_of_one_measurement_for_another() -> None:
    first, other = make_lookups(2, seed=1), make_lookups(2, seed=1)
    (faster,) = other[:1]
    doubled = Timing(2 * faster.forward.median_ms, 0.0, 9)
    repeated = type(faster)(faster.lookups, doubled, faster.backward, faster.canary_ms)
    floor = noise_floor(collect_sets(make_profile((*first, repeated, *other[1:])).devices))
    assert floor is not None
    # Twice as slow is 100 % too much, the other way round 50 % too little; the second set repeats exactly.
    assert floor["forward"] == pytest.approx((1.0 + 0.5) / 2 / 2) and floor["backward"] == 0.0
    # Backward takes twice as long as forward, so the totals are 3 and 4.
    assert floor["total"] == pytest.approx((4 / 3 - 3 / 4) / 2 / 2)
    assert noise_floor(collect_sets(make_profile(first).devices)) is None


def test_a_device_that_is_slower_throughout_measures_the_same_in_canaries() -> None:
    lookups = make_lookups(5, seed=1)
    one, two = (collect_sets(make_profile(each).devices) for each in (lookups, slower(lookups, 3.0)))
    np.testing.assert_allclose(two.times, one.times)
    np.testing.assert_allclose(two.times_ms, 3 * one.times_ms)
