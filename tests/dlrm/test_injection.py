"""Planted faults on real gloo ranks: each shows in its own phase, rank and steps, and leaves nothing behind."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm.data.batches import Batch
from dlrm.errors import DlrmError
from dlrm.injection.batches import add_ids, shift_ids
from dlrm.injection.config import KINDS, InjectionConfig, check_injections, injection_problems
from dlrm.injection.faults import FAULTS
from dlrm.injection.hog import CoreHog
from dlrm.injection.injections import Injections
from dlrm.injection.waits import CudaStretch, wait_on_stream
from dlrm.job import TrainJob
from dlrm.options import limit_faults
from dlrm.shards import sharded_collections
from dlrm.step_columns import COUNTERS, STEP_COLUMNS
from dlrm.trainer import Trainer, train
from tests.dlrm.test_trainer import Place, make_job, window_losses
from tests.ranks import run_ranks

NUM_STEPS, FIRST, LAST = 12, 5, 8
CLEAN, FAULTY = [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7]
# Fifty times as long, so that no disturbance of the machine looks like it.
PERCENT, MS = 5_000.0, 40.0
LOOKUPS = {"lookup_forward_ms", "lookup_backward_ms"}
DENSE = {"dense_forward_ms", "dense_backward_ms", "optimizer_ms"}
OWN = (*LOOKUPS, *DENSE, "other_ms")
EXCHANGES = ("input_dist_ms", "output_dist_forward_ms", "output_dist_backward_ms")
WATCHED = {
    "clean": (),
    "slow_lookups": (InjectionConfig("slow_lookups", [1], FIRST, LAST, percent=PERCENT),),
    "slow_device": (InjectionConfig("slow_device", [1], FIRST, LAST, percent=PERCENT),),
    "slow_link": (InjectionConfig("slow_link", [1], FIRST, LAST, ms=MS),),
    "checkpoint_spikes": (InjectionConfig("checkpoint_spikes", [1], FIRST, LAST, ms=MS, period_steps=3),),
    "hot_table": (InjectionConfig("hot_table", None, FIRST, LAST, percent=200.0, tables=["table_1"]),),
    "hot_rows": (InjectionConfig("hot_rows", [0], FIRST, LAST),),
}
PIPELINES = {"hot_table": ("base", "sparse_dist"), "slow_link": ("base", "sparse_dist")}


def run_watched(rank: int, world_size: int, job: TrainJob) -> tuple[np.ndarray, list[dict], list[str]]:
    """Rows [N, W, C] of all steps, the records, and the names of the columns."""
    place = Place(rank, world_size)
    train(place, job)
    return place.rings.rows("steps"), list(place.outbox), place.rings.labels["steps"]["columns"]


def run_all(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    """One start of the ranks serves all tests."""
    found: dict[str, Any] = {}
    for kind, configs in WATCHED.items():
        for pipeline in PIPELINES.get(kind, ("base",)):
            job = make_job(folder, steps=NUM_STEPS, window_steps=4, checkpoint=False, pipeline=pipeline, eval_batches=1)
            job = dataclasses.replace(job, injections=configs)
            found[kind, pipeline] = run_watched(rank, world_size, job)
    found["traces"] = run_by_hand(rank, world_size, folder)
    return found


def run_by_hand(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    """What is attached, and where the process may run, before a fault, under it and after it."""
    trainer = Trainer(Place(rank, world_size), make_job(folder, steps=None, checkpoint=False))
    model, optimizer, cores = trainer.rig.model, trainer.rig.optimizer, os.sched_getaffinity(0)
    found: dict[str, Any] = {"before": count_hooks(model)}
    kinds = ["slow_device", "slow_link", "checkpoint_spikes", "hog_core"]
    injections = Injections([InjectionConfig(kind, [1], 2, 3) for kind in kinds], rank, world_size, trainer.device)
    injections.attach(model, optimizer)
    found["messages"] = [injections.at_step(step) for step in (1, 2)]
    found["under"], found["hogs"] = count_hooks(model), [children(), len(os.sched_getaffinity(0))]
    injections.attach(model, optimizer)
    found["attached again"] = count_hooks(model)
    found["messages"] += [injections.at_step(step) for step in (3, 4)]
    found["after"] = count_hooks(model)
    found["is free"] = (os.sched_getaffinity(0) == cores) and not children()
    injections.at_step(2)
    injections.close()
    injections.at_step(2)
    found["closed"] = count_hooks(model)
    trainer.close()
    return found


INPUT_DIST = "ShardedEmbeddingBagCollection.input_dist"


def count_hooks(model: torch.nn.Module) -> tuple[int, int]:
    """Hooks on all modules, and methods that something has put itself in front of."""
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    replaced = [each for each in sharded_collections(model) if each.input_dist.__qualname__ != INPUT_DIST]
    return hooks, len(replaced)


def children() -> int:
    return len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(run_all, 2, tmp_path_factory.mktemp("injection"))


def ratios(rows: np.ndarray, rank: int) -> dict[str, float]:
    """By column: the least of the steps with the fault against the usual without."""
    own = rows[:, rank, : len(STEP_COLUMNS)]
    usual = np.median(own[CLEAN], axis=0)
    return dict(zip(STEP_COLUMNS, own[FAULTY].min(axis=0) / np.maximum(usual, 1e-3), strict=True))


@pytest.mark.distributed
@pytest.mark.parametrize(("kind", "slow"), [("slow_lookups", LOOKUPS), ("slow_device", LOOKUPS | DENSE)])
def test_slow_work_shows_in_its_phases_and_on_its_rank_alone(ran: list[dict], kind: str, slow: set[str]) -> None:
    rows = ran[0][kind, "base"][0]
    assert rows.shape[0] == NUM_STEPS
    slower = ratios(rows, rank=1)
    assert {column for column in OWN if slower[column] > 10} == slow
    assert max(ratios(rows, rank=0)[column] for column in OWN) < 10


@pytest.mark.distributed
@pytest.mark.parametrize("pipeline", ["base", "sparse_dist"])
def test_a_slow_link_holds_up_every_exchange_and_no_work(ran: list[dict], pipeline: str) -> None:
    rows = ran[0]["slow_link", pipeline][0]
    exchanges = rows[FAULTY][:, :, [STEP_COLUMNS.index(name) for name in EXCHANGES]]
    # Ids of the next batch are exchanged beside the step by sparse_dist, and waited for by whoever needs them first.
    waited_for = exchanges if pipeline == "base" else exchanges[:, :, 1:]
    assert (waited_for[:, 1] >= MS).all() and (np.median(waited_for[:, 0], axis=0) >= MS / 2).all()
    work = rows[FAULTY][:, :, [STEP_COLUMNS.index(name) for name in OWN]]
    assert np.median(work, axis=0).max() < MS
    assert np.median(rows[CLEAN][:, :, STEP_COLUMNS.index("output_dist_backward_ms")]) < MS


@pytest.mark.distributed
def test_spikes_come_in_every_so_manyth_step_between_the_phases(ran: list[dict]) -> None:
    other_ms = ran[0]["checkpoint_spikes", "base"][0][:, :, STEP_COLUMNS.index("other_ms")]
    assert (other_ms[:, 1] >= MS).nonzero()[0].tolist() == [5]
    assert (other_ms[:, 0] < MS).all()


@pytest.mark.distributed
@pytest.mark.parametrize("pipeline", ["base", "sparse_dist"])
def test_a_hot_table_has_more_ids_in_its_steps(ran: list[dict], pipeline: str) -> None:
    rows, _, columns = ran[0]["hot_table", pipeline]
    clean, _, _ = ran[0]["clean", "base"]
    extra = (rows - clean)[:, :, columns.index(COUNTERS[0])].sum(axis=1)
    assert extra[CLEAN].tolist() == [0] * len(CLEAN) and (extra[FAULTY] > 0).all()
    # Every table is whole on one rank, which alone has the more to do.
    assert ((rows - clean)[FAULTY][:, :, columns.index(COUNTERS[0])] > 0).sum(axis=1).tolist() == [1] * len(FAULTY)


@pytest.mark.distributed
def test_delays_change_nothing_that_is_learned_and_other_rows_do(ran: list[dict]) -> None:
    clean = window_losses(ran[0]["clean", "base"][1])
    for kind in ("slow_lookups", "slow_device", "slow_link", "checkpoint_spikes"):
        assert window_losses(ran[0][kind, "base"][1]) == clean
    shifted = window_losses(ran[0]["hot_rows", "base"][1])
    assert shifted[0] == clean[0] and shifted[1] != clean[1]


@pytest.mark.distributed
def test_beginning_and_end_are_told(ran: list[dict]) -> None:
    def warnings(kind: str) -> list[tuple[int, str]]:
        records = ran[0][kind, "base"][1]
        return [(record["step"], record["message"]) for record in records if record["kind"] == "warning"]

    assert warnings("clean") == []
    assert warnings("slow_link") == [
        (4, "planted fault: slow_link +40 ms on rank 1, steps 5 to 8"),
        (8, "planted fault is over: slow_link +40 ms on rank 1"),
    ]


@pytest.mark.distributed
def test_hooks_and_processes_are_there_while_the_fault_is_and_on_its_rank(ran: list[dict]) -> None:
    spared, struck = (rank["traces"] for rank in ran)
    assert spared["messages"] == struck["messages"] and [len(each) for each in struck["messages"]] == [0, 4, 0, 4]
    assert spared["under"] == spared["before"] and spared["hogs"][0] == 0
    assert all(np.array(struck["under"]) > struck["before"]) and struck["hogs"] == [1, 1]
    assert struck["attached again"] == struck["under"]
    assert struck["after"] == struck["closed"] == struck["before"]
    assert struck["is free"] and spared["is free"]


def test_without_a_fault_nothing_is_attached() -> None:
    model = torch.nn.Linear(2, 2)
    injections, batch = Injections([], 0, 2, torch.device("cpu")), object()
    injections.attach(model, None)
    assert injections.at_step(1) == [] and injections.transform(batch) is batch
    assert not model._forward_hooks and not model._forward_pre_hooks


HOG = """
import sys, threading, time
from dlrm.injection.hog import CoreHog
from dlrm.injection.waits import CudaStretch, wait_on_stream
hog = CoreHog(0)
hog.begin()
print(hog._child.pid, flush=True)
time.sleep(60)
"""


def test_a_hog_dies_with_its_rank() -> None:
    rank = subprocess.Popen([sys.executable, "-c", HOG], stdout=subprocess.PIPE, text=True)
    assert rank.stdout is not None
    hog = Path("/proc") / rank.stdout.readline().strip()
    assert hog.exists()
    rank.kill()
    rank.wait()
    deadline_s = time.monotonic() + 20
    while _is_running(hog) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert not _is_running(hog)


def _is_running(process: Path) -> bool:
    """Whether it is there and no zombie that nobody has fetched yet."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ranks_of_one_machine_are_hogged_on_cores_of_their_own() -> None:
    cores = os.sched_getaffinity(0)
    pinned = []
    for rank in range(len(cores)):
        hog = CoreHog(rank)
        hog.begin()
        pinned += os.sched_getaffinity(0)
        hog.end()
    assert sorted(pinned) == sorted(cores) and os.sched_getaffinity(0) == cores


