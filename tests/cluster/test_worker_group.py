"""Workers train together over real gloo, answer while they train, fail as one, and leave nothing."""

import os
import signal
import time
from typing import Any

import numpy as np
import pytest
import ray

from cluster.errors import ClusterError, WorkerFailure
from cluster.inventory import Inventory, take_inventory
from cluster.mailbox import Drained
from cluster.worker_group import GroupOptions, WorkerGroup
from tests.cluster import rank_functions
from tests.cluster.rank_functions import SMALL_OUTBOX

pytestmark = [pytest.mark.ray, pytest.mark.distributed]
PATIENCE_S = 60.0


def wait_until(is_true: Any, what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline_s, f"{what} did not happen within {PATIENCE_S:g} s"
        time.sleep(0.05)


def test_two_workers_reduce_and_know_their_place(warm_group: WorkerGroup) -> None:
    references = warm_group.run(rank_functions.add_up, 1.5)
    results = warm_group.join()
    assert len(references) == 2
    assert [result["sum"] for result in results] == [[4.5, 4.5]] * 2
    assert [result["place"] for result in results] == [(0, 2, 0, 2), (1, 2, 1, 2)]
    assert [result["environment"] for result in results] == [(0, 2, 0, 2), (1, 2, 1, 2)]
    assert {(result["device"], result["backend"], result["threads"]) for result in results} == {("cpu", "gloo", 1)}
    assert [result["node_id"] for result in results] == [slot.node_id for slot in warm_group.inventory.slots]


def test_workers_keep_the_memory_that_they_free(warm_group: WorkerGroup) -> None:
    """All 32 tensors would wait otherwise; the heap grows a few times until small blocks no longer split its gaps."""
    warm_group.run(rank_functions.count_fresh_tensors, 2**25)
    assert max(warm_group.join()) < 16


def test_workers_report_and_take_a_command_while_they_run(warm_group: WorkerGroup) -> None:
    warm_group.run(rank_functions.report_until_told)
    seen: dict[int, list[int]] = {0: [], 1: []}

    def poll_once() -> bool:
        for drained in warm_group.poll():
            for record in drained.records:
                seen[record["rank"]].append(record["step"])
        return all(len(steps) > 3 for steps in seen.values())

    wait_until(poll_once, "reports from both ranks")
    assert not warm_group.wait(0.0)
    with pytest.raises(ClusterError, match="still running"):
        warm_group.run(rank_functions.add_up, 1.0)
    command_id = warm_group.post({"kind": "stop"})
    assert warm_group.join() == ({"kind": "stop", "id": command_id},) * 2
    assert all(steps == sorted(set(steps)) for steps in seen.values())
    warm_group.poll()
    assert warm_group.post({"kind": "none"}) == command_id + 1


def test_a_controller_that_does_not_poll_loses_the_oldest_and_is_told(warm_group: WorkerGroup) -> None:
    warm_group.run(rank_functions.report_many, 20)
    warm_group.join()
    for drained in warm_group.poll(PATIENCE_S):
        assert drained.records == tuple(range(20 - SMALL_OUTBOX, 20))
        assert drained.num_dropped == 20 - SMALL_OUTBOX


@pytest.mark.parametrize("function", [lambda context: None, type("Local", (), {"__qualname__": "a.<locals>.b"})])
def test_only_functions_that_workers_can_import_run(warm_group: WorkerGroup, function: Any) -> None:
    with pytest.raises(ClusterError) as info:
        warm_group.run(function)
    assert info.value.reason == "function"


def test_sys_exit_and_a_result_that_cannot_travel_are_failures_too(warm_group: WorkerGroup) -> None:
    warm_group.run(rank_functions.leave_on_rank, 1)
    with pytest.raises(WorkerFailure, match=r"Rank 1 failed with builtins\.SystemExit"):
        warm_group.join()
    warm_group.run(rank_functions.return_unpicklable)
    with pytest.raises(WorkerFailure) as info:
        warm_group.join()
    assert info.value.num_consequences == 1


def test_what_is_held_cannot_be_placed_and_a_shutdown_frees_it(warm_group: WorkerGroup, pair: Inventory) -> None:
    inventory = take_inventory("cpu", 3)
    with pytest.raises(ClusterError, match=r"3 workers of \{'CPU': 1.0\}.*free now: 2 CPUs") as info:
        WorkerGroup.start(inventory, GroupOptions(start_timeout_s=0.5))
    assert info.value.reason == "resources"
    with WorkerGroup.start(pair) as group:
        assert ray.available_resources().get("CPU", 0) == 0
    wait_until(lambda: ray.available_resources().get("CPU", 0) == 2, "release of 2 CPUs")
    group.shutdown()
    with pytest.raises(ClusterError, match="shut down"):
        group.run(rank_functions.add_up, 1.0)


def test_the_rank_that_raised_is_reported_not_the_one_that_waits(pair: Inventory) -> None:
    with WorkerGroup.start(pair) as group:
        group.run(rank_functions.fail_on_rank, 1)
        with pytest.raises(WorkerFailure) as info:
            group.join()
    failure = info.value
    assert (failure.reason, failure.rank, failure.num_consequences) == ("worker_failed", 1, 1)
    assert failure.error_type == "builtins.LookupError"
    assert 'raise LookupError(f"row 17' in failure.traceback_text
    assert failure.node_id == group.inventory.slots[1].node_id
    with open(failure.log_path) as log:
        assert "row 17 is missing on rank 1" in log.read()
    assert str(failure).count("Traceback (most recent call last)") == 1


def test_a_cause_that_reports_late_still_comes_first(pair: Inventory) -> None:
    with WorkerGroup.start(pair) as group:
        group.run(rank_functions.fail_and_disconnect, 1)
        with pytest.raises(WorkerFailure, match="the real cause") as info:
            group.join()
    assert (info.value.rank, info.value.num_consequences) == (1, 1)


def test_a_killed_worker_is_named_with_its_node(pair: Inventory) -> None:
    with WorkerGroup.start(pair) as group:
        group.run(rank_functions.die_on_rank, 1)
        with pytest.raises(WorkerFailure, match="Rank 1 was lost on node") as info:
            group.join()
        assert [drained.records for drained in group.poll()] == [(), ()]
    assert (info.value.reason, info.value.rank, info.value.num_consequences) == ("worker_lost", 1, 1)
    assert info.value.host == group.workers[1].host


def test_the_last_rows_come_from_a_survivor(pair: Inventory) -> None:
    with WorkerGroup.start(pair, GroupOptions(ring_bytes=2**16)) as group:
        group.run(rank_functions.measure_until_killed, 0)
        steps: list[int] = []
        wait_until(lambda: steps.extend(poll_steps(group)) or len(steps) == 20, "20 steps")
        group.post({"kind": "go on"})
        with pytest.raises(WorkerFailure, match="Rank 0 was lost"):
            group.join()
        assert group.poll(PATIENCE_S, ranks=[0])[0].blocks == ()
        (last,) = group.poll_survivor(PATIENCE_S).blocks
        assert group.poll_survivor(PATIENCE_S).blocks == ()
    assert steps == list(range(1, 21))
    assert last.steps.tolist() == list(range(21, 36)) and last.num_dropped == 0
    assert last.labels == {"columns": ["step_ms", "other_ms"]}
    assert (last.rows[:, :, 0] == last.steps[:, None] * [1, 2]).all() and (last.rows[:, :, 1] == [0, 1]).all()


def test_without_survivors_there_is_nothing_to_wait_for(pair: Inventory) -> None:
    with WorkerGroup.start(pair) as group:
        group.run(rank_functions.die_on_rank, 0)
        os.kill(group.workers[1].pid, signal.SIGKILL)
        with pytest.raises(WorkerFailure):
            group.join()
        assert group.poll_survivor(PATIENCE_S) == Drained()


def poll_steps(group: WorkerGroup) -> list[int]:
    """The numbers of new rows on rank 0, which fit what it measured."""
    blocks = group.poll(ranks=[0])[0].blocks
    for block in blocks:
        assert np.array_equal(block.rows[:, :, 0], block.steps[:, None] * [1, 2])
    return [step for block in blocks for step in block.steps.tolist()]


def test_a_stalled_rank_is_named_as_the_suspect(pair: Inventory) -> None:
    with WorkerGroup.start(pair, GroupOptions(collective_timeout_s=10.0, settle_s=0.5)) as group:
        group.run(rank_functions.stall_on_rank, 1)
        with pytest.raises(WorkerFailure, match="still busy: rank 1") as info:
            group.join()
    assert info.value.rank == 0
