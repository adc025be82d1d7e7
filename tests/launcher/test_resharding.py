"""What the controller decides about a running job's plan, with workers and searches whose answers are at hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.imbalance.settings import WatchSettings
from cluster.imbalance.verdict import Cause, Verdict
from launcher.commands import Commands
from launcher.config import load_config
from launcher.estimators import build_estimator
from launcher.preparation import describe_task
from launcher.priced_plan import PricedPlan
from launcher.resharding.findings import StandingFindings
from launcher.resharding.loop import Resharding, Surroundings
from launcher.resharding.memory import PlanMemory
from launcher.resharding.price import FIXED_MS, PriceList, estimate_price
from launcher.resharding.requests import RequestBox, await_answer, hand_in
from launcher.resharding.search import Question, Search
from launcher.resharding.table_ids import NUM_SAMPLES, TableIds
from launcher.run_dir import RunDir
from launcher.schema import ReshardingSection
from planner.cost.estimator import PHASES
from planner.plan import ShardingPlan, TablePlacement
from planner.replan import Decision, MovePrice
from planner.search.registry import SearchSettings, make_plan
from planner.sharding import Shard, ShardingType
from planner.topology import Device, DeviceType, Link, Topology
from tests.launcher.made_telemetry import shards_block, steps_block

SLOW = Verdict(130, Cause.SLOW_DEVICE, 1, (), 2.0, 115)
WATCH = WatchSettings(warmup_steps=10, baseline_steps=20)
Wait = Callable[[], None]


@pytest.fixture(scope="module")
def planned(repository: Path) -> PricedPlan:
    """The quick start on two made-up ranks."""
    task = describe_task(load_config(repository / "configs" / "quickstart.yaml", []))
    devices = tuple(Device(r, "n", r, DeviceType.CPU, "cpu", 1 << 34, 0, 1e10, 1e10, 1e-5) for r in range(2))
    topology = Topology("t", devices, Link(1e9, 1e-5), Link(1e9, 1e-5))
    estimator = build_estimator(topology, None)
    found = make_plan(task.problem(topology), "longest_processing_time", SearchSettings(estimator))
    return PricedPlan.of(found, estimator)


def swapped(plan: ShardingPlan) -> ShardingPlan:
    """The plan with ranks 0 and 1 in each other's place; replicas stay."""
    tables = tuple(
        replace(table, shards=tuple(replace(shard, rank=1 - shard.rank) for shard in table.shards))
        if table.sharding_type is not ShardingType.DATA_PARALLEL
        else table
        for table in plan.tables
    )
    return ShardingPlan(plan.world_size, tables)


class Job:
    """A running job: what is posted to it, what is told of it, and the loop that is tested."""

    def __init__(self, planned: PricedPlan, folder: Path, **settings: Any) -> None:
        self.planned, self.run = planned, RunDir(folder)
        self.posted: list[dict[str, Any]] = []
        self.told: list[dict[str, Any]] = []
        self.adopted: list[tuple[PricedPlan, int, bool]] = []
        self.questions: list[Question] = []
        self.is_move, self.remaining = True, True
        self.step = 0
        self.commands = Commands(self.posted.append)  # type: ignore[arg-type]
        self.search = Search(self.decide)
        wanted = ReshardingSection(**{"enabled": True, "cool_down_steps": 100, "settle_steps": 20, **settings})
        around = Surroundings(
            self.commands,
            self.told.append,
            lambda *adopted: self.adopted.append(adopted),
            RequestBox(self.run),
        )
        prices = PriceList(MovePrice(fixed_ms=100.0, bytes_per_s=1e9))
        self.loop = Resharding(wanted, WATCH, planned, prices, self.search, around)

    def decide(self, question: Question) -> Decision:
        self.questions.append(question)
        plan, cost = swapped(question.plan), self.planned.cost
        left = question.remaining_steps if self.remaining else None
        return Decision(self.is_move, plan, cost, 22.0, 1.5, 1000, 60.0, left, "because")

    def train(self, num_steps: int, slow_rank: int | None = None, **columns: float) -> None:
        """Steps in polls of ten, each of which lets the loop go on and the search end."""
        for _ in range(num_steps // 10):
            self.loop.see_block(steps_block(self.step + 1, 10, slow_rank=slow_rank, **columns))
            self.step += 10
            self.loop.see_record({"kind": "window", "step": self.step, "total_steps": 1000})
            self.proceed()

    def proceed(self) -> None:
        """As a poll does, with no search left under way."""
        self.loop.proceed()
        if self.search._asked is not None:
            self.search._asked[1].exception(timeout=10)
            self.loop.proceed()

    def migrate(self, is_committed: bool = True, **figures: Any) -> None:
        """The workers' answer to the newest move."""
        record = {
            "kind": "migration",
            "step": self.step,
            "move": self.posted[-1]["move"],
            "is_committed": is_committed,
            "moved_bytes": 2**21,
            "pause_ms": 50.0,
            "transfer_ms": 20.0,
            "fault": None if is_committed else "no room",
            "fault_rank": None if is_committed else 1,
            "message": "as told",
            **figures,
        }
        self.commands.take_answer(record)
        self.loop.see_record(record)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.told if record["kind"] == kind]

    def answers(self) -> list[str]:
        return [record["answer"] for record in self.of_kind("decision")]