@pytest.mark.gpu
def test_work_on_a_gpu_is_stretched_by_its_stream_not_by_the_host() -> None:
    stretch, matrix = CudaStretch(400.0), torch.randn(4096, 4096, device="cuda")
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def run() -> float:
        began.record()
        stretch.begin()
        for _ in range(20):
            matrix @ matrix
        stretch.end()
        ended.record()
        is_waited_for = not ended.query()
        ended.synchronize()
        assert is_waited_for
        return began.elapsed_time(ended)

    wait_on_stream(1.0)
    matrix @ matrix
    torch.cuda.synchronize()
    first_ms, *later_ms = [run() for _ in range(5)]
    assert min(later_ms) > 3 * first_ms


def make_batch(ids: list[list[list[int]]]) -> Batch:
    """A batch of features a, b, ... with the ids of every sample."""
    lengths = torch.tensor([len(sample) for feature in ids for sample in feature], dtype=torch.int32)
    values = torch.tensor([each for feature in ids for sample in feature for each in sample], dtype=torch.int64)
    sparse = KeyedJaggedTensor(keys=[chr(97 + index) for index in range(len(ids))], values=values, lengths=lengths)
    return Batch(torch.zeros(len(ids[0]), 1), sparse, torch.zeros(len(ids[0])))


