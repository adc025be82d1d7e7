"""Trained policies as files: an npz of plain arrays with the card of what they were trained on."""

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from planner.errors import PlanningError
from planner.policy.network import FEATURES, Blindness, PolicyNetwork
from planner.policy.task_features import SHARD_FEATURES
from planner.weights_file import NETWORK, UNREADABLE, read_weights, save_weights

SHIPPED = Path(__file__).parent / "weights" / "policy.npz"
"""The weights that ship with the package."""

FORMAT = 1
"""Version of the file; another one is refused."""


@dataclass(frozen=True, eq=False)
class TrainedPolicy:
    """A network and its card.

    Attributes:
        network: The policy.
        blindness: What it is not shown.
        card: What it was trained on and how good it is, for people.
    """

    network: PolicyNetwork
    blindness: Blindness
    card: dict[str, Any]

    def save(self, path: Path) -> None:
        """Writes the weights, beside and renamed."""
        arrays = {f"{NETWORK}{name}": tensor.numpy() for name, tensor in self.network.state_dict().items()}
        about = {"format": FORMAT, "columns": _columns(), "blindness": asdict(self.blindness), "card": self.card}
        save_weights(path, about, arrays)

    @classmethod
    def load(cls, path: Path) -> "TrainedPolicy":
        """The policy of a file that `save` wrote; raises PlanningError (reason `weights`) for any other."""
        try:
            about, arrays = read_weights(path, FORMAT)
            if about["columns"] != _columns():
                raise ValueError("it was trained on other features than this version has")
            blindness = Blindness(**about["blindness"])
            network = PolicyNetwork(blindness)
            weights = {name.removeprefix(NETWORK): torch.from_numpy(array) for name, array in arrays.items()}
            network.load_state_dict(weights)
            return cls(network, blindness, about["card"])
        except UNREADABLE as error:
            raise PlanningError(
                f"policy weights {path}: cannot be read: {error}; make them with `shardwright pretrain policy`",
                reason="weights",
            ) from error


@lru_cache(maxsize=4)
def load_policy(path: Path) -> TrainedPolicy:
    """As `TrainedPolicy.load`, once a path."""
    return TrainedPolicy.load(path)


def _columns() -> dict[str, list[str]]:
    """All features by name, so that weights and features cannot be mismatched unnoticed."""
    return {name: list(columns) for name, columns in {**FEATURES, "shard": SHARD_FEATURES}.items()}
