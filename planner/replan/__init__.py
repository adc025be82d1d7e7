"""Re-planning of a running job: is another plan worth a migration, and did it keep its promise.

observations ──▶ residuals ──▶ corrected estimator ──▶ search from the present plan ──▶ way back ──▶ decision
 seen, healthy                                                                    price of bytes
"""

from planner.replan.corrected import CorrectedEstimator
from planner.replan.interface import Decision, MovePrice, Observation, ReplanSettings
from planner.replan.outcome import Outcome, judge_move
from planner.replan.replan import replan
from planner.replan.residuals import learn_corrections
from planner.replan.transition import transition_bytes

__all__ = [
    "CorrectedEstimator",
    "Decision",
    "MovePrice",
    "Observation",
    "Outcome",
    "ReplanSettings",
    "judge_move",
    "learn_corrections",
    "replan",
    "transition_bytes",
]
