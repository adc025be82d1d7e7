"""`bench plans`: what it says of strategies on tasks, and the command on small pools."""

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.bench.plan_costs import price_cpu_node, price_profiled_node
from launcher.bench.plan_scores import (
    Attempt,
    ScoredTask,
    common_means,
    compare_pairs,
    describe_tasks,
    score_strategies,
)
from launcher.bench.plan_tasks import build_problem, draw_tasks, read_pool
from launcher.cli import main
from launcher.exit_codes import ExitCode
from planner.cost.estimator import COMMS_PHASES, LOOKUP_PHASES, PHASES
from planner.errors import PlanningError
from planner.search.registry import SearchSettings, find_plan
from planner.sharding import ShardingType
from tests.launcher.bench.plan_pools import write_pool
from tests.launcher.made_profiles import GPUS, keep, make_collectives, make_lookups, make_profile, slower

RULES = "longest_processing_time,size_greedy,random"


def scored(lower_bound_ms: float, **step_ms: float | None) -> ScoredTask:
    attempts = {
        name: Attempt(2.0, each, each / 2) if each is not None else Attempt(4.0, fault="no room")
        for name, each in step_ms.items()
    }
    return ScoredTask(3, 1000, lower_bound_ms, attempts)


TASKS = (
    scored(100.0, portfolio=110.0, neuroshard=120.0, random=None),
    scored(100.0, portfolio=130.0, neuroshard=None, random=None),
    scored(200.0, portfolio=240.0, neuroshard=230.0, random=None),
)


def test_scores_are_over_the_tasks_that_a_strategy_solves() -> None:
    found = score_strategies(TASKS)
    assert found["portfolio"]["success"] == 1.0 and found["neuroshard"]["success"] == pytest.approx(2 / 3)
    assert found["portfolio"]["predicted_ms"] == pytest.approx(160.0)
    assert found["neuroshard"]["predicted_ms"] == pytest.approx(175.0)
    assert found["portfolio"]["gap_median"] == pytest.approx(0.2)
    assert found["portfolio"]["gap_p95"] == pytest.approx(0.29)
    assert (found["portfolio"]["num_best"], found["neuroshard"]["num_best"]) == (2, 1)
    assert found["neuroshard"]["seconds_mean"] == pytest.approx(8 / 3)
    assert found["portfolio"]["lookup_ms"] == pytest.approx(80.0)
    assert found["random"]["success"] == 0.0
    assert found["random"]["predicted_ms"] is None and found["random"]["gap_median"] is None


def test_pairs_are_over_the_tasks_that_both_solve_and_say_how_many() -> None:
    beside_neuroshard, beside_random = compare_pairs(TASKS)
    assert beside_neuroshard["num_tasks"] == 2 and beside_neuroshard["num_worse"] == 1
    assert beside_neuroshard["ratio"] == pytest.approx((110 + 240) / (120 + 230))
    assert beside_random["num_tasks"] == 0 and beside_random["ratio"] is None
    common = common_means(TASKS)
    assert common["num_tasks"] == 2 and common["predicted_ms"] == {"portfolio": 175.0, "neuroshard": 175.0}


def test_a_task_without_a_plan_is_null_with_its_reason() -> None:
    second = describe_tasks(TASKS)[1]
    assert second["predicted_ms"] == {"portfolio": 130.0, "neuroshard": None, "random": None}
    assert second["faults"] == {"neuroshard": "no room", "random": "no room"}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pool(tmp_path_factory.mktemp("pool") / "tables.csv")


def bench(capsys: pytest.CaptureFixture[str], pool: Path, *words: str) -> dict[str, Any]:
    """What `bench plans --json` prints for small tasks."""
    assert main(["bench", "plans", "--tables", str(pool), "--num-tables", "4:8", "--json", *words]) == ExitCode.OK
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_command_prints_the_schema(capsys: pytest.CaptureFixture[str], pool: Path) -> None:
    found = bench(
        capsys, pool, "--ranks", "2", "--memory-gib", "4", "--tasks", "3", "--seed", "5", "--strategies", RULES
    )
    assert (found["tasks"], found["ranks"], found["seed"]) == (3, 2, 5)
    assert "shipped lookup weights" in found["cost_model"] and "weights alone" in " ".join(found["notes"])
    assert list(found["strategies"]) == RULES.split(",")
    keys = {"success", "predicted_ms", "gap_median", "gap_p95", "seconds_mean", "measured_ratio_vs_torchrec"}
    for each in found["strategies"].values():
        assert keys <= set(each) and each["measured_ratio_vs_torchrec"] is None
    assert [pair["other"] for pair in found["pairs"]] == ["size_greedy", "random"]
    for task in found["per_task"]:
        assert set(task["predicted_ms"]) == set(RULES.split(","))
        assert all(step_ms >= task["lower_bound_ms"] * (1 - 1e-6) for step_ms in task["predicted_ms"].values())


def test_the_portfolio_is_what_others_are_compared_with_and_baselines_tell_their_inputs(
    capsys: pytest.CaptureFixture[str], pool: Path
) -> None:
    found = bench(capsys, pool, "--ranks", "2", "--memory-gib", "4", "--tasks", "1", "--budget-s", "0.2")
    assert {"portfolio", "neuroshard", "torchrec", "longest_processing_time", "random"} <= set(found["strategies"])
    assert {pair["strategy"] for pair in found["pairs"]} == {"portfolio"}
    assert {name for name in ("torchrec", "neuroshard") if any(note.startswith(name) for note in found["notes"])} == {
        "torchrec",
        "neuroshard",
    }


