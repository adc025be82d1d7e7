"""`compare`: every strategy on one task, the winner and the bound in words, failures with their reasons."""

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from launcher.cli import main
from launcher.comparison import Begin, Outcome, compare_strategies, comparison_dict
from launcher.config import load_config
from launcher.exit_codes import ExitCode
from launcher.views.comparison import follow_strategies, render_comparison
from planner.search.registry import STRATEGIES

KEYS = ["planner.budget_s=0.5", "train.batch_size=64", "data.synthetic.num_tables=4"]
PINNED = "planner.constraints=[{tables: [table_1], ranks: [1]}]"


@pytest.fixture(scope="module")
def cpu_pair(repository: Path) -> Path:
    return repository / "configs" / "hardware" / "cpu_x2.yaml"


class Followed:
    """Remembers which strategies began."""

    def __init__(self) -> None:
        self.names: Sequence[str] = ()
        self.begun: list[str] = []

    @contextmanager
    def __call__(self, names: Sequence[str]) -> Iterator[Begin]:
        self.names = names
        yield self.begun.append


@pytest.fixture(scope="module")
def followed() -> Followed:
    return Followed()


@pytest.fixture(scope="module")
def outcomes(cpu_pair: Path, followed: Followed) -> list[Outcome]:
    """A pin that TorchRec's planner cannot express, so that one strategy fails."""
    return compare_strategies(load_config(None, [*KEYS, PINNED]), cpu_pair, follow_strategies=followed)


def rendered(outcomes: list[Outcome]) -> str:
    out = io.StringIO()
    console = Console(file=out, width=100, highlight=False)
    for part in render_comparison(outcomes):
        console.print(part)
    return out.getvalue()


def test_every_strategy_is_tried_the_best_first_failures_last(outcomes: list[Outcome], followed: Followed) -> None:
    assert followed.begun == list(followed.names) == list(STRATEGIES)
    steps = [each.planned.cost.step_ms for each in outcomes if each.planned]
    assert steps == sorted(steps)
    assert [each.strategy for each in outcomes if not each.planned] == ["torchrec"]
    assert outcomes[-1].strategy == "torchrec" and "pinned" in str(outcomes[-1].fault)


def test_the_json_holds_plans_and_reasons(outcomes: list[Outcome]) -> None:
    found = json.loads(json.dumps(comparison_dict(outcomes)))["strategies"]
    assert set(found) == set(STRATEGIES) and set(found["torchrec"]) == {"error"}
    assert found["portfolio"]["strategy"] == "portfolio" and "winner" in found["portfolio"]
    assert len({plan["lower_bound_ms"] for name, plan in found.items() if name != "torchrec"}) == 1


def test_the_text_names_the_winner_the_bound_and_the_failure(outcomes: list[Outcome]) -> None:
    text, best, second = rendered(outcomes), outcomes[0].planned, outcomes[1].planned
    assert best is not None and second is not None
    assert max(map(len, text.splitlines())) <= 100
    said = " ".join(text.split())
    assert f"winner: {best.strategy}" in said and f"shorter than {second.strategy}" in said
    assert best.winner in said and f"lower bound {best.lower_bound_ms:.2f} ms" in said
    assert "no plan by torchrec: " in said
    slowest = best.cost.total_ms.argmax()
    row = next(line for line in text.splitlines() if line.startswith(f" {best.strategy} "))
    assert f"{best.cost.lookup_ms[slowest]:.3f}" in row.split()


def test_a_lone_plan_wins_alone_and_without_any_the_reasons_are_left(outcomes: list[Outcome]) -> None:
    assert "the only one with a plan" in rendered([outcomes[0], outcomes[-1]])
    assert rendered([outcomes[-1]]).startswith("no plan by torchrec: ")


def test_progress_is_shown_on_a_terminal_only() -> None:
    shown = {}
    for is_terminal in (True, False):
        out = io.StringIO()
        with follow_strategies(Console(file=out, width=100, force_terminal=is_terminal), ["first", "second"]) as begin:
            begin("first")
            begin("second")
        shown[is_terminal] = out.getvalue()
    assert "planning with second" in shown[True] and "1/2" in shown[True]
    assert shown[False].strip() == ""


def test_a_task_that_nobody_solves_exits_3(cpu_pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    huge = "data.synthetic.tables=[{name: a, num_embeddings: 100000000, embedding_dim: 64, pooling_factor: 1}]"
    assert main(["compare", "--topology", str(cpu_pair), huge, *KEYS, "--json"]) == ExitCode.INFEASIBLE
    strategies = json.loads(capsys.readouterr().out)["strategies"]
    assert set(strategies) == set(STRATEGIES) and all(set(each) == {"error"} for each in strategies.values())
