"""Shows how a cluster gets on while its driver waits for something."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from tfspark.driver.coordinator import Coordinator
from tfspark.driver.progress import Progress
from tfspark.driver.status import snapshot_of

SHOW_SECONDS = 0.25


class Display:
    """The driver's own view.

    Parameters
    ----------
    live
        As for `Progress`.
    links
        Returns addresses to show.
    """

    def __init__(self, live: bool | None, links: Callable[[], Mapping[str, str]] = dict) -> None:
        self._progress = Progress(live)
        self._links = links
        self._phase_began = time.monotonic()

    def begin(self) -> float:
        """Start the clock of a new phase; returns its time."""
        self._phase_began = time.monotonic()
        return self._phase_began

    def until(
        self, coordinator: Coordinator, phase: str, condition: Callable[[], bool], timeout: float | None = None
    ) -> bool:
        """Wait for a condition, showing progress; tell whether it came true within `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not coordinator.wait(condition, SHOW_SECONDS):
            self._show(coordinator, phase)
            if deadline is not None and time.monotonic() > deadline:
                return False
        return True

    def final(self, coordinator: Coordinator, phase: str) -> None:
        """Show the end of a phase."""
        self._show(coordinator, phase, final=True)

    def close(self) -> None:
        """Take the display away."""
        self._progress.close()

    def _show(self, coordinator: Coordinator, phase: str, final: bool = False) -> None:
        snapshot = coordinator.look(lambda: snapshot_of(coordinator, phase, self._phase_began, self._links()))
        self._progress.show(snapshot, final)
