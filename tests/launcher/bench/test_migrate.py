"""The cost of migrations: what travels in each transition, what is made of its times, and real ones on two ranks."""

from typing import Any

import pytest

from launcher.bench.migrate import MIB, MigrateBenchmark, describe_leg, render_migrate, run_migrate
from launcher.bench.migrate_plans import MIXED, PAIRS, Transition, busiest_rank_bytes
from launcher.bench.migrate_ranks import Timed
from launcher.config import load_config
from launcher.views.tables import make_console
from planner.sharding import ShardingType
from planner.tables import OptimizerKind, Workload
from planner.transfers import moved_bytes

ADAGRAD = OptimizerKind.ROWWISE_ADAGRAD
TW, CW, DP = ShardingType.TABLE_WISE, ShardingType.COLUMN_WISE, ShardingType.DATA_PARALLEL
CHUNK_BYTES = 1 << 24


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
@pytest.mark.parametrize("kinds", PAIRS)
def test_as_much_travels_as_was_asked_for(kinds: tuple[str, str], world_size: int) -> None:
    there = Transition.build(kinds, world_size, ADAGRAD, 64 * MIB)
    workload = Workload(there.tables, 1, ADAGRAD)
    sent = sum(map(sum, there.traffic(ADAGRAD)))
    assert sent == pytest.approx(64 * MIB, rel=0.02) and sent == moved_bytes(*there.plans, workload)
    back = there.reverse
    assert sum(map(sum, back.traffic(ADAGRAD))) == moved_bytes(*back.plans, workload)
    # A rank of either plan holds its share of the tables, or all of them where they are replicated.
    for way in (there, back):
        found = {table.sharding_type for table in way.plans[1].tables}
        assert found == (set(ShardingType) - {ShardingType.TABLE_ROW_WISE} if MIXED in kinds else {way.kinds[1]})
        whole_bytes = sum(4 * table.num_embeddings * (table.embedding_dim + 1) for table in way.tables)
        held_bytes = way.most_new_bytes(ADAGRAD) * (1 if way.kinds[1] == DP else world_size)
        assert whole_bytes <= held_bytes * 1.001 and (MIXED in kinds or held_bytes <= 1.2 * whole_bytes)


def test_table_wise_tables_all_go_to_another_rank() -> None:
    there = Transition.build((TW, TW), 2, ADAGRAD, MIB)
    old, new = ({table.name: table.ranks for table in plan.tables} for plan in there.plans)
    assert all(old[name] != new[name] for name in old)
    first, second = there.traffic(ADAGRAD)
    assert first[0] == second[1] == 0 and first[1] == second[0]


def test_the_busiest_rank_counts_both_ways() -> None:
    assert busiest_rank_bytes([[0, 5, 1], [2, 0, 0], [0, 9, 0]]) == 16


def made_timed(pause_ms: float, transfer_ms: float, all_to_all_ms: float, extra_peak_bytes: int) -> Timed:
    record = {"pause_ms": pause_ms, "transfer_ms": transfer_ms, "extra_peak_bytes": extra_peak_bytes}
    record |= {"moved_bytes": 64 * MIB, "announced_bytes": 70 * MIB, "staging": "device"}
    return Timed(record, all_to_all_ms, canary_ms=2.0)


@pytest.fixture
def leg() -> dict[str, Any]:
    """A transition whose third repeat was disturbed."""
    way = Transition.build((TW, CW), 2, ADAGRAD, 64 * MIB)
    timed = [made_timed(300, 80, 40, 60 * MIB), made_timed(310, 100, 60, 61 * MIB), made_timed(900, 800, 50, 62 * MIB)]
    return describe_leg(way, ADAGRAD, CHUNK_BYTES, timed)


def test_both_bandwidths_are_of_the_same_bytes_and_their_ratio_of_neighbours(leg: dict[str, Any]) -> None:
    assert leg["bandwidth_ratio"] == pytest.approx(0.5)
    assert leg["bytes_per_s"] == pytest.approx(10 * leg["busiest_rank_bytes"])
    assert leg["all_to_all_bytes_per_s"] == pytest.approx(20 * leg["busiest_rank_bytes"])
    assert leg["pause_bandwidth_ratio"] == pytest.approx(40 / 300)


def test_limits_are_those_of_the_issue(leg: dict[str, Any]) -> None:
    assert leg["pause_ms"] == 310 and leg["first_pause_ms"] == 300
    assert leg["limit_ms"] == 250 + 2 * 50 and leg["is_within_limit"]
    assert leg["extra_peak_bytes"] == 62 * MIB and leg["is_within_peak"]
    assert leg["limit_peak_bytes"] == pytest.approx(64 * MIB + CHUNK_BYTES, rel=0.02)
    way = Transition.build((TW, CW), 2, ADAGRAD, 64 * MIB)
    above = describe_leg(way, ADAGRAD, CHUNK_BYTES, [made_timed(351, 80, 50, 82 * MIB)])
    assert not above["is_within_limit"] and not above["is_within_peak"]


@pytest.mark.ray
@pytest.mark.slow
def test_real_ranks_move_in_every_transition(ray_head: Any) -> None:
    words = [f"cluster.address={ray_head.address}", "resharding.chunk_bytes=262144"]
    lines: list[str] = []
    found = run_migrate(load_config(None, words), MigrateBenchmark(2, (1,), 2), lines.append)
    assert len(lines) == len(PAIRS) and found["ranks"] == 2 and found["chunk_bytes"] == 262144
    ways = [(each["from"], each["to"]) for each in found["transitions"]]
    assert sorted(ways) == sorted({way for kinds in PAIRS for way in (kinds, kinds[::-1])})
    for each in found["transitions"]:
        assert each["pause_ms"] > each["transfer_ms"] > 0 and each["limit_ms"] >= 250
        # Replicas come with gradients as large as they are, which the limit of one copy does not count.
        copies = 2 if each["to"] in (ShardingType.DATA_PARALLEL, MIXED) else 1
        # Row values of parts that meet are kept until all are there: so little of tables this wide.
        limit_bytes = 1.05 * copies * each["limit_peak_bytes"]
        assert each["extra_peak_bytes"] >= 0 and 0 < each["announced_bytes"] <= limit_bytes
        if each["from"] == DP:
            assert each["moved_bytes"] == 0 and each["bandwidth_ratio"] is each["bytes_per_s"] is None
        else:
            assert each["moved_bytes"] == pytest.approx(MIB, rel=0.02) and each["bandwidth_ratio"] > 0
    console = make_console()
    with console.capture() as text:
        for part in render_migrate(found):
            console.print(part)
    assert "DP to TW" in text.get() and all(len(line) <= 100 for line in text.get().splitlines())
