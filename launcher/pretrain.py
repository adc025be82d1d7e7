"""`shardwright pretrain cost`: trains the learned cost of lookups from stored profiles."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launcher.bench.baselines import Progress
from launcher.bench.metrics import Scores, error_metrics, render_metrics
from launcher.measured_sets import PARTS, MeasuredSets, collect_sets, device_types, noise_floor, split_sets, with_total
from launcher.pretrain_host import pretrain_host
from launcher.run_dir import write_beside
from launcher.views.model_card import render_card
from planner.cost.compute import ComputeModel
from planner.cost.fit import FORWARD_BACKWARD, FitOptions, fit_compute
from planner.errors import PlanningError
from planner.profile import Profile
from planner.profile_file import load_profile
from planner.topology import DeviceType

HELD_OUT_SHARE = 0.15
"""Of the sets; the others train the weights that are written, so that the figures are of these very weights."""

LEAST_SETS = 40
"""With fewer, six or fewer would be left to test on."""

LEAST_REPEATED = 20
"""Second measurements from which a noise floor means something."""


@dataclass(frozen=True)
class Pretrained:
    """Files of a trained model and what its card says."""

    weights: Path
    card_page: Path
    card: dict[str, Any]
    host: Path | None

    def to_dict(self) -> dict[str, Any]:
        """What `pretrain cost --json` prints."""
        paths = {"weights": self.weights, "card_page": self.card_page, "host": self.host}
        return {name: str(path) if path else None for name, path in paths.items()} | {"card": self.card}

    def render(self) -> Iterator[str]:
        """Lines for people."""
        floor = self.card["noise_floor"]
        for name, scores in self.card["figures"].items():
            noise = f", noise floor {floor[name]:.2%}" if floor else ""
            yield f"held out, {name}: {render_metrics(scores)}{noise}"
        yield f"weights: {self.weights}"
        yield f"model card: {self.card_page}"
        if self.host:
            yield f"host costs: {self.host}"
        yield f"plan with them: planner.cost_weights={self.weights}"


def pretrain_cost(
    paths: Sequence[Path], folder: Path, seed: int, progress: Progress, steps: Path | None = None
) -> Pretrained:
    """Trains a model on the fused sets of some profiles and writes it with its model card.

    Args:
        paths: Files of `shardwright profile`, all of one device type.
        folder: Where `<device type>.npz` and `<device type>.md` go.
        seed: Of the split, the first weights and the order of batches.
        progress: Is told how far it is.
        steps: Measured steps of the machine of the profiles, to fit the host's costs to as well.

    Raises:
        PlanningError: A file cannot be read (reason `profile`), the profiles are of different device types, or hold
            too few sets (reason `weights`).
    """
    profiles = [load_profile(path) for path in paths]
    device_type = common_device_type(profiles)
    model = train_model(profiles, seed, progress)
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{device_type}.npz"
    model.save(weights)
    page = weights.with_suffix(".md")
    host = None if steps is None else pretrain_host(steps, profiles, model, folder)
    write_beside(page, render_card(model.card))
    return Pretrained(weights, page, model.card, host)


def common_device_type(profiles: Sequence[Profile]) -> DeviceType:
    """The one type of all devices; raises PlanningError (reason `weights`) where there are two."""
    found = set.union(*map(device_types, profiles))
    if len(found) > 1:
        raise PlanningError(
            f"the profiles are of the device types {', '.join(sorted(found))}; weights are for one: give the files of "
            "each type to a run of its own",
            reason="weights",
        )
    return found.pop()


def train_model(
    profiles: Sequence[Profile],
    seed: int,
    progress: Progress,
    options: FitOptions | None = None,
) -> ComputeModel:
    """A model of the profiles' sets in canaries, with its card; `options` as `fit_compute`."""
    options = options or FitOptions()
    sets = collect_sets([device for profile in profiles for device in profile.devices])
    num_distinct = len(set(sets.sets))
    if num_distinct < LEAST_SETS:
        raise PlanningError(
            f"the profiles hold {num_distinct} different sets, expected at least {LEAST_SETS}: measure longer "
            "(profile.budget_s), or with more seeds (profile.seed), and give all files",
            reason="weights",
        )
    train, held_out = split_sets(sets, HELD_OUT_SHARE, seed)
    model = fit_compute(train.lookups, train.times, seed, progress, FORWARD_BACKWARD, options)
    card = describe_training(profiles, sets) | {
        "num_train": len(train),
        "num_held_out": len(held_out),
        "figures": score_sets(model, held_out),
        "noise_floor": noise_floor(sets) if len(sets) - num_distinct >= LEAST_REPEATED else None,
        "seed": seed,
        "options": asdict(options),
    }
    return ComputeModel(model.network, model.mean, model.scale, model.outputs, card)


def score_sets(model: ComputeModel, sets: MeasuredSets) -> Scores:
    """Errors by part on measured sets; estimates are brought to the speed of each measurement by its canary."""
    estimated_ms = with_total(model.predict_ms(sets.lookups).astype(np.float64) * sets.canary_ms[:, None])
    measured_ms = with_total(sets.times_ms)
    return {name: error_metrics(estimated_ms[:, part], measured_ms[:, part]) for part, name in enumerate(PARTS)}


def describe_training(profiles: Sequence[Profile], sets: MeasuredSets) -> dict[str, Any]:
    """What a model was trained on, for its card."""
    devices = [device for profile in profiles for device in profile.devices]
    return {
        "device_type": common_device_type(profiles).value,
        "devices": sorted({device.name for device in devices}),
        "optimizers": sorted({each.optimizer.value for each in sets.sets}),
        "num_sets": len(sets),
        "num_distinct_sets": len(set(sets.sets)),
        "canary_ms": float(np.median([device.lookup_canary.median_ms for device in devices])),
        "ranges": describe_ranges(sets),
        "profiles": [
            {
                "created": profile.created,
                "num_sets": sum(len(device.lookups) for device in profile.devices),
                "canary_ms": [device.lookup_canary.median_ms for device in profile.devices],
                "fingerprint": profile.fingerprint,
            }
            for profile in profiles
        ],
    }


def describe_ranges(sets: MeasuredSets) -> dict[str, list[float]]:
    """The smallest and the largest of what the sets ask for."""
    lookups = sets.lookups
    found = {
        "samples": lookups.samples,
        "shards": np.bincount(lookups.set_index, minlength=lookups.num_sets),
        "num_rows": lookups.num_rows,
        "num_cols": lookups.num_cols,
        "ids_per_sample": lookups.ids_per_sample,
        "distinct_rows": lookups.distinct_rows,
        "num_features": lookups.num_features,
        "total_ms": sets.times_ms.sum(axis=1),
    }
    return {name: [float(values.min()), float(values.max())] for name, values in found.items()}