def read_batch(batch: Batch) -> list[list[list[int]]]:
    features = batch.sparse_features.to_dict()
    return [[each.tolist() for each in features[key].to_dense()] for key in batch.sparse_features.keys()]  # noqa: SIM118


samples = st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=3, max_size=3)


@given(
    ids=st.lists(samples, min_size=2, max_size=3),
    donor=st.lists(st.integers(100, 109), max_size=9),
    percent=st.floats(0, 300),
)
def test_further_ids_are_the_donors_and_spread_evenly(
    ids: list[list[list[int]]], donor: list[int], percent: float
) -> None:
    batch = make_batch(ids)
    hot, *others = read_batch(add_ids(batch, {"a": torch.tensor(donor, dtype=torch.int64)}, percent))
    assert others == ids[1:] and read_batch(batch) == ids
    num_ids = sum(map(len, ids[0]))
    assert sum(map(len, hot)) == int(num_ids * (1 + percent / 100))
    for more, before in zip(hot, ids[0], strict=True):
        assert len(more) == pytest.approx(len(before) * (1 + percent / 100), abs=1)
        assert not donor or [each for each in more if each < 100] == before
        assert donor or set(more) == set(before)
    further = [each for sample in hot for each in sample if each >= 100]
    assert further == (donor * len(further))[: len(further)]


@given(ids=st.lists(samples, min_size=2, max_size=2), share=st.floats(0, 1))
def test_shifted_ids_stay_in_their_table(ids: list[list[list[int]]], share: float) -> None:
    batch = make_batch(ids)
    shifted, other = read_batch(shift_ids(batch, {"a": 10}, share))
    assert shifted == [[(each + round(10 * share)) % 10 for each in sample] for sample in ids[0]]
    assert other == ids[1] and read_batch(batch) == ids


def test_every_kind_does_something() -> None:
    assert set(FAULTS) == set(KINDS)
    assert all(not list(limit_faults(InjectionConfig(kind))) for kind in KINDS)


def test_all_that_is_wrong_is_told_at_once() -> None:
    configs = [InjectionConfig("slow_link", [0, 2], 9, 3), InjectionConfig("hot_table", [], tables=["usr"])]
    assert list(injection_problems(configs)) == [
        "inject[0].to_step: 3 is before from_step, 9",
        "inject[1].ranks: an empty list is no rank; null means all",
    ]
    with pytest.raises(DlrmError) as caught:
        check_injections([*configs, InjectionConfig("slow_lookup")], ["user", "item"], world_size=2)
    assert caught.value.reason == "injection"
    for words in ("no rank 2; this job has 2", "no table 'usr'; did you mean 'user'", "inject[2].kind: 'slow_lookup'"):
        assert words in str(caught.value)
