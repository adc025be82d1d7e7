"""Which exit code each kind of fault has."""

from cluster.errors import ClusterError, WorkerFailure
from dlrm.errors import DlrmError
from launcher.bench.cost_data import CostFileError
from launcher.config import ConfigError
from launcher.exit_codes import ExitCode
from launcher.resharding.requests import RequestError
from launcher.stop_signals import StopRequested
from launcher.views.report import NoRunError
from planner.errors import PlanningError

# Reasons of a ClusterError that the environment, not the request, is at fault for.
UNFIT_REASONS = ("unreachable", "unauthenticated", "unknown_device", "start", "profile")


def exit_code_of(error: BaseException) -> ExitCode | None:
    """The exit code of a fault that a user can mend; None for a mistake of ours, which deserves its traceback."""
    if isinstance(error, StopRequested):
        return ExitCode.STOPPED
    if isinstance(error, (WorkerFailure, KeyboardInterrupt)):
        return ExitCode.TRAINING_FAILED
    if isinstance(error, PlanningError) and error.reason in ("infeasible", "memory"):
        return ExitCode.INFEASIBLE
    if isinstance(error, ClusterError):
        if error.reason in ("resources", "placement"):
            return ExitCode.INFEASIBLE
        return ExitCode.UNFIT if error.reason in UNFIT_REASONS else ExitCode.USAGE
    if isinstance(error, (OSError, ConfigError, CostFileError, PlanningError, DlrmError, NoRunError, RequestError)):
        return ExitCode.USAGE
    return None
