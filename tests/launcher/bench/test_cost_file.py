"""Files of measured costs are read or refused with their line; models that are scored on them tell apart."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from launcher.bench.baselines import (
    ByteLeastSquares,
    NeuroShardNetwork,
    TorchRecLookups,
    best_constant,
    gather_sets,
    torchrec_bytes,
)
from launcher.bench.comms_file import Exchanges, bench_comms, running_speed, score_by_time
from launcher.bench.compute_file import score_split, split
from launcher.bench.cost_data import (
    DIMS,
    SAMPLES,
    CostFileError,
    mean_uses,
    read_comms_costs,
    read_compute_costs,
)
from launcher.bench.metrics import error_metrics, mean_and_spread
from launcher.cli import main
from planner.lookups import NUM_REUSE_BINS, LookupArrays, LookupSet, LookupShard
from planner.tables import OptimizerKind

NUM_TABLES = 5
HEADER = "table,num_embeddings,pooling_factor," + ",".join(f"bin_{index}" for index in range(NUM_REUSE_BINS))


def _silent(text: str) -> None:
    pass


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Five tables; the last one was never looked up."""
    rows = [HEADER]
    for index in range(NUM_TABLES):
        bins = [0.0] * NUM_REUSE_BINS
        if index < NUM_TABLES - 1:
            bins[index], bins[index + 1] = 0.75, 0.25
        pooling_factor = 0 if index == NUM_TABLES - 1 else 2 * index + 1
        rows.append(",".join(map(str, (index, 10 ** (index + 2), pooling_factor, *bins))))
    path = tmp_path / "tables.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def compute_file(tmp_path: Path) -> Path:
    """Sets of one to six tables whose time is 2 ms + 0.01 ms a column and shard."""
    generator, lines = np.random.default_rng(0), []
    for _ in range(60):
        ids = generator.integers(0, NUM_TABLES * len(DIMS), generator.integers(1, 7))
        cost_ms = 2 + 0.01 * sum(DIMS[each // NUM_TABLES] for each in ids)
        lines.append(f"task: {','.join(map(str, ids))} | cost: {cost_ms}")
    path = tmp_path / "compute.txt"
    path.write_text("\n".join(lines))
    return path


def _write_comms(path: Path, num_lines: int, speed: NDArray[np.float64], world_size: int = 4) -> Path:
    """All-to-alls that take 1 ms + 0.02 ms a dim of the busiest rank + 0.01 ms a dim in all, at a speed."""
    generator = np.random.default_rng(1)
    lines = []
    for factor in speed[:num_lines]:
        dims = generator.integers(8, 400, world_size)
        skew_ms = generator.integers(0, 5, world_size)
        skew_ms -= skew_ms.min()
        transfer_ms = factor * (1 + 0.02 * dims.max() + 0.01 * dims.sum())
        forward_ms = transfer_ms + skew_ms.max() - skew_ms
        fields = (dims, skew_ms, forward_ms, [transfer_ms] * world_size)
        lines.append(" ".join(",".join(map(str, field)) for field in fields))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_ids_name_a_width_and_a_table(tables: Path, tmp_path: Path) -> None:
    costs = tmp_path / "costs.txt"
    costs.write_text(f"task: 1,{2 * NUM_TABLES + 3} | cost: 12.5\n\ntask: {NUM_TABLES - 1} | cost: 3\n")
    read = read_compute_costs(costs, tables)
    lookups = read.lookups
    assert read.cost_ms.tolist() == [12.5, 3.0]
    assert lookups.set_index.tolist() == [0, 0, 1]
    assert lookups.num_cols.tolist() == [128, 32, 128]
    assert lookups.num_rows.tolist() == [1e3, 1e5, 1e6]
    assert lookups.ids_per_sample.tolist() == [3, 7, 0]
    # Three of four rows are used up to 8 times, five to eight on average; the fourth nine to sixteen times.
    uses = 0.75 * 6 + 0.25 * 12
    assert lookups.distinct_rows.tolist() == pytest.approx([1e3, SAMPLES * 7 / uses, 0])
    assert (lookups.samples == SAMPLES).all()
    assert not lookups.state_bytes.any()


def test_the_mean_uses_of_a_row_lie_within_its_bin() -> None:
    uses = mean_uses(np.eye(NUM_REUSE_BINS))
    assert uses[:2].tolist() == [1, 2]
    assert (uses <= 2.0 ** np.arange(NUM_REUSE_BINS)).all()
    assert (uses[1:] > 2.0 ** np.arange(NUM_REUSE_BINS - 1)).all()


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("task: 1,2 cost: 3", r"costs.txt:2: expected `task: ID,ID,... \| cost: MS`, found 'task: 1,2 cost: 3'"),
        ("task: 1,,2 | cost: 3", r"costs.txt:2: ids: could not convert"),
        ("task: 30 | cost: 3", r"costs.txt:2: id 30 is beyond the 6 widths of the 5 tables in .*tables.csv"),
        ("task: 1 | cost: 0", r"costs.txt:2: cost: expected milliseconds above 0, found 0.0"),
        ("task: 1 | cost: nan", r"costs.txt:2: cost: expected finite numbers"),
    ],
)
def test_a_bad_line_of_compute_costs_is_named(tables: Path, tmp_path: Path, line: str, fault: str) -> None:
    costs = tmp_path / "costs.txt"
    costs.write_text(f"task: 1 | cost: 3\n{line}\n")
    with pytest.raises(CostFileError, match=fault):
        read_compute_costs(costs, tables)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("table,rows\n0,5\n", r"tables.csv:1: expected the columns table,num_embeddings,"),
        (f"{HEADER}\n0,5,1\n", r"tables.csv:2: expected 20 columns, found 3"),
        (f"{HEADER}\n0,0{',1' * 18}\n", r"tables.csv:2: num_embeddings is 0"),
        (f"{HEADER}\n", r"tables.csv: no tables"),
    ],
)
def test_a_bad_file_of_tables_is_named(compute_file: Path, tmp_path: Path, content: str, fault: str) -> None:
    tables = tmp_path / "tables.csv"
    tables.write_text(content)
    with pytest.raises(CostFileError, match=fault):
        read_compute_costs(compute_file, tables)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("8,8 0,0 1,1", r"comms.txt:2: expected dims, skews, forward times, backward times, found 3 fields"),
        ("8,8,8 0,0,0 1,1,1 1,1,1", r"comms.txt:2: expected 2 figures a field, found \[3, 3, 3, 3\]"),
        ("8,8 0,0 1,-1 1,1", r"comms.txt:2: forward times: expected finite numbers of at least 0"),
        ("8,8 0,0 1,1 1,0", r"comms.txt:2: backward times: expected milliseconds above 0"),
    ],
)
def test_a_bad_line_of_communication_costs_is_named(tmp_path: Path, line: str, fault: str) -> None:
    costs = tmp_path / "comms.txt"
    costs.write_text(f"8,4 0,1 1.5,0.5 1,1\n{line}\n")
    with pytest.raises(CostFileError, match=fault):
        read_comms_costs(costs)


