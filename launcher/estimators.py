"""The one place where the estimator of step times is chosen."""

from planner.cost.analytic import AnalyticEstimator
from planner.cost.estimator import AdditiveEstimator
from planner.profile import Profile
from planner.topology import Topology


def build_estimator(topology: Topology, profile: Profile | None) -> AdditiveEstimator:
    """What prices plans for these devices; from first principles, the figures of the topology's device kinds."""
    return AnalyticEstimator()
