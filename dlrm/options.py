"""How a key of the configuration is declared: its default, its explanation and its limits in one line."""

from dataclasses import field
from typing import Any


def option(default: Any, text: str, **limits: Any) -> Any:
    """A config field with its one-line explanation, from which `configs/README.md` is generated.

    `choices=(...)`, `at_least=x` and `multiple_of=n` are checked when a configuration is loaded; for a list they hold
    for each of its elements, and `min_items=n` for itself.
    """
    metadata = {"help": text, **limits}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)
