"""Queue of a node's reports to the driver: training adds reports and never waits."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow.flight as flight

from tfspark.messages import EpochEnded, Report
from tfspark.transport.client import MAY_PASS, without_context

logger = logging.getLogger(__name__)

KEPT_REPORTS = 100
"""Largest number of reports with ``flush`` that wait while the driver does not answer; the oldest are dropped first."""

RETRY_SECONDS = 0.5
"""Pause before a report that could not be sent is sent again."""


@dataclass(frozen=True)
class _Entry:
    report: Report | EpochEnded
    keep: bool


class Mailbox:
    """Sends reports from its own thread; a newer report replaces a waiting one, unless that one is to be kept.

    Parameters
    ----------
    send
        Sends one report.
    """

    def __init__(self, send: Callable[[Report | EpochEnded], object]) -> None:
        self._send = send
        self._waiting: deque[_Entry] = deque(maxlen=KEPT_REPORTS)
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reports", daemon=True)
        self._thread.start()

    def put(self, report: Report | EpochEnded, keep: bool) -> None:
        """Add a report and return at once; with `keep`, a newer report does not replace it."""
        with self._changed:
            if self._waiting and not self._waiting[-1].keep:
                self._waiting.pop()
            self._waiting.append(_Entry(report, keep))
            self._changed.notify_all()

    def drain(self, seconds: float) -> bool:
        """Wait until all reports have been sent, at most `seconds`; return whether all have been sent."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or self._closed.is_set(), seconds)
            return not self._waiting

    def close(self) -> None:
        """Stop sending; waiting reports are dropped."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed.is_set())
                if self._closed.is_set():
                    return
                entry = self._waiting[0]
            if self._sent(entry.report):
                with self._changed:
                    # A newer report may have replaced this one meanwhile.
                    if self._waiting and self._waiting[0] is entry:
                        self._waiting.popleft()
                    self._changed.notify_all()
            else:
                self._closed.wait(RETRY_SECONDS)

    def _sent(self, report: Report | EpochEnded) -> bool:
        try:
            self._send(report)
        except MAY_PASS:
            return False
        except flight.FlightError as e:
            logger.warning("the driver did not take %s: %s", report, without_context(e))
        return True
