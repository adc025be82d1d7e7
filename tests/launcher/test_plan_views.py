"""What a person reads of a plan: bars, the slowest rank, the bound, the best single move."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from launcher.priced_plan import PINNED, PricedPlan
from launcher.views.plan import render_plan
from launcher.views.plan_words import NO_MOVE, bound_words, origin
from launcher.views.rank_bars import MOST_RANKS, NUM_BUSIEST, NUM_IDLEST, Bar
from launcher.views.slowest_rank import MOST_TABLES, find_filling
from planner.cost.analytic import AnalyticEstimator
from planner.problem import PlanningProblem
from planner.search.registry import SearchSettings, appraise, find_plan
from planner.shards import plan_shards
from planner.tables import OptimizerKind, TableSpec, Workload
from planner.topology import Device, DeviceType, Link, Topology

ESTIMATOR = AnalyticEstimator()


def topology(num_ranks: int, node: str = "node") -> Topology:
    devices = tuple(
        Device(rank, f"{node}-{rank // 8}", rank % 8, DeviceType.CUDA, "k", 1 << 36, 0, 1e12, 1e13, 1e-5)
        for rank in range(num_ranks)
    )
    return Topology("made", devices, Link(3e11, 1e-5), Link(5e10, 2e-5))


def problem(num_tables: int = 9, num_ranks: int = 4, node: str = "node") -> PlanningProblem:
    tables = tuple(
        TableSpec(f"table_{index}", 1000 * (index + 1), 16 * (1 + index % 4), (f"f{index}",), 1.0 + 3 * index)
        for index in range(num_tables)
    )
    return PlanningProblem(Workload(tables, 1024, OptimizerKind.SGD), topology(num_ranks, node))


def priced(task: PlanningProblem, strategy: str = "size_greedy") -> PricedPlan:
    return PricedPlan.of(find_plan(task, strategy, SearchSettings(ESTIMATOR, budget_s=0.5)), ESTIMATOR)


def rendered(planned: PricedPlan, is_terminal: bool = False, width: int = 100) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=is_terminal, color_system=None, highlight=False)
    for part in render_plan(planned, planned.problem.workload.tables, planned.problem.topology):
        console.print(part)
    return out.getvalue()


def bar_text(bar: Bar, width: int, is_terminal: bool) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=is_terminal, color_system=None).print(bar, end="")
    return out.getvalue()


def test_a_bar_is_as_long_as_its_parts_and_plain_off_a_terminal() -> None:
    assert bar_text(Bar((3.0, 1.0), 8.0), 80, is_terminal=False) == "#" * 30 + "=" * 10
    assert bar_text(Bar((3.0, 1.0), 8.0), 80, is_terminal=True) == "█" * 30 + "▒" * 10
    # Rounded where parts meet: two and a bit more are not three times one.
    assert bar_text(Bar((1.0, 1.0), 2.0), 5, is_terminal=False) == "##==="
    assert bar_text(Bar((0.0, 0.0), 0.0), 5, is_terminal=False) == ""


def test_every_rank_has_a_bar_of_its_lookups_and_transfers() -> None:
    planned = priced(problem())
    text = rendered(planned)
    found = [line.split()[-1] for line in text.splitlines() if re.match(r" \d +node-0", line)]
    cost = planned.cost
    longest = (cost.lookup_ms + cost.comms_ms).max()
    width = max(map(len, found))
    assert len(found) == 4
    for bar, lookup_ms, comms_ms in zip(found, cost.lookup_ms, cost.comms_ms, strict=True):
        assert abs(bar.count("#") - lookup_ms / longest * width) <= 1
        assert abs(len(bar) - (lookup_ms + comms_ms) / longest * width) <= 1
    assert "█" not in text and "█" in rendered(planned, is_terminal=True)


@pytest.mark.parametrize("num_ranks", [4, 16, MOST_RANKS, MOST_RANKS + 8])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_text_stays_within_100_columns(num_ranks: int, is_terminal: bool) -> None:
    planned = priced(problem(60, num_ranks, node="a-node-with-a-long-name"), "longest_processing_time")
    assert max(map(len, rendered(planned, is_terminal).splitlines())) <= 100


def test_of_many_ranks_the_extremes_and_quantiles_are_shown() -> None:
    planned = priced(problem(num_ranks=MOST_RANKS + 8))
    text, total_ms = rendered(planned), planned.cost.total_ms
    shown = [int(rank) for rank in re.findall(r"^ (\d+) +node-", text, flags=re.MULTILINE)]
    assert len(shown) == NUM_BUSIEST + NUM_IDLEST
    assert total_ms[shown[0]] == total_ms.max() and total_ms[shown[-1]] == total_ms.min()
    assert f"least {total_ms.min():.2f}" in text and f"most {total_ms.max():.2f}" in text
    assert f"median {np.median(total_ms):.2f}" in text


def test_the_slowest_rank_is_filled_by_what_its_own_work_falls_by() -> None:
    planned = priced(problem(num_tables=12, num_ranks=2))
    found = find_filling(planned)
    task, shards = planned.problem, plan_shards(planned.problem, planned.plan)
    loads = ESTIMATOR.shard_loads(task, shards)
    assert found.rank == planned.cost.total_ms.argmax() and found.total_ms == planned.cost.max_rank_ms
    names = [table.name for table in task.workload.tables]
    assert set(found.tables) == {names[table] for table, rank in zip(shards.table, shards.rank, strict=True)
                                 if rank == found.rank}  # fmt: skip
    assert list(found.freed_ms) == sorted(found.freed_ms, reverse=True) and found.freed_ms[0] > 0
    for name, freed_ms in zip(found.tables, found.freed_ms, strict=True):
        is_left = (shards.table != names.index(name)) | (shards.rank != found.rank)
        sums = np.zeros((2, loads.shape[1]))
        np.add.at(sums, shards.rank[is_left], loads[is_left])
        without_ms = ESTIMATOR.phases_ms(task, sums)[:, found.rank].sum()
        assert freed_ms == pytest.approx(found.total_ms - without_ms, abs=1e-9)


def test_five_tables_are_named_and_the_others_summed() -> None:
    planned = priced(problem(num_tables=12, num_ranks=2))
    found, text = find_filling(planned), rendered(planned)
    assert f"what fills rank {found.rank}, the slowest" in text
    filling = text[text.index("what fills rank") :]
    assert all(f" {name} " in filling for name in found.tables[:MOST_TABLES])
    others = found.tables[MOST_TABLES:]
    assert others and not any(f" {name} " in filling for name in others)
    assert f"{len(others)} more" in filling and f"-{found.freed_ms[MOST_TABLES:].sum():.3f}" in filling


def test_the_bound_and_the_winner_are_told_in_words() -> None:
    plan = {"lower_bound_ms": 20.0, "gap": 0.0456, "strategy": "portfolio", "winner": "beam + local search"}
    assert "lower bound 20.00 ms" in bound_words(plan) and "at most 4.6 % above" in bound_words(plan)
    assert "none is known" in bound_words({"lower_bound_ms": 0.0, "gap": 0.0})
    assert origin({**plan, "plan_seconds": 2.314}) == "by portfolio: beam + local search in 2.31 s"
    assert origin({**plan, "winner": "portfolio", "plan_seconds": 0.5}) == "by portfolio in 0.50 s"
    assert "not searched" in origin({**plan, "strategy": PINNED})


def test_the_best_single_move_is_told_where_there_is_one() -> None:
    planned = priced(problem(), "random")
    move = planned.best_move
    assert move is not None
    (line,) = re.findall(r"best single move: [^(]*\(-[\d.]+ %\)", rendered(planned))
    gain = 100 * move.gain_ms / planned.cost.step_ms
    assert line.startswith(f"best single move: table {move.tables[0]} {move.change}".replace("  ", " ")[:60])
    assert f"{planned.cost.step_ms:.2f} -> {move.step_ms:.2f} ms (-{gain:.1f} %)" in " ".join(line.split())
    assert planned.to_dict()["best_move"] == {
        "table": move.tables[0], "change": move.change, "step_ms": move.step_ms, "gain_ms": move.gain_ms
    }  # fmt: skip


def test_that_no_single_move_helps_is_told_of_a_pinned_plan_only() -> None:
    task, plan = problem(), priced(problem(), "random").plan
    while True:
        pinned = PricedPlan.of(appraise(task, plan, PINNED, ESTIMATOR), ESTIMATOR)
        if pinned.best_move is None:
            break
        plan = pinned.best_move.plan
    assert NO_MOVE in rendered(pinned) and pinned.to_dict()["best_move"] is None
    assert "best single move" not in rendered(replace(pinned, strategy="size_greedy", winner="size_greedy"))


def test_a_polished_plan_is_not_searched_again() -> None:
    planned = replace(priced(problem(), "random"), strategy="portfolio", winner="beam + local search")
    assert planned.best_move is not None
    assert "best single move" not in rendered(planned) and "best_move" not in planned.to_dict()
