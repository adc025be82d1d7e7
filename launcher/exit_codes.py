"""Exit codes of every command, and the word that a run's status.json carries with them."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process ends with."""

    OK = 0
    USAGE = 2
    INFEASIBLE = 3
    TRAINING_FAILED = 4
    UNFIT = 5
    STOPPED = 75


RESULTS = {ExitCode.OK: "done", ExitCode.STOPPED: "stopped"}


def result_word(code: ExitCode) -> str:
    """`done`, `stopped` or `failed`: how a run with this exit code ended."""
    return RESULTS.get(code, "failed")
