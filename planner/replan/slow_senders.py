"""How much longer a rank with a slow link sends: by the message, which no plan changes, and by the byte."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from planner.cost.loads import NUM_TRAFFIC
from planner.plan import ShardingPlan
from planner.problem import PlanningProblem
from planner.replan.corrected import EXCHANGE_ROWS, CorrectedEstimator, sent_bytes


def charge_senders(
    corrected: CorrectedEstimator,
    problem: PlanningProblem,
    plan: ShardingPlan,
    seen_ms: NDArray[np.float64],
    senders: tuple[int, ...],
) -> CorrectedEstimator:
    """The estimator with what exchanges take beyond its estimate charged to what slow senders send.

    Three exchanges of a step, of different bytes, tell what a message and what a byte of such a rank takes longer:
    least squares with both >= 0. A delay of messages is an offset, and no reason to send less.

    Args:
        corrected: Knows the collectives as they were on healthy links.
        problem: With the ids of now.
        plan: The present one.
        seen_ms: Observed phases [P, W] under it.
        senders: Ranks that a probe found slow.
    """
    loads = corrected.sum_loads(problem, plan)
    bytes_out = sent_bytes(problem, loads[:, :NUM_TRAFFIC])
    usual_ms = corrected.phases_ms(problem, loads)[EXCHANGE_ROWS]
    exceed_ms = np.maximum(seen_ms[EXCHANGE_ROWS] - usual_ms, 0.0)
    offset_ms, by_byte = corrected.phase_offset_ms.copy(), corrected.send_ms_per_byte.copy()
    for rank in senders:
        scale = max(float(bytes_out[:, rank].max()), 1.0)
        delay_ms, slope = nnls(np.column_stack([np.ones(3), bytes_out[:, rank] / scale]), exceed_ms[:, rank])[0]
        offset_ms[EXCHANGE_ROWS, rank] += delay_ms
        by_byte[rank] = slope / scale
    return replace(corrected, phase_offset_ms=offset_ms, send_ms_per_byte=by_byte)
