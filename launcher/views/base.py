"""What an observer of a run is handed."""

from typing import Any

from cluster.telemetry import Block
from launcher.priced_plan import PricedPlan


class Observer:
    """Sees a run as it goes on; one that overrides nothing takes no notice."""

    def show(self, record: dict[str, Any]) -> None:
        """One record: a window, an evaluation, a warning, a verdict, a decision, a migration... (see README)."""

    def show_plan(self, planned: PricedPlan, step: int) -> None:
        """The plan that trains after a step; the first one after step 0."""

    def show_block(self, block: Block) -> None:
        """Measured steps, or what was looked up in sampled ones, oldest first (see `launcher.telemetry_file`)."""

    def flush(self) -> None:
        """All that one poll brought has been shown: leave nothing in this process's memory only."""
