"""The README says what is there: its commands parse, its files exist, its tags and keys are the real ones."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launcher.cli import build_parser
from launcher.config import load_config
from launcher.exit_codes import ExitCode
from launcher.views.report_text import BALANCE_COLUMNS
from launcher.views.tensorboard import METRICS

PLACEHOLDERS = ("runs/NAME", "RUN_DIR")


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text()


def commands(readme: str) -> list[list[str]]:
    """Every command line of ours in an indented block, submitted ones too, without the program's name."""
    lines = re.findall(r"^    (?:ray job submit .* -- )?(?:python -m launcher|shardwright) (.*)$", readme, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def test_every_command_parses_and_its_config_loads(readme: str, repository: Path) -> None:
    found = commands(readme)
    assert len(found) >= 8
    for words in found:
        options = build_parser().parse_args(words)
        if getattr(options, "config", None):
            load_config(repository / options.config, options.overrides)
        if getattr(options, "topology", None):
            assert (repository / options.topology).exists()


def test_the_commands_of_the_table_are_all_there_are(readme: str) -> None:
    listed = set(re.findall(r"^\| `shardwright (\w+)", readme, re.MULTILINE))
    actions = build_parser()._subparsers._group_actions[0]  # type: ignore[union-attr]
    assert listed == set(actions.choices)


def test_the_make_targets_exist(readme: str, repository: Path) -> None:
    for target in set(re.findall(r"^    make (\w+)", readme, re.MULTILINE)) | {"setup", "lint"}:
        subprocess.run(["make", "-n", target], cwd=repository, check=True, capture_output=True)


def test_ci_runs_the_test_command(repository: Path) -> None:
    assert "make test" in (repository / ".ci" / "run").read_text()


def test_the_constraints_shown_load(readme: str, tmp_path: Path) -> None:
    block = re.search(r"```yaml\n(.*?)```", readme, re.DOTALL)
    assert block
    (tmp_path / "c.yaml").write_text(block[1])
    assert len(load_config(tmp_path / "c.yaml", []).planner.constraints) == 3


def test_the_exit_codes_are_the_programs(readme: str) -> None:
    sentence = re.search(r"Exit codes: (.*?)\.\n", readme, re.DOTALL)
    assert sentence
    assert {int(code) for code in re.findall(r"\b\d+\b", sentence[1])} == {int(code) for code in ExitCode}


def test_the_balance_report_shown_has_todays_columns(readme: str) -> None:
    assert re.search(r"\s+".join(map(re.escape, BALANCE_COLUMNS)), readme)


@pytest.mark.ray
@pytest.mark.slow
def test_every_tag_written_is_in_the_glossary(readme: str, finished: tuple) -> None:
    _, run = finished
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    names = [*tags["scalars"], *tags["images"], *tags["histograms"]]
    written = {re.sub(r"rank_\d+", "rank_NN", tag) for tag in names}
    written |= {tag.removesuffix("/text_summary") for tag in tags["tensors"] if not tag.startswith("custom_scalars")}
    glossary = set(re.findall(r"`([\w/]+)`", readme[readme.index("| tag | meaning |") :]))
    assert written <= glossary, written - glossary
    assert {f"train/{name}" for name in METRICS} <= written
