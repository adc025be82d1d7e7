"""A profile as a readable JSON file: one measurement a line."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from planner.errors import PlanningError
from planner.profile import PROFILE_VERSION, Profile

VERSION_KEY = "version"
DIGITS = 6
"""Significant digits of a measured figure: far more than its spread leaves."""

# So deep inside the file is a measured lookup: it stands on one line, as does any short object on its way there.
LINE_DEPTH = 4
LINE_CHARACTERS = 400


def render_profile(profile: Profile) -> str:
    """The text of a profile's file."""
    return _render({VERSION_KEY: PROFILE_VERSION, **_plain(profile)}, 0) + "\n"


def load_profile(path: Path) -> Profile:
    """The profile that a file holds.

    Raises:
        PlanningError: The file cannot be read, is of another version, or holds something else (reason `profile`).
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlanningError(f"profile {path}: cannot be read: {error}", reason="profile") from error
    found = content.pop(VERSION_KEY, None) if isinstance(content, dict) else None
    if found != PROFILE_VERSION:
        raise PlanningError(
            f"profile {path}: expected version {PROFILE_VERSION}, found {found!r}; measure again with "
            "`shardwright profile --fresh`",
            reason="profile",
        )
    try:
        profile = _read(Profile, content, "profile")
    except _FormatError as error:
        hint = "measure again with `shardwright profile --fresh`"
        raise PlanningError(f"{path}: {error}; {hint}", reason="profile") from error
    assert isinstance(profile, Profile)
    return profile


class _FormatError(ValueError):
    """Something in the file is not what stands there in a profile."""


def _plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, enums as their values, figures with `DIGITS` digits."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Enum):
        return value.value
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _render(value: Any, depth: int) -> str:
    """JSON text: lists of objects one element a line, and objects one key a line unless they are short or deep."""
    line, inner = json.dumps(value), "\n" + " " * (depth + 1)
    if isinstance(value, list) and value and isinstance(value[0], dict) and depth < LINE_DEPTH:
        return "[" + ",".join(inner + _render(each, depth + 1) for each in value) + f"{inner[:-1]}]"
    if isinstance(value, dict) and depth < LINE_DEPTH and (depth == 0 or len(line) > LINE_CHARACTERS):
        entries = (f"{inner}{json.dumps(key)}: {_render(each, depth + 1)}" for key, each in value.items())
        return "{" + ",".join(entries) + f"{inner[:-1]}}}"
    return line


def _read(kind: Any, value: Any, where: str) -> Any:
    """The value of a declared type from its plain form; raises _FormatError with the place of what does not fit."""
    if is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    if get_origin(kind) is tuple:
        element = get_args(kind)[0]
        if not isinstance(value, list):
            raise _FormatError(f"{where}: expected a list, found {value!r:.60}")
        return tuple(_read(element, each, f"{where}[{index}]") for index, each in enumerate(value))
    if get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise _FormatError(f"{where}: expected an object, found {value!r:.60}")
        return {key: _read(get_args(kind)[1], each, f"{where}.{key}") for key, each in value.items()}
    try:
        if issubclass(kind, Enum):
            return kind(value)
    except ValueError as error:
        raise _FormatError(f"{where}: {error}") from error
    is_wanted = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    if not is_wanted:
        raise _FormatError(f"{where}: expected {kind.__name__}, found {value!r:.60}")
    return kind(value)


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    hints = _hints(kind)
    if not isinstance(value, dict) or value.keys() != hints.keys():
        found = ", ".join(value) if isinstance(value, dict) else f"{value!r:.60}"
        raise _FormatError(f"{where}: expected the keys {', '.join(hints)}, found {found}")
    return kind(**{name: _read(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, in their order."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}
