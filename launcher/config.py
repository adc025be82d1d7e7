"""The one door through which configuration comes in: defaults < file < command line, all errors at once."""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dlrm.config import parse_steps
from dlrm.data.check import config_problems
from dlrm.injection.config import injection_problems
from dlrm.options import limit_faults
from launcher.schema import RunConfig
from planner.search.registry import STRATEGIES
from planner.text import did_you_mean


class ConfigError(Exception):
    """Everything that is wrong with a configuration, one line a fault."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        head = "the configuration has a fault" if len(faults) == 1 else f"the configuration has {len(faults)} faults"
        super().__init__("\n".join([f"{head}:", *(f"  {fault}" for fault in faults)]))


def load_config(path: Path | None, overrides: list[str]) -> RunConfig:
    """The typed configuration of `path` and `key=value` overrides; raises ConfigError with every fault.

    >>> load_config(None, ["train.batch_size=64"]).train.batch_size
    64
    """
    faults: list[str] = []
    config = OmegaConf.structured(RunConfig)
    if path is not None:
        for key, value in _walk(_read(path), RunConfig, "", str(path), faults):
            _assign(config, key, value, str(path), faults)
    for override in overrides:
        for key, value in _walk(_parse(override, faults), RunConfig, "", "command line", faults):
            _assign(config, key, value, "command line", faults)
    loaded = OmegaConf.to_object(config)
    assert isinstance(loaded, RunConfig)
    faults += limit_faults(loaded)
    # What values mean together is judged once each of them is one that can be.
    faults += [] if faults else _meaning_faults(loaded)
    if faults:
        raise ConfigError(faults)
    return loaded


def render_config(config: RunConfig) -> str:
    """The configuration as YAML, every key with its value; loading it gives an equal one."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def list_keys(schema: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Every dotted key below a dataclass, with its field."""
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(field.type):
            yield from list_keys(field.type, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        else:
            yield prefix + field.name, field


def _meaning_faults(config: RunConfig) -> Iterator[str]:
    """Faults that no single field's limits can tell."""
    if config.run.name is not None and Path(config.run.name).name != config.run.name:
        yield f"run.name: {config.run.name!r} is not the name of a folder; run.dir says where runs are"
    if config.planner.strategy not in STRATEGIES:
        hint = did_you_mean(config.planner.strategy, tuple(STRATEGIES)) or f"; known: {', '.join(STRATEGIES)}"
        yield f"planner.strategy: there is no strategy {config.planner.strategy!r}{hint}"
    for section in ("telemetry", "imbalance"):
        if config.resharding.enabled and not getattr(config, section).enabled:
            yield (
                f"resharding.enabled: true, but {section}.enabled is false: what is to be mended is found by "
                f"measuring and watching every step; set {section}.enabled=true"
            )
    yield from config_problems(config.data)
    yield from injection_problems(config.inject)
    if config.profiler.steps is not None:
        try:
            parse_steps(config.profiler.steps)
        except ValueError as error:
            yield str(error)


class PlainLoader(yaml.SafeLoader):
    """YAML in which 50:52 is text and 1e-3 a number; YAML 1.1 reads them as 3,052 and as text.

    Source: YAML 1.2, section 10.3.2, core schema.
    """


PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[-1] not in ("int", "float", "timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9][0-9_]*$|0x[0-9a-fA-F]+$"), list("-+0123456789")
)
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def _read(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(), Loader=PlainLoader) or {}
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError([f"there is no file {path}{hint}"]) from None
    except (YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path} cannot be read as YAML: " + " ".join(str(error).split())]) from None


def _parse(override: str, faults: list[str]) -> Any:
    if "=" not in override:
        faults.append(f"command line: {override!r} is neither an option nor key=value")
        return {}
    key, _, text = override.partition("=")
    try:
        value = yaml.load(text, Loader=PlainLoader)
    except YAMLError as error:
        faults.append(f"command line: {override!r} cannot be read: " + " ".join(str(error).split()))
        return {}
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def _walk(layer: Any, schema: type, prefix: str, source: str, faults: list[str]) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every known leaf of `layer`; unknown keys become faults."""
    if layer is None:
        return
    if not isinstance(layer, Mapping):
        faults.append(f"{source}: {prefix.rstrip('.') or 'the file'} should hold keys, found {layer!r}")
        return
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for name, value in layer.items():
        if name not in fields:
            faults.append(f"{source}: there is no key {prefix}{name}{_suggest(str(name), prefix, list(fields))}")
        elif dataclasses.is_dataclass(fields[name].type):
            yield from _walk(value, fields[name].type, f"{prefix}{name}.", source, faults)  # type: ignore[arg-type]
        else:
            yield prefix + name, value


def _assign(config: DictConfig, key: str, value: Any, source: str, faults: list[str]) -> None:
    try:
        OmegaConf.update(config, key, value, merge=True)
    except OmegaConfBaseException as error:
        text = str(error).splitlines()[0]
        inside = getattr(error, "full_key", None) or key
        faults.append(f"{source}: {inside if inside.startswith(key) else f'{key}: {inside}'}: {text}")


def _suggest(name: str, prefix: str, siblings: list[str]) -> str:
    """A near key beside the wrong one, or anywhere."""
    every = {key: key for key, _ in list_keys(RunConfig)}
    beside = difflib.get_close_matches(name, siblings, n=1)
    if beside:
        return f"; did you mean {prefix}{beside[0]}?"
    anywhere = [key for key in every if key.rsplit(".", 1)[-1] == name]
    anywhere += difflib.get_close_matches(prefix + name, list(every), n=1)
    return f"; did you mean {anywhere[0]}?" if anywhere else f"; keys here: {', '.join(siblings)}"
