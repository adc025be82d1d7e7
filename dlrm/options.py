"""How a configuration key is declared: default, explanation and limits in one line; and the check of the limits."""

from collections.abc import Iterator, Mapping
from dataclasses import field, fields, is_dataclass
from math import isfinite
from typing import Any

from planner.text import did_you_mean

# No key means an integer beyond this one: it would overflow an int64 somewhere.
MOST_INT = 2**62


def option(default: Any, text: str, **limits: Any) -> Any:
    """A config field with its one-line explanation, from which `configs/README.md` is generated.

    `choices=(...)`, `at_least=x` and `multiple_of=n` are checked when a configuration is loaded; for a list they hold
    for each of its elements, and `min_items=n` for itself.
    """
    metadata = {"help": text, **limits}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def limit_faults(section: Any, prefix: str = "") -> Iterator[str]:
    """Faults of a config dataclass's values, and of those inside it, against the limits of their fields.

    One line a fault, which starts with the dotted key below `prefix`.
    """
    for each in fields(section):
        key, value = prefix + each.name, getattr(section, each.name)
        if is_dataclass(value):
            yield from limit_faults(value, f"{key}.")
            continue
        if isinstance(value, list) and len(value) < each.metadata.get("min_items", 0):
            yield f"{key}: the list needs {each.metadata['min_items']} element or more"
        for index, element in enumerate(value if isinstance(value, list) else [value]):
            place = f"{key}[{index}]" if isinstance(value, list) else key
            if is_dataclass(element):
                yield from limit_faults(element, f"{place}.")
            elif element is not None:
                yield from _value_faults(place, element, each.metadata)


def _value_faults(key: str, value: Any, metadata: Mapping[str, Any]) -> Iterator[str]:
    is_usable = abs(value) < MOST_INT if isinstance(value, int) else not isinstance(value, float) or isfinite(value)
    if not is_usable:
        yield f"{key}: {value} is not a number that can be used"
        return
    choices, least, factor = (metadata.get(name) for name in ("choices", "at_least", "multiple_of"))
    if choices and value not in choices:
        yield f"{key}: {value!r} is not one of {', '.join(choices)}{did_you_mean(str(value), choices)}"
    if least is not None and value < least:
        yield f"{key}: {value} is below the least value, {least}"
    if factor is not None and value % factor:
        yield f"{key}: {value} is not a multiple of {factor}"
