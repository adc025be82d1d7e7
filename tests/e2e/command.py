"""Runs the command as a user does: a process of its own."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The quick start, small enough for a test.
SMALL = [
    "data.synthetic.num_samples=65536",
    "data.synthetic.num_eval_samples=4096",
    "train.batch_size=128",
    "train.window_steps=5",
]


@dataclass(frozen=True)
class Ran:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object that it printed."""
        return json.loads(self.out)


def command_line(*words: object) -> list[str]:
    return [sys.executable, "-m", "launcher", *map(str, words)]


def shardwright(*words: object, environment: dict[str, str], cwd: Path, timeout_s: float = 240) -> Ran:
    done = subprocess.run(
        command_line(*words), env=environment, cwd=cwd, capture_output=True, text=True, timeout=timeout_s
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def keys(address: str, runs: Path, *more: str) -> list[str]:
    """Overrides of a small run on a running cluster, planned without measurements."""
    return [f"cluster.address={address}", f"run.dir={runs}", "profile.enabled=false", *SMALL, *more]
