"""The reference of every configuration key, generated from the dataclasses: `python -m launcher.config_docs`."""

import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.schema import RunConfig

HEAD = """# Configuration

Every key, its type, its default and what it does. This page is generated from the dataclasses of the code:
`python -m launcher.config_docs configs/README.md` writes it anew, and a test holds it to them.

A value comes from its default here, then from the file given with `--config`, then from `key=value` on the
command line; the last one wins. Lists and mappings are written as in YAML: `'data.table.dense=[age,price]'`.

| shipped file | what it is for |
|---|---|
| `quickstart.yaml` | synthetic data with a planted teacher; trains on any machine in about a minute |
| `quickstart_drift.yaml` | the same with a table that gets hot at step 300: shows `resharding.enabled=true` |
| `criteo_kaggle.yaml` | the Criteo Kaggle log as distributed (`data.path=FILE`) |
| `anime.yaml` | a Parquet table with a list column (`data.path=FILE`) |
| `mlperf_dlrm_v2.yaml` | the 26 tables of MLPerf's DLRM-DCN-v2, for planning on `hardware/` presets |
| `hardware/*.yaml` | devices and links of machines that need not be at hand (`plan --topology FILE`) |
"""


def render_reference() -> str:
    """The whole page as Markdown."""
    return HEAD + "".join(_sections(RunConfig, ""))


def _sections(schema: type, prefix: str) -> Iterator[str]:
    """A section for `schema`'s own keys, then one for each dataclass below it."""
    fields = dataclasses.fields(schema)
    own = [field for field in fields if not dataclasses.is_dataclass(field.type)]
    if own:
        yield f"\n## {prefix.rstrip('.') or 'top level'}\n\n{inspect.getdoc(schema)}\n\n{_rows(own, schema, prefix)}"
    for field in fields:
        inner = _dataclass_in(typing.get_type_hints(schema)[field.name])
        if inner is not None:
            is_list = not dataclasses.is_dataclass(field.type)
            yield from _sections(inner, f"{prefix}{field.name}{'[]' if is_list else ''}.")


def _rows(fields: list[dataclasses.Field[Any]], schema: type, prefix: str) -> str:
    hints = typing.get_type_hints(schema)
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for field in fields:
        meaning = field.metadata["help"].replace("|", "\\|")
        kind = _type_name(hints[field.name]).replace("|", "\\|")
        lines.append(f"| `{prefix}{field.name}` | {kind} | `{_default(field)}` | {meaning} |")
    return "\n".join(lines) + "\n"


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return str(field.default_factory())
    return "null" if field.default is None else str(field.default)


def _type_name(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        return " | ".join("null" if part is type(None) else _type_name(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is not None:
        inside = ", ".join(_type_name(part) for part in typing.get_args(hint))
        return f"{typing.get_origin(hint).__name__}[{inside}]"
    return "section" if dataclasses.is_dataclass(hint) else hint.__name__


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass that a hint is, or that it is a list of."""
    for candidate in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(candidate):
            return typing.cast(type, candidate)
    return None


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render_reference())
