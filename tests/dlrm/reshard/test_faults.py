"""A migration that fails on one rank leaves the old plan training on all of them, and nothing is lost."""

import gc
import weakref
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from dlrm.config import ReshardConfig
from dlrm.reshard import room
from dlrm.reshard.migration import Migrated
from dlrm.reshard.sharded import Builder
from dlrm.reshard.stages import At, Stage
from dlrm.reshard.vote import Fault
from planner.topology import Topology
from tests.dlrm.reshard.moving import Job, Piece, deviation, plan_of
from tests.dlrm.test_equivalence import topology
from tests.ranks import run_ranks

STAGINGS = ("device", "host")
FAULTY_RANK = 1
CASES = [(kind, staging, stage) for kind in ("rowwise_adagrad", "adam") for staging in STAGINGS for stage in Stage]
STEPS = 2
"""Before the migration that fails, between it and one that succeeds, and after that."""
SMALL_CHUNK_BYTES = 1 << 16
"""Several rounds of parcels, so that a fault amid the transfer has some before and some after it."""


def fail_at(stage: Stage, is_here: bool) -> At:
    """What a planted fault does on a rank that has it."""

    def at(reached: Stage) -> None:
        if is_here and reached is stage:
            raise RuntimeError(f"planted at {stage}")

    return at


@dataclass(frozen=True)
class Ended:
    """A run with a migration that fails and one that does not, on one rank."""

    fault: Fault | None
    staging: str
    was: list[Piece]
    now: list[Piece]
    losses: list[float]
    later_fault: Fault | None


def fail_and_go_on(rank: int, where: Topology, kind: str, staging: str, at: At) -> Ended:
    config = ReshardConfig(SMALL_CHUNK_BYTES, staging)
    job = Job(rank, where, kind, plan_of("mixed", where), config)
    for _ in range(STEPS):
        job.step()
    was = job.pieces()
    failed = job.move(plan_of("row_wise", where), at)
    now = job.pieces()
    for _ in range(STEPS):
        job.step()
    later = job.move(plan_of("table_wise", where))
    for _ in range(STEPS):
        job.step()
    return Ended(failed.fault, failed.staging, was, now, job.losses, later.fault)


def train_through(rank: int, where: Topology, kind: str, moves: bool) -> list[float]:
    """Losses of the same run without the migration that fails, or without any."""
    job = Job(rank, where, kind, plan_of("mixed", where))
    for number in range(3 * STEPS):
        if moves and number == 2 * STEPS:
            job.move(plan_of("table_wise", where))
        job.step()
    return job.losses


def run_out_of_memory(rank: int, where: Topology) -> tuple[Migrated, list[Piece], list[Piece]]:
    """One rank has 1000 bytes left."""
    job = Job(rank, where, "adam", plan_of("table_wise", where))
    job.step()
    was = job.pieces()
    with pytest.MonkeyPatch.context() as patch:
        if rank == FAULTY_RANK:
            patch.setattr(room, "free_bytes", lambda _: 1000)
        migrated = job.move(plan_of("row_wise", where))
    return migrated, was, job.pieces()


def watch_the_old_shards(rank: int, where: Topology, staging: str) -> list[bool]:
    """Whether the old collection and its kernels were still there each time that new shards were built."""
    job = Job(rank, where, "rowwise_adagrad", plan_of("row_wise", where), ReshardConfig(staging=staging))
    job.step()
    kernels = [each.emb_module for lookup in job.collection._lookups for each in lookup._emb_modules]
    old = [weakref.ref(each) for each in (job.collection, *kernels)]
    assert len(old) > 1
    del kernels
    seen: list[bool] = []
    build = Builder.build

    def watch(self: Builder, *args: Any) -> Any:
        seen.append(any(each() is not None for each in old))
        return build(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Builder, "build", watch)
        assert job.move(plan_of("table_wise", where)).fault is None
    gc.collect()
    assert all(each() is None for each in old)
    job.step()
    return seen


def run_all(rank: int, world_size: int, where: Topology) -> dict[Any, Any]:
    """One start of the ranks serves all, since importing torch takes longer than training."""
    found: dict[Any, Any] = {
        (kind, staging, stage): fail_and_go_on(rank, where, kind, staging, fail_at(stage, rank == FAULTY_RANK))
        for kind, staging, stage in CASES
    }
    for kind in ("rowwise_adagrad", "adam"):
        found[kind] = train_through(rank, where, kind, moves=True), train_through(rank, where, kind, moves=False)
    migrated, was, now = run_out_of_memory(rank, where)
    found["memory"] = migrated.fault, migrated.announced_bytes, was, now
    found["watched"] = {staging: watch_the_old_shards(rank, where, staging) for staging in STAGINGS}
    return found


@pytest.fixture(scope="module")
def ended() -> list[dict[Any, Any]]:
    return run_ranks(run_all, 2, topology(2, 2))


def bits(pieces: list[Piece]) -> list[tuple]:
    return [(p.table, p.row_offset, p.col_offset, *(each.tobytes() for each in p.values)) for p in pieces]


@pytest.mark.distributed
@pytest.mark.parametrize(("kind", "staging", "stage"), CASES)
def test_all_ranks_tell_of_the_same_fault(ended: list[dict], kind: str, staging: str, stage: Stage) -> None:
    faults = [rank[kind, staging, stage].fault for rank in ended]
    assert faults[0] == faults[1] and faults[0] is not None
    assert {rank[kind, staging, stage].staging for rank in ended} == {staging}
    if stage is Stage.CORRUPT:
        assert faults[0].rank is None and faults[0].text.startswith("checksums of ")
    else:
        assert faults[0] == Fault(FAULTY_RANK, f"RuntimeError: planted at {stage}")


@pytest.mark.distributed
@pytest.mark.parametrize(("kind", "staging", "stage"), CASES)
def test_no_bit_of_the_old_plan_is_lost(ended: list[dict], kind: str, staging: str, stage: Stage) -> None:
    for rank in ended:
        case, (moved, never_moved) = rank[kind, staging, stage], rank[kind]
        assert bits(case.was) == bits(case.now)
        assert case.losses[: 2 * STEPS] == never_moved[: 2 * STEPS]
        assert case.later_fault is None and case.losses == moved


@pytest.mark.distributed
def test_the_later_migration_changes_nothing_either(ended: list[dict]) -> None:
    for rank in ended:
        moved, never_moved = rank["adam"]
        assert deviation(torch.tensor(moved).numpy(), torch.tensor(never_moved).numpy()) < 1e-6


@pytest.mark.distributed
def test_a_move_that_does_not_fit_is_refused_with_the_bytes(ended: list[dict]) -> None:
    (fault, _, _, _), (same, announced_bytes, _, _) = (rank["memory"] for rank in ended)
    assert fault == same and fault.rank == FAULTY_RANK
    assert announced_bytes > 1000 and "1,000 bytes are free" in fault.text
    assert f"{announced_bytes:,} bytes" in fault.text
    for rank in ended:
        _, _, was, now = rank["memory"]
        assert bits(was) == bits(now)


@pytest.mark.distributed
def test_staging_in_host_memory_lets_the_old_shards_go_first(ended: list[dict]) -> None:
    for rank in ended:
        assert rank["watched"] == {"device": [True], "host": [False]}
