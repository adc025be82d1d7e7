"""Training over two nodes, four ranks: table-row-wise inside a node, row-wise over all."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import Ran, keys, shardwright

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def address(ray_environment: dict[str, str]) -> Iterator[str]:
    from ray.cluster_utils import Cluster

    sizes = {"num_cpus": 2, "object_store_memory": 100_000_000}
    cluster: Any = Cluster(initialize_head=True, head_node_args={**sizes, "include_dashboard": False})
    try:
        cluster.add_node(**sizes)
        yield cluster.address
    finally:
        cluster.shutdown()


def test_a_plan_that_spans_nodes_trains(
    address: str, ray_environment: dict[str, str], repository: Path, tmp_path: Path
) -> None:
    constraints = (
        "planner.constraints=[{tables: [table_4], sharding_types: [table_row_wise], ranks: [2, 3]}, "
        "{tables: [table_8], sharding_types: [row_wise]}, {tables: [table_9], sharding_types: [data_parallel]}, "
        "{tables: [table_2], sharding_types: [column_wise]}]"
    )
    more = keys(address, tmp_path, "run.name=two", "cluster.num_workers=4", "train.steps=20", constraints)
    words = ["train", "--json", "--config", "configs/quickstart.yaml", *more]
    ran: Ran = shardwright(*words, environment=ray_environment, cwd=repository)
    assert ran.code == 0, ran.err
    plan = json.loads((tmp_path / "two" / "plans" / "000.json").read_text())
    assert len({rank["node"] for rank in plan["ranks"]}) == 2
    placed = {t["name"]: (t["sharding_type"], [s["rank"] for s in t["shards"]]) for t in plan["tables"]}
    assert placed["table_4"] == ("table_row_wise", [2, 3])
    assert placed["table_8"] == ("row_wise", [0, 1, 2, 3])
    assert placed["table_9"] == ("data_parallel", [0, 1, 2, 3])
    assert placed["table_2"][0] == "column_wise"
    assert ran.json["steps"] == 20 and len(ran.json["ranks"]) == 4
