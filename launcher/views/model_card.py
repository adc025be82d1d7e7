"""The model card of learned costs, a page for people, from the figures that the weights carry."""

from typing import Any

PAGE = """\
# Learned cost of fused lookups: {device_type}

Milliseconds of a fused embedding lookup, forward and backward with the update, for any set of shards. The weights are
in `{device_type}.npz`; `shardwright pretrain cost` wrote them and this page.

## Trained on

Measured by `shardwright profile` with the kernels that train, all ranks busy: {num_sets} measurements of
{num_distinct_sets} random fused sets on {devices}, optimizer {optimizers}. {num_train} measurements train,
{num_held_out} of other sets test. Times are divided by the canary, one fixed lookup measured along
(running median; overall {canary_ms:.3f} ms), so that a slower device takes as many times longer.

| | smallest | largest |
|---|---|---|
{ranges}

| profile | sets | canary ms | devices | versions |
|---|---|---|---|---|
{profiles}

## Held-out error

Random split by sets, {held_out_share:.0%} of the measurements, seed {seed}.
{noise}

| | MAPE | RMSE ms | Spearman | noise floor |
|---|---|---|---|---|
{figures}

## Limits

Beyond the ranges above the estimate keeps its order of magnitude and no more; the spread of the ensemble's
{num_members} members tells where that begins. On another device of this type a few dozen of its own measurements adapt
the prices of the work, as `train` does by itself with its profile.

Training: {options}.
"""

RANGES = {
    "samples": "samples of a batch",
    "shards": "shards of a set",
    "num_rows": "rows of a shard",
    "num_cols": "columns of a shard",
    "ids_per_sample": "ids a sample",
    "distinct_rows": "distinct rows of a batch",
    "num_features": "bags a sample",
    "total_ms": "measured ms, forward and backward",
}

NOISE = (
    "The noise floor is the MAPE of predicting one measurement of a set by another one of the same set; a model\n"
    "without any error of its own would have about 0.7 of it."
)
NO_NOISE = "No set was measured twice, so the noise floor is not known."


def render_card(card: dict[str, Any]) -> str:
    """The page of a card that `launcher.pretrain` made."""
    lists = {name: ", ".join(card[name]) for name in ("devices", "optimizers")}
    return PAGE.format(
        **card
        | lists
        | {
            "held_out_share": card["num_held_out"] / card["num_sets"],
            "ranges": "\n".join(f"| {text} | {_range(card['ranges'][name])} |" for name, text in RANGES.items()),
            "profiles": "\n".join(map(_profile_row, card["profiles"])),
            "figures": "\n".join(_figure_row(name, card) for name in card["figures"]),
            "noise": NOISE if card["noise_floor"] else NO_NOISE,
            "num_members": card["options"]["num_members"],
            "options": ", ".join(f"{name} {value}" for name, value in card["options"].items()),
        }
    )


def _range(limits: list[float]) -> str:
    return " | ".join(f"{limit:,.4g}" if limit < 1e4 else f"{limit:,.0f}" for limit in limits)


def _profile_row(profile: dict[str, Any]) -> str:
    fingerprint = profile["fingerprint"]
    canaries = ", ".join(f"{canary_ms:.3f}" for canary_ms in profile["canary_ms"])
    versions = ", ".join(f"{name} {fingerprint[name]}" for name in fingerprint if name in VERSIONED)
    cells = (profile["created"], str(profile["num_sets"]), canaries, fingerprint.get("devices", "-"), versions)
    return f"| {' | '.join(cells)} |"


def _figure_row(name: str, card: dict[str, Any]) -> str:
    scores, floor = card["figures"][name], card["noise_floor"]
    cells = (f"{scores['mape']:.2%}", f"{scores['rmse_ms']:.2f}", f"{scores['spearman']:.4f}")
    return f"| {name} | {' | '.join(cells)} | {f'{floor[name]:.2%}' if floor else '-'} |"


VERSIONED = ("driver", "torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu")
"""Keys of a fingerprint that are versions."""
