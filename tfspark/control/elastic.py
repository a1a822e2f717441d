"""How many workers go on after a failure when executors may not come back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LOOK_SECONDS = 0.5
"""Pause between two looks at what Spark has room for."""


def workers_that_fit(
    has_room: Callable[[int], bool], most: int, least: int, patience: float, given_up: Callable[[], bool]
) -> int:
    """Wait for room for all workers; return how many there is room for when the time has passed.

    Parameters
    ----------
    has_room
        Tells whether Spark has room for so many workers now.
    most, least
        Numbers of workers that are wanted and that will do. Without room for `least` ones, these are waited for later.
    patience
        Seconds to wait for `most` ones.
    given_up
        Tells whether nobody needs the answer any more.
    """
    deadline = time.monotonic() + patience
    pause = threading.Event()
    while not has_room(most):
        if given_up() or time.monotonic() > deadline:
            return next((n for n in range(most - 1, least, -1) if has_room(n)), least)
        pause.wait(min(LOOK_SECONDS, patience))
    return most
