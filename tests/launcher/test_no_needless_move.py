"""No plan is left without need: what the driver finds, asks and answers over noisy steps, with real parts but Ray's."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster.imbalance.settings import WatchSettings
from cluster.imbalance.verdict import Cause, Verdict
from cluster.imbalance.watcher import Watcher
from cluster.mailbox import Drained
from cluster.telemetry import Block
from launcher.bench.detect_synthetic import DENSE_MS, TABLES_PER_RANK, TRANSFER_MS, Fleet, draw_fleet, make_trace
from launcher.commands import Commands
from launcher.config import load_config
from launcher.delivery import Delivery
from launcher.estimators import build_estimator
from launcher.preparation import describe_task
from launcher.priced_plan import PricedPlan
from launcher.resharding.loop import Resharding, Surroundings
from launcher.resharding.price import PriceList, estimate_price
from launcher.resharding.requests import RequestBox
from launcher.resharding.search import Search, replanner
from launcher.run_dir import RunDir
from launcher.schema import ReshardingSection
from launcher.views.base import Observer
from planner.cost.estimator import PHASES
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.replan import ReplanSettings
from planner.search.registry import SearchSettings, make_plan
from planner.sharding import ShardingType
from planner.topology import Device, DeviceType, Link, Topology

NUM_RANKS = 4
POLL_STEPS, WINDOW_STEPS = 50, 10
LOOKUPS = ("lookup_forward", "lookup_backward")
HOT_FACTOR = 1.4
"""Times the ids of one rank's tables while the load drifts: 40 steps lose less than a move costs."""
DRIFT_STEP = 301

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def planned(repository: Path) -> PricedPlan:
    """The quick start on four made-up ranks of slow memory: lookups are most of a step, and tables stay whole."""
    whole = ["planner.constraints=[{tables: ['*'], sharding_types: [table_wise]}]"]
    task = describe_task(load_config(repository / "configs" / "quickstart.yaml", whole))
    devices = tuple(Device(r, "n", r, DeviceType.CPU, "cpu", 1 << 34, 0, 1e9, 5e10, 1e-5) for r in range(NUM_RANKS))
    topology = Topology("t", devices, Link(1e9, 1e-5), Link(1e9, 1e-5))
    estimator = build_estimator(topology, None)
    found = make_plan(task.problem(topology), "portfolio", SearchSettings(estimator, budget_s=1.0))
    return PricedPlan.of(found, estimator)


