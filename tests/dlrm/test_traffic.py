"""What is counted of the exchanges on real gloo ranks is what the plan says, to the byte."""

from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrm.job import TrainJob
from dlrm.size import count_dense_parameters
from dlrm.step_columns import COUNTERS, STEP_COLUMNS
from dlrm.trainer import Trainer
from planner.problem import PlanningProblem
from planner.tables import OptimizerKind, Workload
from planner.traffic import traffic_bytes
from tests.dlrm.test_trainer import TYPES_OF_PLANS, Place, make_job
from tests.ranks import run_ranks

NUM_STEPS = 4
PLANS = ("whole", *TYPES_OF_PLANS)
FIELDS = ("input_dist", "output_dist_forward", "output_dist_backward", "all_reduce")


def job_of(folder: Path, plan: str, num_nodes: int, pipeline: str = "base") -> TrainJob:
    types = None if plan == "whole" else plan
    return make_job(folder, types=types, num_nodes=num_nodes, pipeline=pipeline, steps=None, window_steps=NUM_STEPS)


def measure(rank: int, world_size: int, folder: Path, num_nodes: int) -> dict[str, tuple[Any, Any, Any, Any]]:
    """By plan: rows of steps and of shards, labels, and the ids of this rank's own samples a step and feature."""
    found = {}
    cases = [*((plan, "base") for plan in PLANS), ("mixed", "sparse_dist")]
    for plan, pipeline in cases:
        place = Place(rank, world_size)
        with closing(Trainer(place, job_of(folder, plan, num_nodes, pipeline))) as trainer:
            batches = list(islice(trainer.train_stream, NUM_STEPS))
            features = [batch.sparse_features for batch in batches]
            lengths = [dict(zip(each.keys(), each.length_per_key(), strict=True)) for each in features]
            distinct = [
                {key: len(set(each[key].values().tolist())) for key in each.keys()}  # noqa: SIM118
                for each in features
            ]
            trainer.time_steps(batches)
        found[f"{plan} {pipeline}"] = (place.rings.rows("steps"), place.rings, lengths, distinct)
    return found


@pytest.fixture(scope="module", params=[1, 2], ids=["one node", "two nodes"])
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[dict]]:
    num_nodes = request.param
    folder = tmp_path_factory.mktemp("traffic")
    return num_nodes, run_ranks(measure, 2 * num_nodes, folder, num_nodes, local_world_size=2)


@pytest.mark.distributed
@pytest.mark.parametrize("case", [*(f"{plan} base" for plan in PLANS), "mixed sparse_dist"])
def test_bytes_of_every_collective_equal_the_plans(measured: tuple[int, list[dict]], case: str, tmp_path: Path) -> None:
    num_nodes, ranks = measured
    job = job_of(tmp_path, case.split()[0], num_nodes)
    dense = count_dense_parameters(job.model, job.tables, job.schema.num_dense)
    workload = Workload(job.tables, job.train.batch_size, OptimizerKind.SGD, dense_parameters=dense)
    problem = PlanningProblem(workload, job.topology)
    rows, rings, _, _ = ranks[0][case]
    columns = rings.labels["steps"]["columns"]
    # Under sparse_dist a batch's ids are sent in the step before it trains, those of the second in the first.
    lag = 1 if "sparse_dist" in case else 0
    for step in range(NUM_STEPS - lag):
        own = {
            table.name: np.array([each[case][2][step + lag][table.feature_names[0]] for each in ranks])
            for table in job.tables
        }
        expected = traffic_bytes(problem, job.plan, own)
        for name in FIELDS[0 if step else lag :]:
            counted = rows[step, :, columns.index(f"{name}_bytes")]
            assert counted.tolist() == getattr(expected, name).tolist(), (name, step)


@pytest.mark.distributed
@pytest.mark.parametrize("plan", PLANS)
def test_ids_add_up_whatever_the_plan(measured: tuple[int, list[dict]], plan: str) -> None:
    _, ranks = measured
    rows, rings, _, _ = ranks[0][f"{plan} base"]
    labels, (counts,) = rings.labels["shards"], rings.rows("shards")
    total = rows[-1, :, rings.labels["steps"]["columns"].index("ids")]
    for rank, ids in enumerate(total):
        assert counts[np.array(labels["ranks"]) == rank, 0].sum() == ids
    by_table = {name: counts[[name == each for each in labels["tables"]]] for name in set(labels["tables"])}
    for name, table in by_table.items():
        looked_up = sum(each[f"{plan} base"][2][-1][name] for each in ranks)
        kind = labels["sharding_types"][labels["tables"].index(name)]
        copies = 1 if kind != "column_wise" else table[:, 0].sum() / looked_up
        assert copies == int(copies) and table[:, 0].sum() == copies * looked_up
        if kind == "data_parallel":
            assert table[:, 1].tolist() == [each[f"{plan} base"][3][-1][name] for each in ranks]
        else:
            assert 0 < table[:, 1].max() <= sum(each[f"{plan} base"][3][-1][name] for each in ranks)


@pytest.mark.distributed
def test_groups_of_a_mixed_plan_have_their_own_lookup_times(measured: tuple[int, list[dict]]) -> None:
    _, ranks = measured
    rows, rings, _, _ = ranks[0]["mixed base"]
    columns = rings.labels["steps"]["columns"]
    parts = columns[len(STEP_COLUMNS) : -len(COUNTERS)]
    assert {name.split("/")[1] for name in parts} == {"row_wise", "column_wise", "data_parallel", "table_wise"}
    for whole in ("lookup_forward_ms", "lookup_backward_ms"):
        times = rows[..., [columns.index(name) for name in parts if name.startswith(whole)]]
        assert (times.max(axis=(0, 1)) > 0).all()
        assert times.sum(axis=-1) == pytest.approx(rows[..., columns.index(whole)], rel=0.05)
    assert ranks[0]["whole base"][1].labels["steps"]["columns"] == [*STEP_COLUMNS, *COUNTERS]
