"""The TCP connection over which Spark's JVM sends rows to its Python worker."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import stat
from collections.abc import Iterator
from typing import TypeVar

from tfspark.spark.internals import input_of_worker

T = TypeVar("T")

_QUICK_ACK: int = getattr(socket, "TCP_QUICKACK", 0)
"""0 on systems other than Linux, which do not have it."""


def read_without_delay(batches: Iterator[T]) -> Iterator[T]:
    """Yield what Spark sends to this task, without waiting for delayed acknowledgements.

    While a part of what the JVM has sent is not acknowledged, its kernel keeps back further small parts (Nagle's
    algorithm). The kernel of a process that also sends, as this one does, delays acknowledgements by 40 ms. A short
    task spends most of its time on this. The option TCP_QUICKACK (tcp(7)) lasts until this process sends again, so it
    is set before each read.
    """
    while True:
        _acknowledge()
        try:
            batch = next(batches)
        except StopIteration:
            return
        yield batch
        # The task may need the memory, or the slot, before it asks for the next batch.
        del batch


def _acknowledge() -> None:
    connection = _connection()
    if connection is not None:
        # If the connection has ended, the read that follows reports it.
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)


@functools.cache
def _connection() -> socket.socket | None:
    """Return the connection of this Python worker; ``None`` if it is not TCP, or if this is no Python worker."""
    stream = input_of_worker()
    if stream is None or not _QUICK_ACK:
        return None
    # Without it tasks only take longer, so nothing that the stream may be makes a task fail.
    with contextlib.suppress(OSError):
        fd = stream.fileno()
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            connection = socket.socket(fileno=os.dup(fd))
            # A default timeout would make the connection non-blocking, for Spark too.
            connection.settimeout(None)
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                # So that this process does not wait for the JVM's acknowledgements either.
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return connection
            connection.close()
    return None
