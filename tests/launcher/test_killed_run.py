"""A run whose process is killed leaves its records, measured steps and events, up to what was last delivered."""

import subprocess
import sys
from pathlib import Path

from launcher.run_dir import RunDir
from launcher.telemetry_file import read_shards, read_steps
from launcher.views.report import read_report
from tests.launcher.test_tensorboard import read

POLLS_BEFORE_THE_KILL = 7
STEPS_A_POLL = 30

# Delivers polls as fast as it can and says which one it has finished.
CHILD = """
import sys
from pathlib import Path
from launcher.run_dir import RunDir
from launcher.telemetry_file import TelemetryFile
from launcher.views.observer import Observers, RecordFile
from launcher.views.tensorboard import TensorBoardView
from tests.launcher.made_telemetry import shards_block, steps_block, window

run = RunDir(Path(sys.argv[1]))
run.write_status("running", None)
everyone = Observers([RecordFile(run), TelemetryFile(run), TensorBoardView(run.tensorboard)])
poll = 0
while True:
    steps = range(poll * 30 + 10, poll * 30 + 31, 10)
    for step in steps:
        everyone.show(window(step))
    everyone.show_block(steps_block(poll * 30 + 1, 30, slow_rank=1))
    everyone.show_block(shards_block(list(steps), {(0, "items"): 5.0}))
    everyone.flush()
    poll += 1
    print(poll, flush=True)
"""


def test_a_kill_leaves_everything_up_to_the_last_delivery(tmp_path: Path, repository: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            said = [child.stdout.readline() for _ in range(POLLS_BEFORE_THE_KILL)]
        finally:
            child.kill()
    assert said[-1] == f"{POLLS_BEFORE_THE_KILL}\n"
    run, last_step = RunDir(tmp_path), POLLS_BEFORE_THE_KILL * STEPS_A_POLL
    windows = [record["step"] for record in run.records()]
    assert windows == list(range(10, windows[-1] + 1, 10)) and windows[-1] >= last_step
    (steps,), (shards,) = read_steps(run), read_shards(run)
    assert steps.steps.tolist() == list(range(1, len(steps.steps) + 1)) and len(steps.steps) >= last_step
    assert steps.rows.shape[1:] == (2, len(steps.labels["columns"])) and shards.steps[-1] >= last_step
    events = read(run.tensorboard)
    points = [event.step for event in events.Scalars("step_ms/rank_01")]
    assert points[:POLLS_BEFORE_THE_KILL] == list(range(STEPS_A_POLL, last_step + 1, STEPS_A_POLL))
    assert [event.step for event in events.Scalars("train/loss")][-1] >= last_step
    report = read_report(tmp_path)
    assert report["result"] == "running" and report["telemetry"]["num_steps"] == len(steps.steps)
