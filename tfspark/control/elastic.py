"""The number of workers after a failure if Spark may not get all executors back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LOOK_SECONDS = 0.5
"""Pause between two checks of the room that Spark has."""


def workers_that_fit(
    has_room: Callable[[int], bool], most: int, least: int, patience: float, given_up: Callable[[], bool]
) -> int:
    """Wait until Spark has room for all workers; after `patience` seconds, return the number that it has room for.

    Parameters
    ----------
    has_room
        Returns whether Spark has room for this number of workers now.
    most, least
        The wanted and the smallest acceptable number of workers. If there is no room for `least` workers either,
        `least` is returned, and the start of the nodes waits for room.
    patience
        Seconds to wait for room for `most` workers.
    given_up
        Returns whether the caller does not need the answer any more.
    """
    deadline = time.monotonic() + patience
    pause = threading.Event()
    while not has_room(most):
        if given_up() or time.monotonic() > deadline:
            return next((n for n in range(most - 1, least, -1) if has_room(n)), least)
        pause.wait(min(LOOK_SECONDS, patience))
    return most