@pytest.fixture
def job(planned: PricedPlan, tmp_path: Path) -> Job:
    return Job(planned, tmp_path)


def find(job: Job, verdict: Verdict = SLOW) -> None:
    """Train 110 healthy and 20 slow steps, of which a verdict tells."""
    job.train(110)
    job.train(20, slow_rank=1)
    job.loop.see_verdict(verdict)
    job.proceed()


def test_a_finding_leads_to_one_move_that_is_compared_with_its_promise(job: Job) -> None:
    find(job)
    (question,) = job.questions
    assert question.remaining_steps == 870 and question.lost_ms == 2.0 * (130 - 115)
    assert question.seen.phases_ms[PHASES.index("lookup_forward")].tolist() == [1.0, 2.0]
    assert question.healthy is not None
    assert question.healthy.phases_ms[PHASES.index("lookup_forward")].tolist() == [1.0, 1.0]
    # The other rank waits in a collective for the slow one: that is no work of its own.
    assert question.seen.phases_ms[PHASES.index("output_dist_forward")].tolist() == [1.0, 1.0]
    (command,) = job.posted
    assert command["kind"] == "reshard" and command["move"] == 1 and command["reason"] == "because"
    assert ShardingPlan.from_dict(command["plan"]) == swapped(job.planned.plan)
    job.migrate()
    ((adopted, step, is_promise),) = job.adopted
    assert adopted.plan == swapped(job.planned.plan) and step == 130 and is_promise
    assert adopted.to_dict()["tables"] == command["plan"]["tables"] and "best_move" not in adopted.to_dict()
    job.train(20)
    assert job.of_kind("outcome") == []
    job.train(10)
    (outcome,) = job.of_kind("outcome")
    assert (outcome["promised_gain_ms"], outcome["realised_gain_ms"]) == (1.5, 1.0) and not outcome["is_rolled_back"]
    assert len(job.posted) == 1 and job.answers() == ["move"]
    assert job.of_kind("decision")[0]["message"] == "slow_device on rank 1: moving: because"


def test_while_a_move_is_under_way_nothing_else_is_asked(job: Job) -> None:
    find(job)
    job.loop.see_verdict(replace(SLOW, cause=Cause.HOT_TABLE, rank=0, severity_ms=9.0))
    job.train(300)
    assert len(job.questions) == len(job.posted) == 1


def test_after_a_migration_findings_wait_for_the_cool_down(job: Job) -> None:
    find(job)
    job.migrate()
    job.train(40)
    job.loop.see_verdict(replace(SLOW, step=170, rank=0, since_step=160))
    job.train(50)
    assert len(job.questions) == 1
    job.train(10)
    assert len(job.questions) == 2 and job.step == 230


def test_a_no_is_told_once_a_cool_down_and_other_findings_do_not_wait(job: Job) -> None:
    job.is_move = False
    find(job)
    job.train(90)
    assert job.answers() == ["no"] and job.posted == []
    job.loop.see_verdict(replace(SLOW, rank=0))
    job.proceed()
    assert [question.verdict.rank for question in job.questions] == [1, 0]
    job.train(10)
    assert [question.verdict.rank for question in job.questions] == [1, 0, 1]
    assert job.answers() == ["no", "no", "no"]


def test_a_finding_that_is_over_is_not_asked_about_again(job: Job) -> None:
    job.is_move = False
    find(job)
    job.loop.see_verdict(replace(SLOW, is_over=True))
    job.train(200)
    assert len(job.questions) == 1


def test_a_drift_of_all_ranks_is_nobodys_business(job: Job) -> None:
    find(job, replace(SLOW, cause=Cause.GLOBAL_DRIFT, rank=None))
    assert job.questions == []


def test_with_no_known_end_it_is_asked_again_when_the_loss_is_the_price(job: Job) -> None:
    job.is_move = job.remaining = False
    find(job)
    job.is_move = True
    # The better plan would have saved 1.5 ms in every step since 115: 60 ms at step 155.
    job.train(20)
    assert job.answers() == ["no"]
    job.train(10)
    assert job.step == 160 and job.answers() == ["no", "move"]


def test_the_horizon_bounds_the_steps_that_are_left(planned: PricedPlan, tmp_path: Path) -> None:
    job = Job(planned, tmp_path, horizon_steps=40)
    find(job)
    assert job.questions[0].remaining_steps == 40


