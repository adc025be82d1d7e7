"""What all commands share: the options of a configuration, its loading, output as JSON."""

import argparse
import json
from pathlib import Path
from typing import Any

FILES_FIRST = "Give key=value before a list of files, or after another option."
EPILOG = "Exit codes: 0 ok, 2 usage or config, 3 no feasible plan or not enough resources, 4 training failed, \
5 unfit environment, 75 stopped on request (with a checkpoint once training has begun)."


def add_config(parser: argparse.ArgumentParser) -> None:
    """The options of every command that reads a configuration."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of keys (see configs/README.md)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys that win over the file")


def load(options: argparse.Namespace) -> Any:
    """The configuration of a command's options."""
    from launcher.config import load_config

    return load_config(options.config, options.overrides)


def follow_profile() -> Any:
    """Shows on stderr how far a profile is."""
    from functools import partial

    from launcher.views.profiling import follow_profile as follow
    from launcher.views.tables import make_console

    return partial(follow, make_console(stderr=True))


def follow_strategies() -> Any:
    """Shows on stderr which strategy is at work."""
    from functools import partial

    from launcher.views.comparison import follow_strategies as follow
    from launcher.views.tables import make_console

    return partial(follow, make_console(stderr=True))


def print_json(value: Any) -> None:
    """One line on stdout."""
    print(json.dumps(value), flush=True)
