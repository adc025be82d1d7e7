"""The errors of the training package: one base type, a subclass a part, each with a `reason`."""


class DlrmError(Exception):
    """A fault that the user of a training run can mend; `str()` is the whole message.

    Both arguments are positional, so that the error survives the pickling between worker and driver.

    Attributes:
        reason: a short word that scripts and tests can compare.
        explains_itself: the message says what to mend, so no traceback is shown beside it.
    """

    explains_itself = True

    def __init__(self, message: str, reason: str) -> None:
        """Keep the message for people and the reason for programs."""
        super().__init__(message, reason)
        self.message = message
        self.reason = reason

    def __str__(self) -> str:
        """The message alone."""
        return self.message


class DataError(DlrmError):
    """Data that cannot be read as declared.

    Reasons: `config` (a key of `data` is wrong), `missing_file`, `missing_column`, `unreadable` (a file is not what its
    name says), `ragged` (a row has too few columns), `bad_rows` (more than `data.max_bad_rows`), `too_short` (less than
    one global batch), `vocabulary` (absent, or built for something else), `position` (it lies past the end).
    """


class DivergedError(DlrmError):
    """Numbers that are no longer finite; reason `diverged`."""

    def __init__(self, what: str, step: int, rank: int) -> None:
        """Name what is not finite, the first such step (counted from 1), and the rank that saw it."""
        message = (
            f"the {what} is not a number at step {step} on rank {rank}: training has diverged; lower "
            "optimizer.sparse.learning_rate or optimizer.dense.learning_rate, or look for infinite values in the data"
        )
        super().__init__(message, "diverged")
        self.what, self.step, self.rank = what, step, rank

    def __reduce__(self) -> tuple[type["DivergedError"], tuple[str, int, int]]:
        """Pickle by the arguments."""
        return type(self), (self.what, self.step, self.rank)


class CheckpointError(DlrmError):
    """A checkpoint that is not there or does not fit; reason `checkpoint`."""

    def __init__(self, message: str) -> None:
        """Keep the message."""
        super().__init__(message, "checkpoint")

    def __reduce__(self) -> tuple[type["CheckpointError"], tuple[str]]:
        """Pickle by the message."""
        return type(self), (self.message,)