def test_every_part_of_a_split_is_used_once(compute_file: Path, tables: Path) -> None:
    costs = read_compute_costs(compute_file, tables)
    parts = split(costs, seed=3)
    assert [part[0].num_sets for part in parts] == [48, 6, 6]
    assert sorted(np.concatenate([part[1] for part in parts])) == sorted(costs.cost_ms)


def test_baselines_are_scored_on_what_they_have_not_seen(compute_file: Path, tables: Path) -> None:
    """Least squares knows the law that made the times; TorchRec's formula charges ids as well, so it cannot."""
    costs = read_compute_costs(compute_file, tables)
    fitters = {
        "torchrec": lambda train, validation, seed, progress: TorchRecLookups.fit(*train).predict_ms,
        "nnls": lambda train, validation, seed, progress: ByteLeastSquares.fit(*train).predict_ms,
    }
    scores = score_split(costs, 0, fitters, _silent)
    assert scores["nnls"]["mape"] < 1e-6
    assert scores["nnls"]["spearman"] == pytest.approx(1)
    assert scores["torchrec"]["mape"] > 0.05


def test_torchrec_is_given_its_own_formula() -> None:
    """Against TorchRec's evaluator itself, where the installed version has it."""
    planner_types = pytest.importorskip("torchrec.distributed.planner.estimator.types")
    estimator = pytest.importorskip("torchrec.distributed.planner.estimator.estimator")
    config = planner_types.HardwarePerfConfig()
    shards = [LookupShard(1000, cols, 3.5, 900.0, (0.0,) * NUM_REUSE_BINS) for cols in (4, 32, 64, 128, 256)]
    lookups = LookupArrays.of([LookupSet(512, OptimizerKind.SGD, tuple(shards))])
    expected = []
    for shard in shards:
        context = planner_types.ShardPerfContext(
            sharding_type="table_wise",
            compute_kernel="fused",
            hash_size=shard.num_rows,
            emb_dim=shard.num_cols,
            batch_sizes=[512],
            num_poolings=[1.0],
            input_lengths=[shard.ids_per_sample],
            device_bw=1.0,
        )
        evaluator = estimator.TableWiseEvaluator()
        expected.append(evaluator.compute_fwd_comp(context, config) + evaluator.compute_bwd_comp(context, config))
    np.testing.assert_allclose(torchrec_bytes(lookups), expected)