class MadeUpRanks:
    """Ranks that train as the model says, with the noise of real steps, under whatever plan they were told to.

    A poll brings the next `POLL_STEPS` steps; a command is answered in the poll after it.
    """

    world_size = NUM_RANKS

    def __init__(self, planned: PricedPlan, num_steps: int, seed: int, drift: range) -> None:
        self.planned, self.plan, self.drift = planned, planned.plan, drift
        self.num_steps, self.step = num_steps, 0
        self.commands: list[dict[str, Any]] = []
        self.answers: list[dict[str, Any]] = []
        self._generator = np.random.default_rng(seed)
        fleet = draw_fleet(self._generator, NUM_RANKS, num_steps)
        usual_ms = {name: np.median(fleet.work_ms[name], axis=0) for name in LOOKUPS} | DENSE_MS
        self._work = {name: fleet.work_ms[name] / usual_ms[name] for name in fleet.work_ms}
        self._transfer = {name: ms / TRANSFER_MS[name] for name, ms in fleet.transfer_ms.items()}

    def post(self, command: Any) -> None:
        """Take a command."""
        self.commands.append(command)
        self.answers.append(self._links() if command["kind"] == "probe_links" else self._migrate(command))

    def moves(self) -> list[dict[str, Any]]:
        """Commands to move, in order."""
        return [command for command in self.commands if command["kind"] == "reshard"]

    def poll(self, timeout_s: float, ranks: list[int]) -> tuple[Drained]:
        """Answers, then the next steps and windows."""
        first, self.step = self.step, min(self.num_steps, self.step + POLL_STEPS)
        answers, self.answers = self.answers, []
        for answer in answers:
            if answer["kind"] == "migration":
                self.plan = ShardingPlan.from_dict(self.commands[-1]["plan"])
        windows = [self._window(step) for step in range(first + WINDOW_STEPS, self.step + 1, WINDOW_STEPS)]
        return (Drained((*answers, *windows), 0, self._blocks(first, self.step)),)

    def _blocks(self, first: int, last: int) -> tuple[Block, ...]:
        """Both series of steps first + 1 to last, cut where the load changes."""
        cuts = [first, *(step - 1 for step in (self.drift.start, self.drift.stop) if first < step - 1 < last), last]
        return tuple(block for part in pairwise(cuts) for block in (self._steps(*part), self._shards(*part)))

    def _steps(self, begin: int, end: int) -> Block:
        part = slice(begin, end)
        usual_ms = dict(zip(PHASES, self.planned.estimator.estimate(self._load(end), self.plan).phases_ms, strict=True))
        fleet = Fleet(
            {name: noise[part] * usual_ms[name] for name, noise in self._work.items()},
            {name: noise[part] * usual_ms[name].max() for name, noise in self._transfer.items()},
            np.zeros((end - begin, NUM_RANKS)),
            np.ones((end - begin, NUM_RANKS, TABLES_PER_RANK)),
        )
        block = make_trace(fleet, "made up", 0, None).steps
        ids = np.zeros(NUM_RANKS)
        for table in self.plan.tables:
            for rank, num_ids in self._shard_ids(table.name, end):
                ids[rank] += num_ids
        column = list(block.labels["columns"]).index("ids")
        block.rows[..., column] = self._generator.poisson(ids, (end - begin, NUM_RANKS))
        return replace(block, steps=np.arange(begin + 1, end + 1))

    def _shards(self, begin: int, end: int) -> Block:
        """Every tenth step's ids of each shard."""
        found = [(table, *shard) for table in self.plan.tables for shard in self._shard_ids(table.name, end)]
        steps = np.array([step for step in range(begin + 1, end + 1) if step % WINDOW_STEPS == 0], dtype=np.int64)
        labels = {
            "columns": ["ids", "distinct_ids"],
            "ranks": [rank for _, rank, _ in found],
            "tables": [table.name for table, _, _ in found],
            "sharding_types": [table.sharding_type.value for table, _, _ in found],
        }
        rows = np.full((len(steps), len(found), 2), np.nan)
        rows[..., 0] = self._generator.poisson([ids for _, _, ids in found], (len(steps), len(found)))
        return Block("shards", labels, steps, rows)

    def _shard_ids(self, table: str, step: int) -> list[tuple[int, float]]:
        """(rank, ids a step) of each shard of a table: rows divide the ids, and so do replicas; columns do not."""
        placement = next(each for each in self.plan.tables if each.name == table)
        spec = self._load(step).tables[table]
        ids = spec.pooling_factor * len(spec.feature_names) * self.planned.problem.arrays.samples
        if placement.sharding_type is ShardingType.DATA_PARALLEL:
            return [(shard.rank, ids / NUM_RANKS) for shard in placement.shards]
        return [(shard.rank, ids * shard.num_rows / spec.num_embeddings) for shard in placement.shards]

    def _load(self, step: int) -> PlanningProblem:
        """What is looked up in a step."""
        return self._hot if step in self.drift else self.planned.problem

    @cached_property
    def _hot(self) -> PlanningProblem:
        """One rank's tables with more ids."""
        problem = self.planned.problem
        hot = {table.name for table in self.planned.plan.tables if table.ranks == (1,)}
        tables = tuple(
            replace(table, pooling_factor=HOT_FACTOR * table.pooling_factor) if table.name in hot else table
            for table in problem.workload.tables
        )
        return replace(problem, workload=replace(problem.workload, tables=tables))

    def _window(self, step: int) -> dict[str, Any]:
        return {"kind": "window", "step": step, "total_steps": self.num_steps}

    def _links(self) -> dict[str, Any]:
        send_ms = [[None if i == j else 0.1 for j in range(NUM_RANKS)] for i in range(NUM_RANKS)]
        return {"kind": "links", "step": self.step, "send_ms": send_ms}

    def _migrate(self, command: dict[str, Any]) -> dict[str, Any]:
        return {
            "kind": "migration",
            "step": self.step,
            "move": command["move"],
            "is_committed": True,
            "moved_bytes": 2**21,
            "pause_ms": 200.0,
            "transfer_ms": 20.0,
            "fault": None,
            "fault_rank": None,
            "message": "made up",
        }


