"""`plan --pinned`: a plan of a file is checked and priced instead of searched for."""

import json
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.exit_codes import ExitCode
from launcher.priced_plan import read_pinned
from planner.errors import PlanningError
from planner.plan import ShardingPlan

TABLES = (
    "data.synthetic.tables=[{name: a, num_embeddings: 5000, embedding_dim: 32, pooling_factor: 9},"
    " {name: b, num_embeddings: 700, embedding_dim: 32, pooling_factor: 20}]"
)


@pytest.fixture
def words(repository: Path) -> list[str]:
    return ["plan", "--topology", str(repository / "configs" / "hardware" / "cpu_x2.yaml"), TABLES, "--json"]


def on_ranks(*ranks: int) -> dict[str, object]:
    """Tables a and b whole on these ranks, as a checkpoint writes a plan."""
    rows = {"a": 5000, "b": 700}
    tables = [
        {
            "name": name,
            "sharding_type": "table_wise",
            "shards": [{"rank": rank, "row_offset": 0, "num_rows": rows[name], "col_offset": 0, "num_cols": 32}],
        }
        for name, rank in zip(rows, ranks, strict=True)
    ]
    return {"world_size": 2, "tables": tables}


def written(tmp_path: Path, value: object) -> str:
    path = tmp_path / "pinned.json"
    path.write_text(json.dumps(value))
    return str(path)


def test_a_plan_pinned_to_itself_costs_the_same(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--strategy", "size_greedy"]) == 0
    searched = json.loads(capsys.readouterr().out)
    assert main([*words, "--pinned", written(tmp_path, searched)]) == 0
    pinned = json.loads(capsys.readouterr().out)
    assert pinned["strategy"] == pinned["winner"] == "pinned"
    same = ("estimated_step_ms", "lower_bound_ms", "gap", "ranks", "tables", "best_move")
    assert {key: pinned[key] for key in same} == {key: searched[key] for key in same}


def test_the_best_single_move_of_a_lopsided_plan(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, on_ranks(1, 1))
    assert main([*words, "--pinned", file]) == 0
    before = json.loads(capsys.readouterr().out)
    move = before["best_move"]
    assert set(move) == {"table", "change", "step_ms", "gain_ms"} and move["gain_ms"] > 0
    assert move["step_ms"] + move["gain_ms"] == pytest.approx(before["estimated_step_ms"])
    assert main([*(word for word in words if word != "--json"), "--pinned", file]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"best single move: table {move['table']} {move['change']}: " in text
    assert "checked and priced, not searched" in text


def test_a_pinned_plan_that_breaks_a_rule_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--pinned", written(tmp_path, on_ranks(0, 5))]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "table 'b' uses ranks [5], expected 0 to 1" in said and "Traceback" not in said
    assert main([*words, "--pinned", written(tmp_path, {**on_ranks(0, 1), "world_size": 4})]) == ExitCode.USAGE
    assert "world_size is 4, expected 2" in capsys.readouterr().err


def test_a_pinned_plan_that_overflows_exits_3(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], repository: Path
) -> None:
    small = tmp_path / "small.yaml"
    text = (repository / "configs" / "hardware" / "cpu_x2.yaml").read_text()
    small.write_text(text.replace("hbm_bytes: 4294967296", "hbm_bytes: 1075000000"))
    words[2] = str(small)
    assert main([*words, "--pinned", written(tmp_path, on_ranks(0, 1))]) == ExitCode.INFEASIBLE
    said = capsys.readouterr()
    assert said.out == "" and "too much" in said.err and "bytes" in said.err


@pytest.mark.parametrize(
    "text", ["not json", "[]", "{}", '{"tables": 3, "ranks": []}', '{"ranks": [], "tables": [{}]}']
)
def test_a_file_without_a_plan_is_a_users_mistake(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(PlanningError, match=r"file holds no plan .*expected what `plan --json` prints") as error:
        read_pinned(path)
    assert error.value.reason == "plan"


def test_a_plan_is_read_as_plan_json_and_checkpoints_write_it(tmp_path: Path) -> None:
    plan = ShardingPlan.from_dict(on_ranks(0, 1))
    path = Path(written(tmp_path, plan.to_dict()))
    assert read_pinned(path) == plan
    path.write_text(json.dumps({"ranks": [{"rank": 0}, {"rank": 1}], "tables": plan.to_dict()["tables"]}))
    assert read_pinned(path) == plan


def test_a_search_and_a_pinned_plan_exclude_each_other(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--strategy", "random", "--pinned", written(tmp_path, on_ranks(0, 1))])
    assert ended.value.code == ExitCode.USAGE and "not allowed with" in capsys.readouterr().err
    assert main([*words, "--pinned", str(tmp_path / "nowhere.json")]) == ExitCode.USAGE
    assert "nowhere.json" in capsys.readouterr().err
