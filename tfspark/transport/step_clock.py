"""How long this process has stood in a training step that all workers make together."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LONG_SECONDS = 10.0
"""Who has stood in a step for so long, or has not begun another one, is asked where."""

STACK_FRAMES = 12


class StepClock:
    """Written by the thread that trains, read by any."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._changed = now()
        self._in_step = False
        self.busy = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """Note that the main thread makes a step meanwhile, or adds something up with other workers."""
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
        """Note that what happens meanwhile, steps aside, is compiling, evaluating and saving."""
        busy, self.busy = self.busy, True
        try:
            yield
        finally:
            self.busy = busy

    @property
    def step_seconds(self) -> float:
        """How long the step has taken so far; 0.0 outside of one."""
        return self._now() - self._changed if self._in_step else 0.0

    def stack(self) -> str:
        """Return where the main thread stands, if it has for a while."""
        if self._now() - self._changed < LONG_SECONDS:
            return ""
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        frames = traceback.extract_stack(frame) if frame is not None else traceback.StackSummary()
        # The program's own, and the last of TensorFlow's.
        own = [f for f in frames[:-1] if "site-packages" not in f.filename]
        return "".join(traceback.format_list([*own, *frames[-1:]][-STACK_FRAMES:]))
