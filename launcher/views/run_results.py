"""A run in one line of TensorBoard's hparams page: how it was configured and what it came to."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from launcher.schema import RunConfig

MAIN_SECTIONS = ("model", "optimizer", "planner", "train")
"""Sections of the configuration that a user varies to compare runs; of the others only `data.kind` is told."""

Key = str | int | float | bool


def main_keys(config: RunConfig, num_ranks: int) -> dict[str, Key]:
    """The keys that decide what a run is, by their dotted names; lists as text, keys that are null left out."""
    found = {section: asdict(getattr(config, section)) for section in MAIN_SECTIONS}
    return {"num_ranks": num_ranks, "data.kind": config.data.kind, **dict(_leaves(found, ""))}


def results(report: Mapping[str, Any]) -> dict[str, float]:
    """What a run came to (`read_report`), by tag; figures that it has not are left out."""
    step_ms, imbalance = report["step_ms"], report["imbalance"]
    found = {
        "result/auc": report["auc"],
        "result/ne": report["ne"],
        "result/qps": report["qps"],
        "result/step_ms": step_ms and step_ms["median"],
        "result/lookup_imbalance": imbalance and imbalance["last"],
    }
    return {tag: value for tag, value in found.items() if value is not None}


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Key]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield prefix + name, " ".join(map(str, value))
        elif value is not None:
            yield prefix + name, value
