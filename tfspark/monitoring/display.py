"""Shows the progress of a cluster while the driver waits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from tfspark.control.coordinator import Coordinator
from tfspark.monitoring.progress import Progress
from tfspark.monitoring.status import phase_at_end, snapshot_of

logger = logging.getLogger(__name__)


class Display:
    """The progress display of the driver.

    Parameters
    ----------
    live
        As for `Progress`.
    links
        Function that returns the links to show: addresses by name.
    """

    def __init__(self, live: bool | None, links: Callable[[], Mapping[str, str]] = dict) -> None:
        self._progress = Progress(live)
        self._links = links
        self._phase_began = time.monotonic()

    def begin(self) -> float:
        """Start the clock of a new phase and return its start time (``time.monotonic()``)."""
        self._phase_began = time.monotonic()
        return self._phase_began

    def until(
        self, coordinator: Coordinator, phase: str, condition: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        """Wait for a condition and show progress; return whether it became true within `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            seconds = self._progress.seconds
            if coordinator.wait(condition, seconds if left is None else min(seconds, left)):
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False
            self._show(coordinator, phase)

    def final(self, coordinator: Coordinator, phase: str) -> None:
        """Show the end of a phase."""
        self._show(coordinator, phase, final=True)

    def end(self, coordinator: Coordinator) -> None:
        """Show how the cluster has ended: finished, failed or stopped."""
        phase = phase_at_end(coordinator.lifecycle.error)
        self._phase_began = coordinator.began
        try:
            self._show(coordinator, phase, final=True)
        except Exception as e:
            # The terminal or the kernel may have ended; this must not stop the rest of the cleanup.
            logger.debug("cannot show the end of the cluster: %s", e)

    def close(self) -> None:
        """Remove the display."""
        self._progress.close()

    def _show(self, coordinator: Coordinator, phase: str, final: bool = False) -> None:
        links, curves = self._links(), self._progress.with_curves
        self._progress.show(snapshot_of(coordinator, phase, self._phase_began, links, curves), final)
