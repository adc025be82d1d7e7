"""A profile's file holds what was measured, one measurement a line, and says what is wrong with another's."""

import json
from pathlib import Path

import pytest

from planner.errors import PlanningError
from planner.lookups import NUM_REUSE_BINS, LookupSet, LookupShard
from planner.profile import (
    CollectiveMeasurement,
    CopyMeasurement,
    DenseMeasurement,
    DeviceProfile,
    LookupMeasurement,
    Profile,
    Timing,
)
from planner.profile_file import load_profile, render_profile
from planner.tables import OptimizerKind
from planner.topology import load_topology

TIMING = Timing(1.25, 0.125, 17)


def lookups(samples: int) -> LookupMeasurement:
    reuse = (0.75, 0.25, *[0.0] * (NUM_REUSE_BINS - 2))
    shards = (LookupShard(1000, 64, 2.5, 400.0, reuse), LookupShard(7, 4, 1.0, 7.0, reuse, num_features=2))
    return LookupMeasurement(LookupSet(samples, OptimizerKind.SGD, shards), TIMING, TIMING, 4.5)


@pytest.fixture
def profile(repository: Path) -> Profile:
    return Profile(
        fingerprint={"devices": "cpu_core: some CPU x 2", "world_size": "2"},
        created="2026-01-02T03:04:05+00:00",
        seconds=58.5,
        topology=load_topology(repository / "configs" / "hardware" / "cpu_x2.yaml"),
        devices=(
            DeviceProfile(
                kind="cpu_core",
                name="some CPU",
                free_bytes=2**33,
                lookup_canary=TIMING,
                dense_canary=TIMING,
                lookups=(lookups(128), lookups(4096)),
                dense=(DenseMeasurement(512, (64, 32, 8), TIMING, TIMING, 1.5),),
                copies=(CopyMeasurement("device_to_device", 65536, TIMING),),
            ),
        ),
        collectives=(
            CollectiveMeasurement("all_to_all", "intra_node", (4096, 8192), (0.0, 1.5), (2.0, 0.5), TIMING, 0.4),
        ),
    )


def write(path: Path, profile: Profile, *changes: tuple[str, str]) -> Path:
    text = render_profile(profile)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def test_a_file_gives_back_the_profile(profile: Profile, tmp_path: Path) -> None:
    assert load_profile(write(tmp_path / "p.json", profile)) == profile


def test_every_measurement_is_a_line(profile: Profile) -> None:
    text = render_profile(profile)
    lines = [line for line in text.splitlines() if '"forward"' in line or '"collective"' in line]
    assert len(lines) == 4
    assert all(json.loads(line.strip().removesuffix(",")) for line in lines)
    assert json.loads(text)["devices"][0]["lookups"][1]["lookups"]["samples"] == 4096


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        ('"version": 1', '"version": 0', "expected version 1, found 0"),
        ('"free_bytes": 8589934592', '"free_bytes": "much"', r"devices\[0\].free_bytes: expected int, found 'much'"),
        ('"samples": 4096', '"samples": true', r"lookups\[1\].lookups.samples: expected int, found True"),
        ('"optimizer": "sgd"', '"optimizer": "lion"', "'lion' is not a valid OptimizerKind"),
        ('"num_bytes"', '"bytes"', r"copies\[0\]: expected the keys kind, num_bytes, timing, found kind, bytes"),
        ("{", "[", "cannot be read"),
    ],
)
def test_what_is_no_profile_is_refused_with_its_place(
    profile: Profile, tmp_path: Path, old: str, new: str, hint: str
) -> None:
    with pytest.raises(PlanningError, match=hint) as info:
        load_profile(write(tmp_path / "p.json", profile, (old, new)))
    assert info.value.reason == "profile" and "p.json" in str(info.value)
