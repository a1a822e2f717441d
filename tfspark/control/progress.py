"""What the control plane wants of a view while the driver waits; `tfspark.monitoring.display` has the one there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tfspark.control.coordinator import Coordinator


class ProgressDisplay(Protocol):
    """Shows how a cluster gets on while its driver waits for something."""

    def begin(self) -> float:
        """Start the clock of a new phase; return its time."""

    def until(
        self, coordinator: Coordinator, phase: str, condition: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        """Wait for a condition, showing progress; return whether it came true within `timeout` seconds."""

    def final(self, coordinator: Coordinator, phase: str) -> None:
        """Show the end of a phase."""
