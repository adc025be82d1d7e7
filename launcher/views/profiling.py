"""A profile on the terminal: the bar while it is measured, and what it came to."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cluster.profiler import Progress as ShowProgress
from launcher.profiling import KeptProfile
from launcher.views.tables import make_table, number
from planner.lookups import LookupArrays
from planner.profile import CollectiveMeasurement, DeviceProfile, LookupMeasurement, Timing
from planner.text import human_bytes

STARTING = "profile: starting the workers"
MS_PER_S = 1e3
FLOAT_BYTES = 4
ID_BYTES = 8
SORT_BYTES = 16


@contextmanager
def follow_profile(console: Console, budget_s: float) -> Iterator[ShowProgress]:
    """A bar of the time budget until the context ends; where the output is no terminal, a line a part."""
    if not console.is_terminal:
        console.print(f"{STARTING} (at most {budget_s:.0f} s)")
        yield PlainProgress(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn(f"of {budget_s:.0f} s"))
    with Progress(*columns, console=console, transient=True) as bar:
        task, began_s = bar.add_task(STARTING, total=budget_s), time.monotonic()

        def show(part: str, num_done: int, num_planned: int) -> None:
            text = f"profile: {part} {num_done}/{num_planned}"
            bar.update(task, description=text, completed=min(budget_s, time.monotonic() - began_s))

        yield show


class PlainProgress:
    """One line when a part begins."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._part = ""

    def __call__(self, part: str, num_done: int, num_planned: int) -> None:
        """Rank 0 has so many measurements of a part."""
        if part != self._part:
            self._part = part
            self._console.print(f"profile: {part}")


def profile_dict(kept: KeptProfile) -> dict[str, Any]:
    """What `profile --json` prints."""
    profile = kept.profile
    return {
        "path": str(kept.path),
        "reused": kept.is_reused,
        "created": profile.created,
        "seconds": profile.seconds,
        "fingerprint": profile.fingerprint,
        "devices": [_device_dict(device, kept) for device in profile.devices],
        "collectives": _collective_dicts(profile.collectives),
    }


def render_profile_summary(kept: KeptProfile) -> Iterator[Table | str]:
    """The profile for people: devices, collectives, where it is."""
    found = profile_dict(kept)
    yield make_table("devices", _DEVICE_COLUMNS, map(_device_row, found["devices"]))
    if found["collectives"]:
        yield make_table("collectives", _COLLECTIVE_COLUMNS, map(_collective_row, found["collectives"]), left=2)
    yield f"measured in {kept.profile.seconds:.0f} s; GB/s: median over sets of the bytes that a pass must move"
    yield str(kept)


def effective_bytes_per_s(measured: tuple[LookupMeasurement, ...]) -> tuple[float, float]:
    """Median over sets of the bytes that the forward and the backward pass must move, over the time they took.

    The bytes are those of `planner.cost.analytic`, with the distinct rows that were counted.
    """
    shards = LookupArrays.of([each.lookups for each in measured])
    ids = shards.samples * shards.ids_per_sample
    pooled_bytes = shards.samples * shards.num_features * shards.num_cols * FLOAT_BYTES
    row_bytes = shards.num_cols * shards.weight_bytes
    forward = ids * (row_bytes + ID_BYTES) + pooled_bytes
    update = 2 * shards.distinct_rows * (row_bytes + shards.state_bytes)
    backward = ids * (shards.num_cols * FLOAT_BYTES + SORT_BYTES) + update
    times_ms = np.array([(each.forward.median_ms, each.backward.median_ms) for each in measured])
    sums = [np.bincount(shards.set_index, each, minlength=len(measured)) for each in (forward, backward)]
    return tuple(  # type: ignore[return-value]
        float(np.median(num_bytes / times_ms[:, index])) * MS_PER_S for index, num_bytes in enumerate(sums)
    )


