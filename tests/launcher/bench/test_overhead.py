"""The cost of telemetry: what is made of blocks' times, and real blocks on two ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher.bench.overhead import render_overhead, run_overhead
from launcher.bench.overhead_blocks import OFF, ON, TIMED_STEPS, ArmTimes, CpuLog, summarise
from launcher.config import load_config
from launcher.views.tables import make_console

NUM_PAIRS = 40


def made_times(step_ms: np.ndarray, cpu_ms: float, first_s: float) -> ArmTimes:
    """Blocks whose steps take `step_ms`, every ten seconds from `first_s`."""
    began_s = first_s + 10.0 * np.arange(len(step_ms))
    spans_s = np.stack([began_s, began_s + step_ms * TIMED_STEPS / 1e3], axis=1)
    return ArmTimes(spans_s, np.full(len(step_ms), cpu_ms * TIMED_STEPS / 1e3), np.full(len(step_ms), 2.0))


@pytest.fixture
def found() -> dict[str, Any]:
    """Steps that take 3 % longer with telemetry on a machine whose speed drifts by half, and pauses in every tenth."""
    generator = np.random.default_rng(0)
    speed = np.linspace(1.0, 1.5, NUM_PAIRS)
    noise = generator.lognormal(0, 0.01, (2, NUM_PAIRS))
    noise[0, ::10] *= 3
    ranks = [
        {ON: made_times(30.9 * speed * noise[0], 22.0, 100.0), OFF: made_times(30.0 * speed * noise[1], 20.0, 105.0)}
        for _ in range(2)
    ]
    # The driver works 120 ms in each block with telemetry, and not in those without.
    at_s = np.arange(100.0, 100.0 + 10 * NUM_PAIRS, 5.0)
    used_s = 0.12 * (1 + np.arange(len(at_s)) // 2) * 1.0
    return summarise(ranks, CpuLog(at_s.tolist(), [0.0, *used_s[:-1].tolist()]))


def test_the_overhead_is_that_of_pairs_however_the_machine_drifts(found: dict[str, Any]) -> None:
    assert found["overhead"] == pytest.approx(0.03, abs=0.01)
    low, high = found["interval"]
    assert low < 0.03 < high and high - low < 0.03
    assert found["worker_cpu_overhead"] == pytest.approx(0.1)
    assert found["canary_spread"] == 0 and 0 < found["spread"] < 0.1
    assert found["pairs"] == NUM_PAIRS and found["on"]["worker_cpu_ms"] == pytest.approx(44)


def test_cpu_time_is_given_to_the_block_it_was_used_in() -> None:
    log = CpuLog([0.0, 10.0, 20.0], [1.0, 1.0, 3.0])
    assert log.used_in(np.array([[0.0, 10.0], [5.0, 15.0], [10.0, 20.0]])).tolist() == [0.0, 1.0, 2.0]


def test_people_read_percents(found: dict[str, Any]) -> None:
    console = make_console()
    with console.capture() as text:
        for part in render_overhead(found):
            console.print(part)
    assert f"{found['overhead']:+.2%} of a step's time" in " ".join(text.get().split())
    assert all(len(line) <= 100 for line in text.get().splitlines())


@pytest.mark.ray
@pytest.mark.slow
def test_two_ranks_measure_both_arms(ray_head: Any, repository: Path) -> None:
    words = [f"cluster.address={ray_head.address}", "cluster.num_workers=2", "profile.enabled=false"]
    words += ["planner.strategy=size_greedy", "train.batch_size=32", "data.synthetic.max_rows=1000"]
    lines: list[str] = []
    found = run_overhead(load_config(repository / "configs" / "quickstart.yaml", words), 2, lines.append)
    assert found["pairs"] == 2 and lines[-1] == "100% of the steps"
    for arm in (ON, OFF):
        assert min(found[arm].values()) > 0
    assert -1 < found["overhead"] < 10 and found["interval"][0] <= found["overhead"] <= found["interval"][1]
