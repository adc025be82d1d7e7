"""The one place where the estimator of step times is chosen."""

from pathlib import Path

from planner.cost.analytic import AnalyticEstimator
from planner.cost.step import StepEstimator
from planner.profile import Profile
from planner.topology import Topology


def build_estimator(topology: Topology, profile: Profile | None, weights: Path | None = None) -> StepEstimator:
    """What prices plans for these devices: learned from their profile, or from the topology's figures without one.

    Args:
        topology: The devices.
        profile: What was measured on devices of the same kinds.
        weights: Lookup weights of `pretrain cost`; None takes the shipped ones.

    Raises:
        PlanningError: The profile does not fit the devices, or cannot be learned from (reason `profile`).
    """
    if profile is None:
        return AnalyticEstimator()
    # torch, which takes seconds to load, is needed from here on.
    from planner.cost.learned import learn_estimator

    return learn_estimator(topology, profile, weights)
