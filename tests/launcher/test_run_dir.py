import json
from pathlib import Path

import pytest

from launcher.run_dir import RunDir, locate_runs, write_beside


def test_a_taken_name_gets_a_number(tmp_path: Path) -> None:
    names = [RunDir.create(str(tmp_path), "a", None).path.name for _ in range(3)]
    assert names == ["a", "a-2", "a-3"]


def test_a_run_is_named_after_its_config_and_a_repeated_one_after_the_run(tmp_path: Path) -> None:
    first = RunDir.create(str(tmp_path), None, Path("configs/quickstart.yaml"))
    assert first.path.name.startswith("quickstart-2")
    again = RunDir.create(str(tmp_path), None, first.path / "config.yaml")
    assert again.path.name.startswith(first.path.name)


def test_inside_a_job_relative_runs_leave_the_copy_that_ray_deletes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(copy)
    assert locate_runs("runs") == tmp_path / "home" / "runs"
    assert locate_runs("/data/runs") == Path("/data/runs")
    monkeypatch.chdir(tmp_path)
    assert locate_runs("runs") == tmp_path / "runs"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    write_beside(file, "old")
    with pytest.raises(TypeError):
        write_beside(file, 5)  # type: ignore[arg-type]
    assert file.read_text() == "old"


def test_a_record_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    run = RunDir.create(str(tmp_path), "a", None)
    with run.open_records() as file:
        file.write(json.dumps({"step": 1}) + "\n" + '{"step": 2')
    assert list(run.records()) == [{"step": 1}]


def test_plans_are_kept_in_order(tmp_path: Path) -> None:
    run = RunDir.create(str(tmp_path), "a", None)
    for number in range(12):
        run.write_plan({"number": number})
    assert [plan["number"] for plan in run.plans()] == list(range(12))
