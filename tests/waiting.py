"""Waiting for what other processes do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

GONE_SECONDS = 20.0
"""How long what was started may take to be gone."""


def eventually(condition: Callable[[], bool], seconds: float = GONE_SECONDS) -> bool:
    """Return whether a condition comes true in time."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.05)
    return True
