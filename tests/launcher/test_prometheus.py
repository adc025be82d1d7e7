"""What the ranks measured can be read where Prometheus reads it."""

import pytest

from cluster.session import open_session
from launcher.views.prometheus import Mirror
from tests.cluster.test_metrics import wait_for
from tests.conftest import RayHead
from tests.launcher.made_telemetry import steps_block

VERDICT = {"kind": "verdict", "cause": "slow_device", "is_over": False, "step": 10}


@pytest.mark.ray
def test_a_block_becomes_gauges_and_verdicts_are_counted_once(ray_head: RayHead) -> None:
    with open_session(ray_head.address):
        mirror = Mirror("mirrored")
        mirror.show(VERDICT)
        mirror.show({**VERDICT, "is_over": True})

        def show() -> None:
            mirror.show({"kind": "window", "step": 10, "qps": 2048.0})
            mirror.show_block(steps_block(1, 10, slow_rank=1))

        show()
        # Six phases of own work of 1 ms, one of them 2 ms on rank 1, for which rank 0 waits 1 ms.
        wanted = {
            ("step_ms_slowest", ""): 20.0,
            ("step_ms_mean", ""): 20.0,
            ("samples_per_s", ""): 2048.0,
            ("lookup_imbalance", ""): 2.0 / 1.5,
            ("work_imbalance", ""): 7.0 / 6.5,
            ("waiting_share", ""): 0.5 / 20.0,
            ("verdicts", "slow_device"): 1.0,
        }
        ranks = {"lookup_ms": (2.0, 3.0), "work_ms": (6.0, 7.0), "waiting_ms": (1.0, 0.0)}
        wanted |= {(f"rank_{name}", str(rank)): ms for name, values in ranks.items() for rank, ms in enumerate(values)}
        wait_for(wanted, "mirrored", show)
