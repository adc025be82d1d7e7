"""Profiles whose figures follow simple laws, so that models of them are known to be right or wrong."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from launcher.run_dir import write_beside
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
from planner.topology import load_topology
from tests.planner.cost.lookup_sets import law_ms, measurements, random_sets

CPU_PAIR = Path(__file__).parents[2] / "configs" / "hardware" / "cpu_x2.yaml"
GPUS = CPU_PAIR.with_name("h100_80gb_x8.yaml")
COLLECTIVES = ("all_to_all", "all_reduce")
LATENCY_MS, MS_PER_BYTE = 0.2, 1e-6


def timing(median_ms: float) -> Timing:
    return Timing(median_ms, 0.01 * median_ms, 9)


def make_lookups(
    count: int, seed: int, canary_ms: float = 1.0, noise: float = 0.0, passes: int = 1
) -> tuple[LookupMeasurement, ...]:
    """Random sets whose times follow `lookup_sets.law_ms`, each measured in every pass."""
    sets = random_sets(count, seed) * passes
    errors = np.random.default_rng(seed).lognormal(0, noise, (len(sets), 2))
    return measurements(sets, law_ms(sets, canary_ms) * errors, canary_ms)


def make_collectives(count: int, seed: int, slower: float = 1.0) -> tuple[CollectiveMeasurement, ...]:
    """Two ranks; the time is a latency and what the busiest rank sends."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        sent = tuple(8 * int(each) for each in 2 ** rng.uniform(7, 20, 2))
        took_ms = slower * (LATENCY_MS + MS_PER_BYTE * max(sent))
        name = COLLECTIVES[index % len(COLLECTIVES)]
        sent = sent if name == "all_to_all" else (max(sent),) * 2
        found.append(
            CollectiveMeasurement(
                name, "intra_node", sent, (0.0, 0.0), (took_ms,) * 2, timing(took_ms), LATENCY_MS * slower
            )
        )
    return tuple(found)


def make_profile(
    lookups: tuple[LookupMeasurement, ...],
    collectives: tuple[CollectiveMeasurement, ...] = (),
    hardware: Path = CPU_PAIR,
) -> Profile:
    """One device kind."""
    topology, canary_ms = load_topology(hardware), lookups[0].canary_ms
    chains = [
        DenseMeasurement(64 * n, (128, 64 * n, 32), timing(0.1 * n * n), timing(0.2 * n * n), 1.0) for n in range(1, 9)
    ]
    device = DeviceProfile(
        kind=topology.devices[0].kind,
        name="some device",
        free_bytes=2**33,
        lookup_canary=timing(canary_ms),
        dense_canary=timing(1.0),
        lookups=lookups,
        dense=tuple(chains),
        copies=(CopyMeasurement("device_to_device", 2**22, timing(1.0)),),
    )
    fingerprint = {"devices": "some device x 2", "torch": "2.13.0", "optimizer": "rowwise_adagrad"}
    return Profile(fingerprint, "2026-01-02T03:04:05+00:00", 58.5, topology, (device,), collectives)


def keep(profile: Profile, path: Path) -> Profile:
    """Writes the profile's file; gives what is read from it."""
    write_beside(path, render_profile(profile))
    return load_profile(path)


def slower(measured: tuple[LookupMeasurement, ...], factor: float) -> tuple[LookupMeasurement, ...]:
    """The same sets on a device that is slower throughout, its canary included."""
    return tuple(
        replace(
            each,
            forward=timing(each.forward.median_ms * factor),
            backward=timing(each.backward.median_ms * factor),
            canary_ms=each.canary_ms * factor,
        )
        for each in measured
    )
