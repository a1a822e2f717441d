"""What is known of a running cluster: each node's status, and the progress shown while the driver waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tfspark.driver.coordinator import Coordinator
from tfspark.driver.ledger import FeedLedger
from tfspark.driver.progress import Progress, Snapshot

SHOW_SECONDS = 0.25


@dataclass(frozen=True)
class NodeStatus:
    """One node, as `Cluster.status` gives it."""

    role: str
    index: int
    host: str
    state: str
    pid: int | None
    rows: int
    step: int
    metrics: dict[str, float]


def status_of(coordinator: Coordinator) -> list[NodeStatus]:
    """Return what is known of each node now."""
    rows = coordinator.ledger.rows if coordinator.ledger else {}
    out = []
    for node, r in coordinator.lifecycle.records.items():
        reported = coordinator.reports.get(node)
        out.append(
            NodeStatus(
                node.role,
                node.index,
                r.host,
                r.state.value,
                r.address.pid if r.address else None,
                rows.get(node, 0),
                reported.step if reported else 0,
                dict(reported.metrics) if reported else {},
            )
        )
    return out


class Display:
    """Shows how a cluster gets on while its driver waits for something.

    Parameters
    ----------
    live
        As for `Progress`.
    """

    def __init__(self, live: bool | None) -> None:
        self._progress = Progress(live)
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
        ledger = coordinator.ledger if phase == "feeding" else None
        while not coordinator.wait(condition, SHOW_SECONDS):
            self._progress.show(self._snapshot(coordinator, phase, ledger))
            if deadline is not None and time.monotonic() > deadline:
                return False
        return True

    def final(self, coordinator: Coordinator, phase: str, ledger: FeedLedger | None = None) -> None:
        """Show the end of a phase."""
        self._progress.show(self._snapshot(coordinator, phase, ledger), final=True)

    def close(self) -> None:
        """Take the display away."""
        self._progress.close()

    def _snapshot(self, coordinator: Coordinator, phase: str, ledger: FeedLedger | None) -> Snapshot:
        ledger = ledger or coordinator.ledger
        rows = {str(n): r for n, r in ledger.rows.items()} if ledger else {}
        return Snapshot(
            phase,
            time.monotonic() - self._phase_began,
            {str(n): r.state.value for n, r in coordinator.lifecycle.records.items()},
            rows,
            sum(rows.values()) if phase == "feeding" else 0,
            ledger.nbytes if ledger and phase == "feeding" else 0,
            {str(n): (r.step, r.metrics) for n, r in coordinator.reports.items()},
        )
