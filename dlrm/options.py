"""How a key of the configuration is declared: its default, its explanation and its limits in one line."""

from dataclasses import field
from typing import Any


def option(default: Any, text: str, **limits: Any) -> Any:
    """A config field with its one-line explanation, from which `configs/README.md` is generated.

    `choices=(...)` and `at_least=x` are checked when a configuration is loaded.
    """
    metadata = {"help": text, **limits}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)
