"""Measures the time of a node's input: waiting for rows, making tensors, or being ahead of training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import Enum


class InputState(str, Enum):
    """What the reader of a dataset is doing.

    ``WAITING``: it waits for the next partition. ``PREPARING``: it makes tensors from rows. ``AHEAD``: tensors are
    ready and training has not taken them yet. ``IDLE``: no epoch is being read.
    """

    WAITING = "waiting"
    PREPARING = "preparing"
    AHEAD = "ahead"
    IDLE = "idle"


class InputClock:
    """Adds up the seconds spent in each state; written by the reader, read by any thread."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._seconds = dict.fromkeys(InputState, 0.0)
        self._state = InputState.IDLE
        self._entered = self._settled = now()

    def enter(self, state: InputState) -> None:
        """Set the current state of the reader."""
        with self._lock:
            self._entered = self._settle()
            self._state = state

    @property
    def seconds(self) -> dict[InputState, float]:
        """Seconds by state, up to now."""
        with self._lock:
            self._settle()
            return dict(self._seconds)

    @property
    def waiting_seconds(self) -> float:
        """Seconds for which the reader has been waiting without a break; 0.0 if it is not waiting."""
        with self._lock:
            return self._now() - self._entered if self._state is InputState.WAITING else 0.0

    def _settle(self) -> float:
        now = self._now()
        self._seconds[self._state] += now - self._settled
        self._settled = now
        return now
