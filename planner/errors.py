"""The one exception family of the planner."""


class PlanningError(Exception):
    """A request to the planner that cannot be answered, and why.

    Attributes:
        reason: One machine-readable word: `workload`, `topology`, `constraint`, `plan`, `memory`,
            `infeasible`, `strategy`, `profile` or `torchrec`.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        """Keeps the message for people and the reason for programs."""
        super().__init__(message)
        self.reason = reason


class InfeasibleError(PlanningError):
    """No placement fits: which table, how many bytes are missing, and what would make it fit.

    Attributes:
        shortfall_bytes: Bytes missing on the best rank for the table that fits nowhere, or in total.
        table: The table that fits nowhere; None when the devices are too small in total.
        remedies: One line for each change that was tried and found to make the problem feasible.
    """

    def __init__(
        self, message: str, *, shortfall_bytes: int, table: str | None = None, remedies: tuple[str, ...] = ()
    ) -> None:
        """Keeps the figures beside the message."""
        super().__init__(message, reason="infeasible")
        self.shortfall_bytes = shortfall_bytes
        self.table = table
        self.remedies = remedies
