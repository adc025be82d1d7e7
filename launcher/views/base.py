"""What an observer of a run is handed."""

from typing import Any

from cluster.telemetry import Block


class Observer:
    """Sees a run as it goes on; one that overrides nothing takes no notice."""

    def show(self, record: dict[str, Any]) -> None:
        """One record: a window, an evaluation, a warning, a verdict, a probe of the links (see README)."""

    def show_block(self, block: Block) -> None:
        """Measured steps, or what was looked up in sampled ones, oldest first (see `launcher.telemetry_file`)."""

    def flush(self) -> None:
        """All that one poll brought has been shown: leave nothing in this process's memory only."""
