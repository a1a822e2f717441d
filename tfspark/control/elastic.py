"""The number of workers if Spark may not get all executors back: after a failure, and where feed tasks have no room."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tfspark.errors import ResourceError

LOOK_SECONDS = 0.5
"""Pause between two checks of the room that Spark has."""

FEED_LOOK_SECONDS = 2.0
"""The same during a feed, which may take hours."""


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


@contextmanager
def watch_room(
    shortage: Callable[[], ResourceError | None],
    patience: float,
    on_starved: Callable[[ResourceError], None],
    name: str,
    pause: float = FEED_LOOK_SECONDS,
) -> Iterator[None]:
    """Call `on_starved` once if, within the block, there is a shortage for `patience` seconds; in a thread `name`."""
    over = threading.Event()

    def watch() -> None:
        since = time.monotonic()
        while not over.wait(pause):
            error = shortage()
            if error is None:
                since = time.monotonic()
            elif time.monotonic() - since > patience:
                on_starved(error)
                return

    thread = threading.Thread(target=watch, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
