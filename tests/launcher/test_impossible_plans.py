"""Tasks without a plan: `plan` exits 3 with the computed reason, whatever the strategy, and prints no plan."""

import re
from pathlib import Path

import pytest

from launcher.cli import headed, main
from launcher.exit_codes import ExitCode
from planner.search.registry import STRATEGIES

KEYS = ["planner.budget_s=0.3", "train.batch_size=64"]
USABLE_BYTES = 3 << 30
"""Of each of the preset's two ranks."""

ROW_BYTES = 64 * 4
# These say no more than that they found nothing; what would help is computed for them all the same.
TERSE = ("torchrec", "neuroshard", "exact")


def tables(number: int, rows: int) -> str:
    """So many tables of 64 columns."""
    each = (f"{{name: t{i}, num_embeddings: {rows}, embedding_dim: 64, pooling_factor: 2}}" for i in range(number))
    return f"data.synthetic.tables=[{', '.join(each)}]"


def refusal(repository: Path, capsys: pytest.CaptureFixture[str], strategy: str, *words: str) -> str:
    """What is said of a task without a plan, in one line."""
    cpu_pair = str(repository / "configs" / "hardware" / "cpu_x2.yaml")
    code = main(["plan", "--topology", cpu_pair, "--strategy", strategy, *KEYS, *words])
    said = capsys.readouterr()
    assert code == ExitCode.INFEASIBLE and said.out == ""
    assert max(map(len, said.err.splitlines())) <= 100
    assert "no feasible plan on cpu_x2" in said.err and "Each of these changes alone makes it fit" in said.err
    return " ".join(said.err.split())


def missing_bytes(said: str) -> int:
    (text,) = re.findall(r"\(([\d,]+) bytes\) (?:missing|on rank)", said)
    return int(text.replace(",", ""))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("number", "rows"), [(1, 100_000_000), (14, 2_000_000)])
def test_tables_larger_than_everything(
    repository: Path, capsys: pytest.CaptureFixture[str], strategy: str, number: int, rows: int
) -> None:
    said = refusal(repository, capsys, strategy, tables(number, rows))
    assert "- devices of " in said
    if strategy != "torchrec":
        weights = number * rows * ROW_BYTES
        # Besides the weights there are an accumulator a row, ids, outputs and the dense part.
        assert weights - 2 * USABLE_BYTES < missing_bytes(said) < 1.05 * weights - 2 * USABLE_BYTES + (1 << 28)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "torchrec"])
def test_a_pin_to_a_rank_that_is_full(repository: Path, capsys: pytest.CaptureFixture[str], strategy: str) -> None:
    pin = "planner.constraints=[{tables: ['*'], ranks: [0]}]"
    said = refusal(repository, capsys, strategy, tables(8, 2_000_000), pin)
    assert "- drop the pin of * to ranks 0" in said
    if strategy not in TERSE:
        assert 0 < missing_bytes(said) < 2_000_000 * ROW_BYTES * 1.05 and "on rank 0" in said


def test_torchrecs_planner_says_that_it_knows_no_pins(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--topology", str(repository / "configs" / "hardware" / "cpu_x2.yaml"), "--strategy", "torchrec"]
    pin = "planner.constraints=[{tables: ['*'], ranks: [0]}]"
    assert main(["plan", *words, *KEYS, tables(8, 2_000_000), pin]) == ExitCode.USAGE
    assert "cannot express this" in capsys.readouterr().err


def test_a_message_that_is_folded_already_begins_below_the_command() -> None:
    assert headed("short") == "shardwright: short"
    assert headed("a" * 99).startswith("shardwright: a")
    assert headed(f"{'word ' * 19}end\nmore").startswith("shardwright:\nword ")
    assert headed("first\nsecond") == "shardwright: first\nsecond"