def test_the_best_constant_beats_its_neighbours() -> None:
    generator = np.random.default_rng(0)
    estimates, target = generator.uniform(1, 5, 101), generator.uniform(1, 5, 101)
    best = best_constant(estimates, target)
    errors = [np.abs(best * factor * estimates / target - 1).mean() for factor in (0.97, 0.99, 1, 1.01, 1.03)]
    assert min(errors) == errors[2]


def test_the_network_learns_a_sum_over_tables_and_sees_no_order(compute_file: Path, tables: Path) -> None:
    train, validation, test = split(read_compute_costs(compute_file, tables), seed=0)
    said: list[str] = []
    model = NeuroShardNetwork.fit(*train, validation, seed=0, epochs=400, progress=said.append)
    assert len(said) == 10
    assert error_metrics(model.predict_ms(test[0]), test[1])["mape"] < 0.15
    alone = [model.predict_ms(test[0].subset(np.array([index])))[0] for index in range(test[0].num_sets)]
    np.testing.assert_allclose(model.predict_ms(test[0]), alone, rtol=1e-4)


def test_gathered_shards_are_those_of_their_sets() -> None:
    starts = torch.tensor([0, 2, 2, 5])
    shards, index = gather_sets(starts, torch.tensor([2, 1, 0, 2]))
    assert shards.tolist() == [2, 3, 4, 0, 1, 2, 3, 4]
    assert index.tolist() == [0, 0, 0, 2, 2, 3, 3, 3]


def test_metrics_of_a_perfect_and_of_a_constant_estimate() -> None:
    measured = np.array([1.0, 2.0, 4.0])
    assert error_metrics(measured, measured) == {"rmse_ms": 0.0, "mape": 0.0, "spearman": pytest.approx(1.0)}
    assert error_metrics(np.full(3, 2.0), measured) == pytest.approx(
        {"rmse_ms": np.sqrt(5 / 3), "mape": 0.5, "spearman": 0.0}
    )
    runs = [{"rmse_ms": value, "mape": value, "spearman": value} for value in (1.0, 3.0)]
    assert mean_and_spread(runs)["mape"] == 2.0
    assert mean_and_spread(runs)["mape_std"] == pytest.approx(np.sqrt(2))
    assert mean_and_spread(runs[:1])["mape_std"] == 0.0


