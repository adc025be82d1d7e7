"""A fault planted into a real run is found, its link probed, and both are told everywhere."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import RayHead
from tests.e2e.command import keys, shardwright

FIRST_STEP = 100
FAULT = f"inject=[{{kind: slow_link, ranks: [1], from_step: {FIRST_STEP}, ms: 40}}]"


@pytest.mark.ray
@pytest.mark.slow
def test_a_slow_link_is_found_probed_and_told(ray_head: RayHead, repository: Path, tmp_path: Path) -> None:
    words = ["train", "--config", "configs/quickstart.yaml", "--json"]
    more = keys(ray_head.address, tmp_path, "run.name=watched", "train.steps=220", "train.checkpoint=false")
    watch = ["imbalance.warmup_steps=10", "imbalance.baseline_steps=50", "profiler.steps=20:21", "profiler.ranks=[1]"]
    ran = shardwright(*words, *more, *watch, FAULT, environment=ray_head.environment, cwd=repository)
    assert ran.code == 0, ran.err
    report = ran.json
    found = [verdict for verdict in report["verdicts"] if verdict["cause"] == "slow_link"]
    assert [verdict["rank"] for verdict in found[:2]] == [None, 1], report["verdicts"]
    assert all(FIRST_STEP - 5 <= verdict["since_step"] <= FIRST_STEP + 20 for verdict in found)
    assert all(verdict["severity_ms"] > 40 for verdict in found)
    records = [json.loads(line) for line in (tmp_path / "watched" / "records.jsonl").read_text().splitlines()]
    probes = [record["send_ms"] for record in records if record["kind"] == "links"]
    assert len(probes) == 2 and probes[1][1][0] > 40 > probes[0][1][0]
    assert any("planted fault: slow_link" in warning for warning in report["warnings"])
    assert any(record["kind"] == "note" and "rank 1" in record["message"] for record in records)
    assert len(report["traces"]) == 1 and "verdict at step" in ran.err
    events = EventAccumulator(str(tmp_path / "watched" / "tensorboard"))
    events.Reload()
    assert {"events/verdict/text_summary", "events/links/text_summary"} <= set(events.Tags()["tensors"])
