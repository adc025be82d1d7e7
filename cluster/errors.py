"""The one exception type of this package."""


class ClusterError(RuntimeError):
    """Something about the cluster stands in the way; the message says what, where and what to do.

    Attributes:
        reason: One short word for programs: `unreachable`, `unauthenticated`, `address`, `already_open`, `closed`,
            `device`, `resources`, `placement`, `start`, `function`, `busy`, `profile`, `worker_failed` or
            `worker_lost`.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        """Keeps the message for people and the reason for programs."""
        super().__init__(message)
        self.reason = reason


class WorkerFailure(ClusterError):
    """One rank failed, and with it the group; the other ranks are a count.

    Attributes:
        rank: The rank that failed first.
        node_id: The Ray NodeID of its node.
        host: The host name of its node.
        error_type: `module.QualName` of the exception that it raised; empty for a worker that was lost.
        error_message: The text of that exception, or Ray's word on why the worker is gone.
        error_reason: The `reason` that the exception carried; empty where it had none.
        traceback_text: The original traceback; empty for a worker that was lost.
        log_path: The rank's stderr log on its node.
        num_consequences: How many other ranks failed or had to be stopped because of this one.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        rank: int,
        node_id: str,
        host: str,
        error_type: str,
        error_message: str,
        error_reason: str,
        traceback_text: str,
        log_path: str,
        num_consequences: int,
    ) -> None:
        """Keeps the facts beside the message that was rendered from them."""
        super().__init__(message, reason=reason)
        self.rank = rank
        self.node_id = node_id
        self.host = host
        self.error_type = error_type
        self.error_message = error_message
        self.error_reason = error_reason
        self.traceback_text = traceback_text
        self.log_path = log_path
        self.num_consequences = num_consequences