def test_other_strategies_meet_the_same_tasks(capsys: pytest.CaptureFixture[str], pool: Path) -> None:
    words = ("--topology", str(GPUS), "--total-gib", "1", "--tasks", "3")
    one, two = (
        bench(capsys, pool, *words, "--strategies", names) for names in ("size_greedy", "random,dim_greedy,size_greedy")
    )
    assert "analytic" in one["cost_model"] and one["ranks"] == 8
    costs = [[task["predicted_ms"]["size_greedy"] for task in each["per_task"]] for each in (one, two)]
    assert costs[0] == costs[1]


def test_types_are_restricted_and_memory_that_is_too_small_is_a_failure(
    capsys: pytest.CaptureFixture[str], pool: Path
) -> None:
    words = ("--ranks", "2", "--memory-gib", "0.05", "--total-gib", "1", "--tasks", "4")
    found = bench(
        capsys, pool, *words, "--sharding-types", "table_wise,column_wise", "--strategies", "size_greedy,lookup_greedy"
    )
    assert "table_wise or column_wise" in " ".join(found["notes"])
    success = found["strategies"]["size_greedy"]["success"]
    assert 0 <= success < 1
    failed = [task for task in found["per_task"] if task["predicted_ms"]["size_greedy"] is None]
    assert len(failed) == round(4 * (1 - success)) and all("size_greedy" in task["faults"] for task in failed)


def test_the_text_names_every_strategy_and_the_cost_model(capsys: pytest.CaptureFixture[str], pool: Path) -> None:
    words = ["--ranks", "2", "--memory-gib", "4", "--tasks", "2", "--strategies", RULES]
    assert main(["bench", "plans", "--tables", str(pool), "--num-tables", "4", *words]) == ExitCode.OK
    text = capsys.readouterr().out
    assert all(name in text for name in RULES.split(",")) and "cost model: learned" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ranks", "2"], "--memory-gib"),
        (["--topology", str(GPUS), "--ranks", "2"], "leave --ranks"),
        (["--ranks", "2", "--memory-gib", "4", "--num-tables", "9:3"], "1 <= A <= B"),
        (["--ranks", "2", "--memory-gib", "4", "--dims", "4,6"], "--dims has 6"),
        (["--ranks", "2", "--memory-gib", "4", "--strategies", "size_gredy"], "size_greedy"),
    ],
)
def test_what_cannot_be_is_refused(
    capsys: pytest.CaptureFixture[str], pool: Path, words: list[str], message: str
) -> None:
    assert main(["bench", "plans", "--tables", str(pool), *words]) == ExitCode.USAGE
    assert message in " ".join(capsys.readouterr().err.split())


def test_measured_plans_get_a_ratio_and_its_interval(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    small = write_pool(tmp_path / "tables.csv", num_tables=4, most_rows=20_000)
    words = ("--ranks", "2", "--memory-gib", "4", "--tasks", "1", "--dims", "4,8", "--measure")
    printed = bench(capsys, small, *words, "--strategies", "size_greedy,torchrec")
    found = printed["strategies"]["size_greedy"]
    assert set(printed["per_task"][0]["measured_ms"]) == {"size_greedy", "torchrec"}
    assert found["measured_ratio_low"] <= found["measured_ratio_vs_torchrec"] <= found["measured_ratio_high"]
    assert found["measured_ratio_vs_torchrec"] > 0 and found["measured_num_tasks"] == 1


def test_nothing_but_lookups_and_transfers_is_priced(pool: Path) -> None:
    devices = price_cpu_node(4, 1 << 32)
    (task,) = draw_tasks(read_pool(pool), (8, 8), 1, 0, 1 << 30)
    problem = build_problem(task, devices.topology)
    cost = find_plan(problem, "size_greedy", SearchSettings(devices.estimator)).cost
    others = set(PHASES) - {*LOOKUP_PHASES, *COMMS_PHASES}
    assert all(cost.phase(name).max() == 0 for name in others)
    assert cost.lookup_ms.max() > 0 and cost.phase("output_dist_forward").max() > 0


def test_a_profile_prices_as_many_ranks_as_asked(pool: Path, tmp_path: Path) -> None:
    """A device twice as slow throughout takes twice as long."""
    lookups, steps = make_lookups(30, seed=0), []
    (task,) = draw_tasks(read_pool(pool), (6, 6), 1, 0, 1 << 30)
    for factor in (1.0, 2.0):
        path = tmp_path / f"profile_{factor}.json"
        keep(make_profile(slower(lookups, factor), make_collectives(20, seed=1)), path)
        devices = price_profiled_node(path, 4, 1 << 32)
        assert devices.topology.world_size == 4 and devices.topology.local_world_size == 4
        plan = find_plan(build_problem(task, devices.topology), "size_greedy", SearchSettings(devices.estimator))
        assert all(table.sharding_type is ShardingType.TABLE_WISE for table in plan.plan.tables)
        steps.append(plan.cost.lookup_ms.max())
    assert steps[1] == pytest.approx(2 * steps[0], rel=1e-3)
    with pytest.raises(PlanningError) as error:
        price_profiled_node(pool, 4, 1 << 32)
    assert error.value.reason == "profile"