def test_drift_within_the_train_part_and_a_jump_before_the_test_part_are_corrected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first 100 lines ran at two thirds of the speed, the test part at 0.8 of it: the canary tells."""
    monkeypatch.setattr("launcher.bench.comms_file.EPOCHS", 2)
    speed = np.concatenate([np.full(100, 1.5), np.full(220, 1.0), np.full(80, 1.25)])
    costs = read_comms_costs(_write_comms(tmp_path / "comms.txt", 400, speed))
    backward = Exchanges(costs.sent_bytes, None, costs.backward_ms)
    found = running_speed(backward.part(slice(0, 320)))
    assert np.median(found[:90]) / np.median(found[110:]) == pytest.approx(1.5, rel=0.1)
    scores = score_by_time(backward, 0, _silent)
    assert scores["ours"]["mape"] < 0.03
    assert scores["ours_without_canary"]["mape"] == pytest.approx(0.2, abs=0.03)
    assert scores["ours"]["mape"] < scores["nnls"]["mape"] + 0.02 < scores["torchrec"]["mape"] + 0.02


def test_too_few_lines_are_refused(tmp_path: Path) -> None:
    costs = read_comms_costs(_write_comms(tmp_path / "comms.txt", 50, np.ones(50)))
    with pytest.raises(CostFileError, match="50 lines are too few to split; expected 200 or more"):
        bench_comms(costs, 1, _silent)


def test_the_comms_command_prints_one_object_a_phase(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.bench.comms_file.EPOCHS", 2)
    path = _write_comms(tmp_path / "comms.txt", 240, np.ones(240))
    assert main(["bench", "cost-file", "--comms", "--costs", str(path), "--seeds", "2", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["canary_lines"] == 20
    for phase in ("forward", "backward"):
        assert set(found[phase]) == {"ours", "ours_without_canary", "torchrec", "nnls", "neuroshard"}
        assert {"rmse_ms", "mape", "spearman", "mape_std"} <= set(found[phase]["ours"])
        assert found[phase]["ours"]["mape"] < 0.05
    assert "seed 1, backward, nnls: RMSE" in printed.err
    assert main(["bench", "cost-file", "--comms", "--costs", str(path), "--seeds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "ours_without_canary" in shown
    assert "slowest rank" in shown


def test_the_compute_command_prints_one_entry_a_model(
    compute_file: Path, tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--costs", str(compute_file), "--tables", str(tables)]
    assert main(["bench", "cost-file", *files, "--seeds", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"ours", "torchrec", "nnls", "neuroshard"}
    assert found["nnls"]["mape"] < 1e-6
    assert found["ours"]["spearman"] > 0.8


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--costs", "no_such_file", "--comms"], "no_such_file"),
        (["--costs", "no_such_file"], "--tables is missing"),
        (["--costs", "x", "--tables", "y", "--comms"], "--tables is of no use to --comms"),
        (["--costs", "x", "--comms", "--seeds", "0"], "--seeds is 0, expected at least 1"),
    ],
)
def test_wrong_use_is_one_message(arguments: list[str], fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "cost-file", *arguments]) == 2
    assert fault in capsys.readouterr().err


def test_measured_all_to_alls_are_explained_within_nine_percent(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slowest rank of 8, forward, in the last fifth of a real file of 5,010 lines, by time."""
    monkeypatch.setattr("launcher.bench.comms_file.EPOCHS", 1)
    costs = read_comms_costs(shared_data / "costs" / "comm_8.txt")
    scores = score_by_time(Exchanges(costs.sent_bytes, costs.skew_ms, costs.forward_ms), 0, _silent)
    assert scores["ours"]["mape"] <= 0.09
    assert scores["ours"]["mape"] < 0.6 * scores["nnls"]["mape"] < 0.6 * scores["torchrec"]["mape"]


def test_measured_fused_sets_are_read_whole(shared_data: Path) -> None:
    folder = shared_data
    costs = read_compute_costs(folder / "costs" / "compute_8.txt", folder / "tables" / "dlrm_tables_2021.csv")
    assert costs.lookups.num_sets == len(costs.cost_ms) == 5010
    assert np.isfinite(costs.lookups.distinct_rows).all()
    scores = score_split(
        costs, 0, {"nnls": lambda train, validation, seed, progress: ByteLeastSquares.fit(*train).predict_ms}, _silent
    )
    assert scores["nnls"]["mape"] == pytest.approx(0.16, abs=0.02)
