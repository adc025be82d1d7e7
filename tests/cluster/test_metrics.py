"""What a run shows can be read where Prometheus reads it: at the metrics endpoint of the driver's node."""

import re
import time
import urllib.request
from collections.abc import Callable

import pytest
import ray

from cluster.metrics import FIGURES, MOST_RANKS, RANK_FIGURES, RunMetrics
from cluster.session import RaySession

pytestmark = pytest.mark.ray
PATIENCE_S = 60.0
LINE = re.compile(r"ray_shardwright_(\w+)\{(.*)\} (\S+)")


def scrape(run: str) -> dict[tuple[str, str], float]:
    """Values of a run by name and by the tag that it has beside `run`."""
    (node,) = (node for node in ray.nodes() if node["Alive"])
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        lines = [found for found in map(LINE.match, response.read().decode().splitlines()) if found]
    values = {}
    for name, text, value in (line.groups() for line in lines):
        tags = dict(re.findall(r'(\w+)="([^"]*)"', text))
        if tags["run"] == run:
            values[name, tags.get("rank", tags.get("cause", ""))] = float(value)
    return values


def wait_for(wanted: dict[tuple[str, str], float], run: str, again: Callable[[], None]) -> None:
    """Values come with the next report of the process; a gauge that is not set again is dropped after some time."""
    deadline_s = time.monotonic() + PATIENCE_S
    while (found := scrape(run)) != wanted:
        assert time.monotonic() < deadline_s, f"expected {wanted}, found {found}"
        again()
        time.sleep(1.0)


def test_figures_ranks_and_verdicts_reach_the_metrics_endpoint(ray_session: RaySession) -> None:
    small, large = RunMetrics("small"), RunMetrics("large")
    for cause in ("hot_table", "slow_device", "hot_table"):
        small.count_verdict(cause)
    figures = {name: number + 0.5 for number, name in enumerate(FIGURES)}
    times = {name: [1.0 + number, 2.0] for number, name in enumerate(RANK_FIGURES)}

    def show() -> None:
        small.show({**figures, "step_ms_mean": 9.0})
        small.show(figures, times)
        large.show({}, {"work_ms": range(MOST_RANKS + 1)})

    show()
    wanted = {(name, ""): value for name, value in figures.items()}
    wanted |= {(f"rank_{name}", str(rank)): ms for name, values in times.items() for rank, ms in enumerate(values)}
    wanted |= {("verdicts", "hot_table"): 2, ("verdicts", "slow_device"): 1}
    wait_for(wanted, "small", show)
    most, mean, least = (("rank_work_ms", tag) for tag in ("max", "mean", "min"))
    wait_for({most: MOST_RANKS, mean: MOST_RANKS / 2, least: 0}, "large", show)


def test_a_figure_that_nobody_declared_is_refused(ray_session: RaySession) -> None:
    with pytest.raises(KeyError, match="step_time"):
        RunMetrics("typo").show({"step_time": 1.0})
