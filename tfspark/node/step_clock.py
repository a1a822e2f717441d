"""Measures how long this process has been in a training step that all workers run together."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LONG_SECONDS = 10.0
"""Seconds without the start or the end of a step after which a process reports its stack."""

STACK_FRAMES = 12


class StepClock:
    """The clock of the training steps; the training thread writes it, any thread reads it."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._changed = now()
        self._in_step = False
        self.busy = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """Mark that the main thread is in a step, or in a sum over the workers."""
        if self._in_step or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._changed, self._in_step, busy = self._now(), True, self.busy
        self.busy = False
        try:
            yield
        finally:
            self._changed, self._in_step, self.busy = self._now(), False, busy

    @contextmanager
    def fit(self) -> Iterator[None]:
        """Mark that the process is busy between steps: it compiles, evaluates or saves."""
        busy, self.busy = self.busy, True
        try:
            yield
        finally:
            self.busy = busy

    @property
    def step_seconds(self) -> float:
        """Seconds since the current step began; 0.0 outside of a step."""
        return self._now() - self._changed if self._in_step else 0.0

    def stack(self) -> str:
        """Return the stack of the main thread if no step has begun or ended for `LONG_SECONDS`, else an empty text."""
        if self._now() - self._changed < LONG_SECONDS:
            return ""
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        frames = traceback.extract_stack(frame) if frame is not None else traceback.StackSummary()
        # The frames of the user's program, and the innermost frame, which is usually TensorFlow's.
        own = [f for f in frames[:-1] if "site-packages" not in f.filename]
        return "".join(traceback.format_list([*own, *frames[-1:]][-STACK_FRAMES:]))