class Seen(Observer):
    """Keeps every record but windows."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def show(self, record: dict[str, Any]) -> None:
        """See Observer."""
        if record["kind"] != "window":
            self.records.append(record)

    def answers(self) -> list[str]:
        """What was decided, in order."""
        return [record["answer"] for record in self.records if record["kind"] == "decision"]


class Driver:
    """What `launcher.controller` puts together, around made-up ranks; a search ends within its poll."""

    def __init__(
        self, planned: PricedPlan, folder: Path, num_steps: int, seed: int = 0, drift: range = range(0), **wanted: Any
    ) -> None:
        self.ranks, self.seen, self.planned = MadeUpRanks(planned, num_steps, seed, drift), Seen(), planned
        watch, commands = WatchSettings(), Commands(self.ranks.post)
        self.watcher = Watcher(watch, planned.cost.lookup_ms)
        settings = ReplanSettings(margin=1.2, budget_s=0.2, seed=seed)
        self.search = Search(replanner(planned.problem, planned.estimator, settings))
        self.resharding = Resharding(
            ReshardingSection(**{"enabled": True, **wanted}),
            watch,
            planned,
            PriceList(estimate_price(planned.problem, planned.estimator)),
            self.search,
            Surroundings(commands, self.seen.show, self._adopt, RequestBox(RunDir(folder))),
        )
        self.delivery = Delivery(self.ranks, self.seen, self.watcher, commands, self.resharding)  # type: ignore[arg-type]

    def train(self, meanwhile: Callable[[], object] = lambda: None) -> "Driver":
        """All steps; `meanwhile` is called after every poll."""
        while self.ranks.step < self.ranks.num_steps:
            self.delivery.carry(0.0)
            meanwhile()
            self.resharding.proceed()
            if self.search._asked is not None:
                self.search._asked[1].exception(timeout=30)
                self.resharding.proceed()
        self.resharding.close()
        return self

    def _adopt(self, moved_to: PricedPlan, step: int, is_promise: bool) -> None:
        self.watcher.reset(moved_to.cost.lookup_ms)


def test_a_drift_that_stays_is_moved_for_once(planned: PricedPlan, tmp_path: Path) -> None:
    """The other tests would prove nothing were this drift not worth a move."""
    driver = Driver(planned, tmp_path, 1500, drift=range(DRIFT_STEP, 1501)).train()
    assert len(driver.ranks.moves()) == 1 and driver.seen.answers()[0] == "move"
    (outcome,) = [record for record in driver.seen.records if record["kind"] == "outcome"]
    assert outcome["realised_gain_ms"] > 0 and not outcome["is_rolled_back"]


def test_ten_thousand_clean_steps_with_noise_move_nothing(planned: PricedPlan, tmp_path: Path) -> None:
    driver = Driver(planned, tmp_path, 10_000).train()
    assert driver.ranks.moves() == []


def test_a_false_alarm_moves_nothing(planned: PricedPlan, tmp_path: Path) -> None:
    """Were the watch wrong, the figures are still those of a plan in balance."""
    causes = (Cause.SLOW_DEVICE, Cause.HOT_TABLE, Cause.SLOW_LINK)
    alarms = iter([(cause, rank) for cause in causes for rank in range(NUM_RANKS)])

    told: list[Verdict] = []

    def alarm() -> None:
        """Ends the alarm before, and raises the next."""
        step = driver.ranks.step
        if told:
            driver.resharding.see_verdict(replace(told.pop(), is_over=True))
        if step >= 500 and (subject := next(alarms, None)):
            told.append(Verdict(step, *subject, (), 2.0, step - 40))
            driver.resharding.see_verdict(told[0])

    driver = Driver(planned, tmp_path, 1200)
    driver.train(alarm)
    assert driver.ranks.moves() == [] and driver.seen.answers() == ["no"] * NUM_RANKS * len(causes)


@pytest.mark.parametrize(
    ("num_steps", "drift", "settings"),
    [
        pytest.param(360, range(DRIFT_STEP, 361), {}, id="the job ends"),
        pytest.param(1000, range(DRIFT_STEP, 361), {"horizon_steps": 40}, id="the drift ends"),
    ],
)
def test_a_drift_that_ends_before_the_price_is_earned_moves_nothing(
    num_steps: int, drift: range, settings: dict[str, int], planned: PricedPlan, tmp_path: Path
) -> None:
    driver = Driver(planned, tmp_path, num_steps, drift=drift, **settings).train()
    assert driver.ranks.moves() == [] and driver.seen.answers()[:1] == ["no"]
    (first, *_) = [record for record in driver.seen.records if record["kind"] == "decision"]
    assert 0 < first["predicted_gain_ms"] * first["remaining_steps"] <= 1.2 * first["price_ms"]


def test_advice_is_given_and_nothing_moves(planned: PricedPlan, tmp_path: Path) -> None:
    driver = Driver(planned, tmp_path, 1500, drift=range(DRIFT_STEP, 1501), mode="advise").train()
    assert driver.ranks.moves() == [] and driver.ranks.plan is planned.plan
    assert "advised" in driver.seen.answers() and "move" not in driver.seen.answers()