def test_advice_moves_nothing(planned: PricedPlan, tmp_path: Path) -> None:
    job = Job(planned, tmp_path, mode="advise")
    find(job)
    job.train(90)
    assert job.answers() == ["advised"] and job.posted == []
    assert job.of_kind("decision")[0]["move"] is None and job.of_kind("decision")[0]["predicted_gain_ms"] == 1.5


def test_a_fleet_that_got_slower_as_a_whole_is_no_loss(job: Job) -> None:
    find(job)
    job.migrate()
    # Twice the time for everything, of which dense layers are a measure; the plan itself gained 1 ms of 11.
    job.train(40, **{f"{phase}_ms": 2.0 for phase in PHASES})
    (outcome,) = job.of_kind("outcome")
    assert outcome["realised_gain_ms"] == 1.0 and not outcome["is_rolled_back"]


def test_a_loss_is_taken_back_once(job: Job) -> None:
    find(job)
    job.migrate()
    job.train(30, lookup_forward_ms=9.0)
    (outcome,) = job.of_kind("outcome")
    assert outcome["is_rolled_back"] and outcome["realised_gain_ms"] == -7.0
    back = job.of_kind("decision")[-1]
    assert (back["trigger"], back["answer"], back["move"]) == ("rollback", "move", 2)
    assert ShardingPlan.from_dict(job.posted[-1]["plan"]) == job.planned.plan
    job.migrate()
    assert job.adopted[-1][0].plan == job.planned.plan and not job.adopted[-1][2]
    job.train(90, lookup_forward_ms=20.0)
    assert len(job.posted) == 2 and len(job.of_kind("outcome")) == 1


def test_a_failed_migration_is_told_with_its_cause_and_starts_the_cool_down(job: Job) -> None:
    find(job)
    job.migrate(is_committed=False)
    (warning,) = job.of_kind("warning")
    assert "no room (rank 1)" in warning["message"] and "the plan before trains on" in warning["message"]
    assert job.adopted == []
    job.train(90)
    assert len(job.questions) == 1
    job.train(10)
    assert len(job.questions) == 2 and job.questions[1].plan == job.planned.plan


def test_what_migrations_cost_is_the_price_of_the_next(job: Job) -> None:
    find(job)
    assert job.questions[0].price == MovePrice(fixed_ms=100.0, bytes_per_s=1e9)
    job.migrate()
    assert job.loop._prices.present == MovePrice(fixed_ms=30.0, bytes_per_s=pytest.approx(2**21 / 0.020))


def test_nothing_is_asked_after_a_stop(job: Job) -> None:
    job.commands.stop()
    find(job)
    hand_in(job.run, swapped(job.planned.plan))
    job.train(100)
    assert job.questions == [] and [command["kind"] for command in job.posted] == ["stop"]


def test_a_probe_is_waited_for_before_a_slow_link_is_asked_about(job: Job) -> None:
    job.commands.probe_links()
    link = replace(SLOW, cause=Cause.SLOW_LINK, rank=None)
    find(job, link)
    assert job.questions == []
    job.commands.take_answer({"kind": "links"})
    job.loop.see_verdict(replace(link, rank=1))
    job.proceed()
    assert job.questions[0].seen.slow_senders == (1,)


