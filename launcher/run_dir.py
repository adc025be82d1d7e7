"""The folder of one run: everything that was decided, everything that was seen, written beside and renamed."""

import json
import os
import time
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

VERSIONED = (
    "shardwright",
    "torch",
    "torchrec",
    "fbgemm-gpu",
    "fbgemm-gpu-cpu",
    "ray",
    "numpy",
    "omegaconf",
    "tensorboard",
)
# Where Ray unpacks the working directory of a job; it is deleted when the job's last worker is gone.
JOB_COPY_FOLDER = "working_dir_files"


class RunDir:
    """Paths and files of one run below `runs/<name>/`.

    config.yaml    the resolved configuration; `train --config` on it repeats the run
    versions.json  of the packages
    profile.json   what was measured on the devices, if anything
    plans/NNN.json every plan that trained, as `plan --json` prints it, in order
    records.jsonl  one JSON object a line: windows, evaluations, verdicts, decisions... (see README)
    requests/      plans handed in while it trained, and answers (see launcher.resharding.requests)
    traces/        profiles of single steps, if any were asked for
    telemetry/     what was measured in every step (see launcher.telemetry_file)
    status.json    `{"status", "exit_code", "message", "step", "updated_at"}`
    checkpoints/   weights, optimizer state and place in the data, one folder a checkpoint
    tensorboard/   event files
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    @classmethod
    def create(cls, root: str, name: str | None, config_path: Path | None) -> "RunDir":
        """A new folder; a name that is taken gets a number behind it."""
        stem = config_path.stem if config_path else "run"
        if stem == "config" and config_path is not None:
            stem = config_path.resolve().parent.name
        base = name or f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"
        parent = locate_runs(root)
        for attempt in range(1, 10_000):
            path = parent / (base if attempt == 1 else f"{base}-{attempt}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            (path / "plans").mkdir()
            return cls(path)
        raise FileExistsError(f"{parent / base}: 10,000 runs of this name")

    @property
    def tensorboard(self) -> Path:
        """Folder of the event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def traces(self) -> Path:
        """Folder of the profiles of single steps."""
        return self.path / "traces"

    @property
    def requests(self) -> Path:
        """Folder of the plans that were handed in while the run trained."""
        return self.path / "requests"

    def new_telemetry(self, series: str) -> Path:
        """A path that no file has yet, with the next number of a series of measurements."""
        folder = self.path / "telemetry"
        folder.mkdir(exist_ok=True)
        return folder / f"{series}-{len(self.telemetry_files(series)):03d}.arrow"

    def telemetry_files(self, series: str) -> list[Path]:
        """The files of a series of measurements, oldest first."""
        found = (self.path / "telemetry").glob(f"{series}-*.arrow")
        return sorted(found, key=lambda path: (len(path.name), path.name))

    def write_config(self, text: str) -> None:
        """Keep the resolved configuration."""
        write_beside(self.path / "config.yaml", text)

    def write_versions(self) -> None:
        """Keep the versions of the packages that decide what a run does."""
        write_beside(self.path / "versions.json", json.dumps(installed_versions(), indent=2) + "\n")

    def write_profile(self, text: str) -> None:
        """Keep the profile that the plan was made with."""
        write_beside(self.path / "profile.json", text)

    def write_plan(self, plan: dict[str, Any]) -> None:
        """Keep one more plan."""
        number = len(list((self.path / "plans").glob("*.json")))
        write_beside(self.path / "plans" / f"{number:03d}.json", json.dumps(plan, indent=2) + "\n")

    def write_status(self, status: str, exit_code: int | None, message: str = "", step: int = 0) -> None:
        """Say in one word how the run stands: running, done, stopped or failed."""
        record = {
            "status": status,
            "exit_code": exit_code,
            "message": message,
            "step": step,
            "updated_at": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        write_beside(self.path / "status.json", json.dumps(record, indent=2) + "\n")

    def open_records(self) -> TextIO:
        """The records, for appending; line-buffered, so that a killed run keeps its last window."""
        return (self.path / "records.jsonl").open("a", buffering=1)

    def read_json(self, name: str) -> Any:
        """One JSON file of the run; raises FileNotFoundError."""
        return json.loads((self.path / name).read_text())

    def plans(self) -> list[dict[str, Any]]:
        """Every plan of the run, oldest first."""
        return [json.loads(path.read_text()) for path in sorted((self.path / "plans").glob("*.json"))]

    def records(self) -> Iterator[dict[str, Any]]:
        """The records in order; a last line that a kill cut short is left out."""
        path = self.path / "records.jsonl"
        if not path.exists():
            return
        for line in path.read_text(errors="replace").splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)


def locate_runs(root: str) -> Path:
    """The absolute folder of all runs.

    Inside a Ray job the current folder is a copy that Ray deletes, so a relative `run.dir` is taken from
    the home directory there.
    """
    path = Path(root).expanduser()
    if path.is_absolute():
        return path
    base = Path.home() if JOB_COPY_FOLDER in Path.cwd().parts else Path.cwd()
    return base / path


def installed_versions() -> dict[str, str]:
    """Versions of the installed packages that matter, by distribution name."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_beside(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