def fit_line(num_bytes: NDArray[np.float64], times_ms: NDArray[np.float64]) -> tuple[float, float]:
    """Latency ms and bytes/s of `ms = latency + bytes / rate` by least squares on the relative error, both >= 0."""
    design = np.stack([1 / times_ms, num_bytes / times_ms], axis=1)
    latency_ms, ms_per_byte = np.linalg.lstsq(design, np.ones(len(times_ms)), rcond=None)[0]
    if latency_ms < 0:
        latency_ms, ms_per_byte = 0.0, design[:, 1].sum() / (design[:, 1] ** 2).sum()
    return float(latency_ms), float(MS_PER_S / ms_per_byte) if ms_per_byte > 0 else float("inf")


_DEVICE_COLUMNS = (
    "device kind",
    "ranks",
    "free",
    "sets",
    "canary ms",
    "noise",
    "forward GB/s",
    "backward GB/s",
    "chains",
    "copy GB/s",
)
_COLLECTIVE_COLUMNS = ("collective", "link", "ranks", "measured", "latency ms", "GB/s", "noise")


def _device_dict(device: DeviceProfile, kept: KeptProfile) -> dict[str, Any]:
    forward, backward = effective_bytes_per_s(device.lookups)
    largest = max(device.copies, key=lambda copy: (copy.kind == "device_to_device", copy.num_bytes))
    return {
        "kind": device.kind,
        "name": device.name,
        "num_ranks": sum(each.kind == device.kind for each in kept.profile.topology.devices),
        "free_bytes": device.free_bytes,
        "num_lookups": len(device.lookups),
        "lookup_canary": vars(device.lookup_canary),
        "noise": _noise([timing for each in device.lookups for timing in (each.forward, each.backward)]),
        "forward_bytes_per_s": forward,
        "backward_bytes_per_s": backward,
        "num_dense": len(device.dense),
        "dense_canary": vars(device.dense_canary),
        "copy_bytes_per_s": largest.num_bytes / largest.timing.median_ms * MS_PER_S,
    }


def _collective_dicts(measured: tuple[CollectiveMeasurement, ...]) -> list[dict[str, Any]]:
    """One entry a collective, link class and number of ranks; those that started together give the line."""
    groups: dict[tuple[str, str, int], list[CollectiveMeasurement]] = {}
    for each in measured:
        groups.setdefault((each.collective, each.link, each.world_size), []).append(each)
    found = []
    for (name, link, world_size), members in sorted(groups.items()):
        together = [each for each in members if not any(each.skew_ms)]
        sizes = np.array([max(each.sent_bytes) for each in together], dtype=np.float64)
        latency_ms, rate = fit_line(sizes, np.array([each.slowest.median_ms for each in together]))
        found.append(
            {
                "collective": name,
                "link": link,
                "world_size": world_size,
                "num_measured": len(members),
                "latency_ms": latency_ms,
                "bytes_per_s": rate if np.isfinite(rate) else None,
                "noise": _noise([each.slowest for each in members]),
            }
        )
    return found


def _noise(timings: list[Timing]) -> float:
    """Median over measurements of the inter-quartile range over the median of the repeats."""
    return float(np.median([each.iqr_ms / each.median_ms for each in timings]))


def _device_row(device: dict[str, Any]) -> tuple[str, ...]:
    rates = ("forward_bytes_per_s", "backward_bytes_per_s")
    return (
        device["kind"],
        str(device["num_ranks"]),
        human_bytes(device["free_bytes"]),
        str(device["num_lookups"]),
        number(device["lookup_canary"]["median_ms"], 2),
        f"{device['noise']:.0%}",
        *(number(device[rate] / 1e9, 2) for rate in rates),
        str(device["num_dense"]),
        number(device["copy_bytes_per_s"] / 1e9, 1),
    )


def _collective_row(found: dict[str, Any]) -> tuple[str, ...]:
    rate = found["bytes_per_s"]
    return (
        found["collective"],
        found["link"],
        str(found["world_size"]),
        str(found["num_measured"]),
        number(found["latency_ms"], 3),
        number(rate / 1e9 if rate else None, 2),
        f"{found['noise']:.0%}",
    )
