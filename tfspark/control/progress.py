"""The progress display that the control plane needs while the driver waits; see `tfspark.monitoring.display`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tfspark.control.coordinator import Coordinator


class ProgressDisplay(Protocol):
    """Shows the progress of a cluster while its driver waits for a condition."""

    def begin(self) -> float:
        """Start the clock of a new phase; return its time."""

    def until(
        self, coordinator: Coordinator, phase: str, condition: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        """Wait for a condition and show progress; return whether it became true within `timeout` seconds."""

    def final(self, coordinator: Coordinator, phase: str) -> None:
        """Show the end of a phase."""