def test_a_search_that_stumbles_is_a_no_that_says_why(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(_: Question) -> Decision:
        raise RuntimeError("out of luck")

    job.search._decide = stumble
    find(job)
    assert job.answers() == ["no"] and "out of luck" in job.told[-1]["message"] and job.posted == []


def test_a_users_plan_is_moved_to_also_where_nothing_is_decided(planned: PricedPlan, tmp_path: Path) -> None:
    job = Job(planned, tmp_path, enabled=False)
    find(job)
    name = hand_in(job.run, swapped(planned.plan))
    job.proceed()
    assert job.questions == [] and job.of_kind("decision")[0]["trigger"] == "request"
    job.migrate()
    answer = await_answer(job.run, name, 1.0)
    assert answer["status"] == "moved" and answer["migration"]["pause_ms"] == 50.0
    job.train(30, lookup_forward_ms=9.0)
    (outcome,) = job.of_kind("outcome")
    assert outcome["realised_gain_ms"] < 0 and not outcome["is_rolled_back"] and len(job.posted) == 1


def test_a_users_plan_waits_for_the_move_under_way_but_not_for_its_comparison(job: Job) -> None:
    find(job)
    hand_in(job.run, job.planned.plan)
    job.train(20)
    assert len(job.posted) == 1
    job.migrate()
    job.proceed()
    assert len(job.posted) == 2 and job.of_kind("outcome") == []


def test_a_plan_that_is_not_feasible_is_refused_in_words(job: Job) -> None:
    wrong = ShardingPlan(2, job.planned.plan.tables[1:])
    name = hand_in(job.run, wrong)
    job.train(10)
    answer = await_answer(job.run, name, 1.0)
    assert answer["status"] == "refused" and "is missing from the plan" in answer["message"]
    assert job.answers() == ["no"] and job.posted == []


def test_the_plan_that_trains_already_is_no_move(job: Job) -> None:
    name = hand_in(job.run, job.planned.plan)
    job.train(10)
    assert await_answer(job.run, name, 1.0)["status"] == "unchanged" and job.posted == []


def test_a_request_whose_migration_failed_is_told(job: Job) -> None:
    name = hand_in(job.run, swapped(job.planned.plan))
    job.train(10)
    job.migrate(is_committed=False)
    assert await_answer(job.run, name, 1.0)["status"] == "failed"


def test_the_end_of_a_run_answers_who_still_waits(job: Job) -> None:
    taken = hand_in(job.run, swapped(job.planned.plan))
    job.train(10)
    waiting = hand_in(job.run, job.planned.plan)
    job.loop.close()
    assert {await_answer(job.run, name, 1.0)["status"] for name in (taken, waiting)} == {"ended"}


def test_what_is_remembered_is_bounded(planned: PricedPlan) -> None:
    memory = PlanMemory(planned.plan, WATCH, settle_steps=20)
    for first in range(1, 5001, 250):
        memory.add(steps_block(first, 250))
        memory.add(shards_block([first], {(0, "table_0"): 5.0}))
    assert len(memory._last.steps) == 50 and len(memory._first.steps) == 20
    assert memory._first.steps[0] == 11 and memory.last_step == 5000
    assert len(memory._ids._last) == len(memory._ids._first) == NUM_SAMPLES
    assert memory.observe(4995, ()) is None and memory.observe_healthy(15) is None


def test_ids_of_a_batch_count_once_however_a_table_is_cut() -> None:
    halves = (Shard(0, 0, 8, 0, 4), Shard(1, 0, 8, 4, 4))
    blocks = (Shard(0, 0, 4, 0, 8), Shard(1, 4, 4, 0, 8))
    replicas = (Shard(0, 0, 8, 0, 8), Shard(1, 0, 8, 0, 8))
    plan = ShardingPlan(
        2,
        (
            TablePlacement("cw", ShardingType.COLUMN_WISE, halves),
            TablePlacement("rw", ShardingType.ROW_WISE, blocks),
            TablePlacement("dp", ShardingType.DATA_PARALLEL, replicas),
        ),
    )
    ids = TableIds(plan)
    counts = {(0, "cw"): 10.0, (0, "rw"): 3.0, (0, "dp"): 6.0, (1, "cw"): 10.0, (1, "rw"): 7.0, (1, "dp"): 4.0}
    ids.add(shards_block([10, 20], counts, distinct=2.0))
    found, distinct = ids.since(10)
    assert found == {"cw": 10.0, "rw": 10.0, "dp": 10.0}
    assert distinct == {"cw": 2.0, "rw": 4.0}
    ids.add(shards_block([30], {place: 2 * count for place, count in counts.items()}))
    assert ids.since(25)[0]["cw"] == 20.0 and ids.before(25)[0]["cw"] == 10.0
    assert ids.since(99)[0]["cw"] == 20.0, "the newest sample speaks where none is new enough"


def test_findings_on_one_place_are_one_and_the_worst_comes_first() -> None:
    findings = StandingFindings(100)
    findings.note(SLOW)
    findings.note(replace(SLOW, cause=Cause.HOT_TABLE, severity_ms=1.0))
    findings.note(replace(SLOW, rank=0, severity_ms=1.5))
    assert findings.due(130) == replace(SLOW, rank=0, severity_ms=1.5)
    findings.note(replace(SLOW, rank=0, is_over=True))
    assert findings.due(130) == replace(SLOW, cause=Cause.HOT_TABLE, severity_ms=1.0)
    findings.rest(130)
    assert findings.due(229) is None and findings.due(230) is not None


def test_the_first_price_is_that_of_one_rank_that_sends(planned: PricedPlan) -> None:
    price = estimate_price(planned.problem, planned.estimator)
    assert price.fixed_ms == FIXED_MS and price.bytes_per_s == pytest.approx(1e9, rel=0.05)


def test_a_migration_that_moves_next_to_nothing_says_nothing_of_the_bandwidth() -> None:
    prices = PriceList(MovePrice(fixed_ms=100.0, bytes_per_s=1e9))
    prices.learn({"transfer_ms": 5.0, "pause_ms": 40.0, "moved_bytes": 100})
    assert prices.present == MovePrice(fixed_ms=35.0, bytes_per_s=1e9)
    assert np.isfinite(prices.present.pause_ms(1))
