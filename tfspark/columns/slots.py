"""Columns that a Spark executor has written into shared memory, and that its Python tasks read in place.

The other side is ``connectors/columns``: ``SlotPool`` describes the memory, ``SlotRows`` the rows that refer to it.
"""

from __future__ import annotations

import hmac
import mmap
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

_KEY_BYTES = 32
_PLACE = ["path", "key", "word", "ticket", "start", "nbytes"]
"""Columns of a row that say where its message is."""


class ExecutorMemory:
    """The shared memory of an executor.

    Parameters
    ----------
    path
        Path of the file.
    key
        The first bytes of the file. They are checked because in another container the path may be another file.

    Raises
    ------
    OSError
        If the file cannot be opened, or does not begin with `key`.
    """

    def __init__(self, path: str, key: bytes) -> None:
        self.path, self.key = path, key
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if len(key) != _KEY_BYTES or not hmac.compare_digest(os.pread(fd, _KEY_BYTES, 0), key):
                raise OSError(f"{path} is not the memory of the executor that runs this task.")
            self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._address = self._bytes.ctypes.data

    def hold(self, word: int, ticket: int) -> Hold:
        """Return a hold of the slot whose word is at byte `word`, for the message with this ticket."""
        return Hold(self._bytes[word : word + 8].view(np.int64), ticket)

    def message(self, start: int, nbytes: int, hold: Hold) -> pa.Buffer:
        """Return the bytes of a message; the buffer owns the hold."""
        if not 0 <= start <= start + nbytes <= len(self._bytes):
            raise OSError(f"A message of {nbytes} bytes at {start} is beyond the end of {self.path}.")
        return pa.foreign_buffer(self._address + start, nbytes, hold)


class Hold:
    """The right to read a slot; it ends when this object is deleted."""

    def __init__(self, word: Any, ticket: int) -> None:
        self._word, self._ticket = word, ticket

    @property
    def is_mine(self) -> bool:
        """Whether the slot still has the message: the executor takes the slot back when the task has ended."""
        return int(self._word[0]) == self._ticket

    def __del__(self) -> None:
        if self.is_mine:
            self._word[0] = 0


_opened: dict[str, ExecutorMemory] = {}
"""The memory of this process's executor, for all its tasks: a Python worker of Spark runs one task after another."""


def _memory(path: str, key: bytes) -> ExecutorMemory:
    memory = _opened.get(path)
    if memory is None or memory.key != key:
        _opened.clear()
        memory = _opened[path] = ExecutorMemory(path, key)
    return memory


def batches_in_slots(rows: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the batches that the rows of a slot DataFrame refer to; the batches use the memory of the slots.

    Parameters
    ----------
    schema
        Arrow schema of the batches.

    Raises
    ------
    RuntimeError
        If the executor has taken a slot back while it was read, because the task has ended there.
    """
    for slots in rows:
        # In a row with a path, the column "message" is only padding, which fills Spark's buffer.
        places, inline = slots.select(_PLACE).to_pylist(), slots.column("message")
        for i, row in enumerate(places):
            hold = None
            if row["path"] is None:
                message = inline[i].as_buffer()
            else:
                memory = _memory(row["path"], row["key"])
                hold = memory.hold(row["word"], row["ticket"])
                message = memory.message(row["start"], row["nbytes"], hold)
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(message), schema)
            del message
            yield batch
            del batch
            if hold is not None and not hold.is_mine:
                raise RuntimeError("Spark has ended this task: its memory may hold other rows by now.")
