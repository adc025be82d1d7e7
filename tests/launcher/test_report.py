"""A report of a run's folder: figures of the telemetry, words for people, runs without it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from cluster.imbalance.verdict import Cause, Verdict
from cluster.telemetry import Block
from launcher.run_dir import RunDir
from launcher.telemetry_file import TelemetryFile
from launcher.views import measured
from launcher.views.measured import read_windows
from launcher.views.report import NoRunError, percentile_95, read_report
from launcher.views.report_text import MOST_RANKS, render_report
from launcher.views.tables import MAX_WIDTH
from tests.launcher.made_telemetry import evaluation, resharding_records, shards_block, steps_block, window

VERDICT = Verdict(20, Cause.SLOW_DEVICE, 1, (), 1.0, 11)


def make_run(path: Path, *blocks: Block, records: list[dict[str, Any]], ranks: int = 2) -> RunDir:
    path.mkdir(exist_ok=True)
    (path / "plans").mkdir()
    run = RunDir(path)
    planned = {"node": "n", "num_shards": 3, "hbm_bytes": 2**20, "lookup_forward_ms": 1.5}
    run.write_plan({"ranks": [{"rank": rank, **planned} for rank in range(ranks)]})
    run.write_status("done", 0, step=20)
    with run.open_records() as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    telemetry = TelemetryFile(run)
    for block in blocks:
        telemetry.show_block(block)
    telemetry.close()
    return run


def a_run(path: Path) -> RunDir:
    """Twenty steps, the second ten of them out of balance, delivered in odd pieces."""
    quiet, slow = steps_block(1, 10), steps_block(11, 10, slow_rank=1, data_wait_ms=[0.5, 2.5])
    rows, steps = np.concatenate([quiet.rows, slow.rows]), np.arange(1, 21)
    pieces = [Block("steps", quiet.labels, steps[part], rows[part]) for part in (slice(0, 7), slice(7, 20))]
    shards = shards_block([10, 20], {(0, "a"): 10.0, (1, "b"): 30.0, (0, "b"): 40.0}, distinct=6.0)
    records = [window(10), window(20, slowest=25.0), evaluation(), VERDICT.to_record()]
    return make_run(path, *pieces, shards, records=records)


def test_the_figures_of_a_report(tmp_path: Path) -> None:
    report = read_report(a_run(tmp_path).path)
    assert json.loads(json.dumps(report)) == report
    assert report["imbalance"] == {"first": 1.0, "last": pytest.approx(2 / 1.5), "max": pytest.approx(2 / 1.5)}
    assert report["telemetry"] == {"num_steps": 20} and report["steps"] == 20
    assert report["step_ms"] == {"median": 23.0, "p95": pytest.approx(24.8)}
    assert report["data_wait_ms"] == pytest.approx(1.75)  # the median of 1.0 and 2.5, of the slowest rank
    assert (report["qps"], report["auc"], report["ne"]) == (1000.0, 0.6, 0.8)
    assert report["verdicts"] == [VERDICT.to_record()]
    first, second = report["ranks"]
    assert (first["work_ms"], second["work_ms"]) == (6.0, 6.5)
    assert (first["waiting_ms"], second["waiting_ms"]) == (0.5, 0.0)
    assert second["own_share"] == pytest.approx(6.5 / 20.0) and second["lookup_forward_ms"] == 1.5
    assert second["estimated_lookup_forward_ms"] == 1.5 and second["ids"] == 1001.0 and second["peak_bytes"] == 1e9


def test_a_report_tells_of_every_collective_who_waits(tmp_path: Path) -> None:
    found = {collective["name"]: collective for collective in read_report(a_run(tmp_path).path)["collectives"]}
    assert found["output_dist_forward"] == {
        "name": "output_dist_forward",
        "transfer_ms": 1.0,
        "waits_least": {"rank": 1, "waiting_ms": 0.0},
        "waits_most": {"rank": 0, "waiting_ms": 0.5},
        "bytes": [4096.0, 4096.0],
    }
    assert set(found) == {"input_dist", "output_dist_forward", "output_dist_backward", "all_reduce"}


def test_the_hottest_tables_come_first(tmp_path: Path) -> None:
    found = read_report(a_run(tmp_path).path)["tables"]
    assert found == [
        {"name": "b", "sharding_type": "table_wise", "ranks": [1, 0], "ids": 70.0, "distinct_ids": 12.0},
        {"name": "a", "sharding_type": "table_wise", "ranks": [0], "ids": 10.0, "distinct_ids": 6.0},
    ]


def test_large_byte_counts_stay_exact(tmp_path: Path) -> None:
    block = steps_block(1, 10, all_reduce_bytes=2**33 + 1)
    report = read_report(make_run(tmp_path, block, records=[window()]).path)
    assert report["collectives"][3]["bytes"] == [2**33 + 1, 2**33 + 1]


def test_windows_are_ten_steps_however_they_were_delivered(tmp_path: Path) -> None:
    lookups = np.arange(1.0, 24.0)[:, None] * [1, 1]
    whole = steps_block(1, 23, lookup_forward_ms=lookups)
    pieces = [slice(0, 3), slice(3, 5), slice(5, 21), slice(21, 23)]
    blocks = [Block("steps", whole.labels, whole.steps[part], whole.rows[part]) for part in pieces]
    (found,) = read_windows(make_run(tmp_path, *blocks, records=[]))
    assert found.num_steps == 23
    assert found.column("lookup_forward_ms")[:, 0].tolist() == [5.5, 15.5, 22.0]


def test_a_long_run_keeps_a_bounded_number_of_windows_spread_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "MOST_WINDOWS", 8)
    steps = np.arange(1, 2001)
    blocks = [steps_block(first, 250, lookup_forward_ms=steps[first - 1 : first + 249, None]) for first in steps[::250]]
    (found,) = read_windows(make_run(tmp_path, *blocks, records=[]))
    kept = found.column("lookup_forward_ms")[:, 0]
    assert 8 <= len(kept) < 16 and found.num_steps == 2000 and len(found.imbalances) == 200
    assert kept[0] == 5.5 and len(set(np.diff(kept))) == 1 and kept[-1] > 2000 - 2 * np.diff(kept)[0]


def test_ranks_that_wait_in_turns_both_wait(tmp_path: Path) -> None:
    rank_0_waits = np.arange(10) % 3 == 0
    waits = np.stack([rank_0_waits, ~rank_0_waits], axis=1)
    block = steps_block(1, 10, output_dist_forward_ms=1.0 + waits)
    found = read_report(make_run(tmp_path, block, records=[window()]).path)["collectives"][1]
    assert found["waits_least"] == {"rank": 0, "waiting_ms": pytest.approx(0.4)}
    assert found["waits_most"] == {"rank": 1, "waiting_ms": pytest.approx(0.6)} and found["transfer_ms"] == 1.0


def test_a_rank_that_never_looks_up_has_no_imbalance(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps_block(1, 10, lookup_forward_ms=0.0), records=[window()])
    assert read_report(run.path)["imbalance"] is None


def test_people_read_balance_verdicts_and_waiting_within_100_columns(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    text = printed(read_report(run.path), run.path)
    assert "own work" in text and "waiting" in text and max(map(len, text.splitlines())) <= MAX_WIDTH
    (row,) = [line for line in text.splitlines() if line.split()[:1] == ["1"]]
    assert row.split()[-6:] == ["1.50", "1.50", "6.50", "0.00", "20.00", "1.75"]
    assert "verdict at step 20: rank 1 is slow: 1.00 ms a step lost since step 11" in text
    assert "waiting: most in output_dist_forward, rank 0 0.50 ms, rank 1 0.00 ms; transfer 1.00 ms" in text
    assert "done after 20 steps" in text and "first 1.00, last 1.33" in text


def test_a_migration_is_told_with_its_decision_and_its_outcome(tmp_path: Path) -> None:
    decision, migration, outcome = resharding_records()
    refused = {**decision, "step": 30, "move": None, "answer": "no", "message": "hot_table on rank 1: no: too late"}
    failed = {**migration, "step": 30, "move": 0, "is_committed": False, "fault": "no room", "fault_rank": 1}
    records = [window(), refused, failed, decision, migration, outcome]
    run = make_run(tmp_path, steps_block(1, 10), records=records)
    report = read_report(run.path)
    assert report["decisions"] == [refused, decision]
    lost, made = report["migrations"]
    assert made["step"] == 46 and made["reason"] == "it pays" and made["trigger"] == "verdict"
    assert (made["moved_bytes"], made["pause_ms"]) == (2**21, 120.0)
    assert (made["predicted_gain_ms"], made["realised_gain_ms"], made["is_rolled_back"]) == (3.0, 2.5, False)
    assert (lost["is_committed"], lost["fault"], lost["realised_gain_ms"]) == (False, "no room", None)
    text = printed(report, run.path)
    assert "decision at step 30: hot_table on rank 1: no: too late" in text
    rows = [line.split() for line in text.splitlines() if "MiB" in line and "hot_table" in line]
    assert rows == [["46", "hot_table", "1", "2.0", "MiB", "120", "4.0", "MiB", "3.00", "2.50", "made"]]
    assert max(map(len, text.splitlines())) <= MAX_WIDTH


def test_a_report_of_many_ranks_says_how_many_it_does_not_show(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps_block(1, 10, ranks=40, slow_rank=3), records=[window()], ranks=40)
    text = printed(read_report(run.path), run.path)
    assert f"and {40 - MOST_RANKS} more ranks" in text


@pytest.mark.parametrize("has_times", [True, False])
def test_a_run_without_telemetry_has_a_report_that_says_so(tmp_path: Path, has_times: bool) -> None:
    record = window() if has_times else {key: value for key, value in window().items() if key != "step_ms"}
    run = make_run(tmp_path, records=[record, evaluation()])
    report = read_report(run.path)
    assert report["telemetry"] is None and report["imbalance"] is None and report["data_wait_ms"] is None
    assert (report["step_ms"] is not None) == has_times and report["collectives"] == report["tables"] == []
    text = printed(report, run.path)
    assert "no telemetry" in text and "1,000 samples/s" in text and "AUC 0.6000" in text


def test_a_run_that_never_trained_has_a_report(tmp_path: Path) -> None:
    run = make_run(tmp_path, records=[])
    assert "done after 20 steps" in printed(read_report(run.path), run.path)


def test_any_other_folder_has_none(tmp_path: Path) -> None:
    with pytest.raises(NoRunError, match="no status"):
        read_report(tmp_path)


def test_percentile_of_one_window_is_that_window() -> None:
    assert percentile_95([3.0]) == 3.0
    assert percentile_95([float(i) for i in range(101)]) == pytest.approx(95.0)


def printed(report: dict[str, Any], path: Path) -> str:
    """The report as a terminal of 100 columns shows it; the folder's own name, which may be long, as a dot."""
    console = Console(width=MAX_WIDTH, highlight=False)
    with console.capture() as captured:
        for part in render_report(report, path):
            console.print(part, soft_wrap=not isinstance(part, Table))
    return captured.get().replace(str(path), ".")
