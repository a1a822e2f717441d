"""Shared memory that carries rows from a feed task to a node on the same host, instead of sockets.

The node owns an anonymous file in memory (``memfd_create``, Linux) that is divided into slots. Other processes of the
same user open it as ``/proc/<pid>/fd/<fd>``. The node grants slots to a feed task. The task writes a message in Arrow's
IPC stream format into a slot and announces it on the Flight stream of its upload. The node reads the rows in place; the
slot is free again when nothing refers to the rows. Pages are reused, because new pages cost more than the copy.

The file has no name and disappears with the node's process. In another container the same path can be another file, so
the file begins with a key that only authenticated clients know.
"""

from __future__ import annotations

import fcntl
import hmac
import io
import logging
import mmap
import os
import queue
import secrets
import threading
from typing import Any

import numpy as np
import pyarrow as pa

from tfspark.errors import FeedError
from tfspark.messages import SlotFilled, SlotsGranted

logger = logging.getLogger(__name__)

MESSAGE_BYTES = 4 << 20
"""Most bytes of rows in a message: messages that fit into the processor's caches are copied fastest."""

SLOT_BYTES = MESSAGE_BYTES + (64 << 10)
"""Bytes of a slot: a message with its headers; a multiple of the page size."""

LEAST_BYTES = MESSAGE_BYTES // 4
"""Smaller messages are sent on the stream, because each message occupies a whole slot."""

SLOTS_IN_HAND = 2
"""Slots per feed task: it fills one while the node reads the other."""

_KEY_BYTES = 32
_FIRST_SLOT = mmap.PAGESIZE


class _Lease:
    """Owner of the rows in a slot; the slot is free when this object is deleted."""

    def __init__(self, pool: SlotPool, slot: int) -> None:
        self._pool, self._slot = pool, slot

    def __del__(self) -> None:
        self._pool.give_back(self._slot)


class SlotPool:
    """The shared memory of one node.

    Parameters
    ----------
    nbytes
        Size of the memory in bytes; pages that are never used occupy no memory.
    """

    def __init__(self, nbytes: int) -> None:
        self._count = nbytes // SLOT_BYTES
        # Rows are deleted in any thread at any point. SimpleQueue.put is reentrant, so `__del__` may call it.
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._stack: list[int] = []
        self._opening = threading.Lock()
        self._fd = -1
        self._address = 0
        self._key = b""

    def _open(self) -> bool:
        with self._opening:
            if self._fd >= 0 or not self._count or not hasattr(os, "memfd_create"):
                return self._fd >= 0
            try:
                self._fd = self._create(_FIRST_SLOT + self._count * SLOT_BYTES)
            except OSError as e:
                # The kernel may forbid such files (vm.memfd_noexec, seccomp) or this size.
                logger.warning("Shared memory is not available, so rows are sent through sockets: %s", e)
                self._count = 0
                return False
            self._address = np.frombuffer(self._map, np.uint8).ctypes.data
            self._stack = list(reversed(range(self._count)))
            return True

    def _create(self, size: int) -> int:
        fd = os.memfd_create("tfspark", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            # Another process that has the file open must not be able to remove mapped pages.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._key = secrets.token_bytes(_KEY_BYTES)
            os.pwrite(fd, self._key, 0)
            self._map = mmap.mmap(fd, size, prot=mmap.PROT_READ)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def grant(self, count: int) -> SlotsGranted:
        """Return where the memory is, and up to `count` free slots."""
        if not self._open():
            return SlotsGranted(0, 0, b"", [])
        return SlotsGranted(os.getpid(), self._fd, self._key, self._take(count))

    def _take(self, count: int) -> list[int]:
        with self._opening:
            while True:
                try:
                    self._stack.append(self._free.get_nowait())
                except queue.Empty:
                    break
            # The slot that was freed last is the most likely to be in the processor's caches.
            return [self._stack.pop() for _ in range(min(count, len(self._stack)))]

    def give_back(self, slot: int) -> None:
        """Mark a slot as free. Any thread may call it."""
        self._free.put(slot)

    def read(self, filled: SlotFilled, schema: pa.Schema) -> pa.RecordBatch:
        """Return the rows in a slot; the slot is free again when they are deleted.

        Raises
        ------
        FeedError
            If the slot does not contain the announced message.
        """
        lease = _Lease(self, filled.slot)
        if not 0 < filled.nbytes <= SLOT_BYTES:
            raise FeedError(f"A message of {filled.nbytes} bytes does not fit a slot of {SLOT_BYTES} bytes.")
        start = self._address + _FIRST_SLOT + filled.slot * SLOT_BYTES
        buffer = pa.foreign_buffer(start, filled.nbytes, lease)
        del lease
        try:
            batch = pa.ipc.open_stream(buffer).read_next_batch()
        except (pa.ArrowInvalid, OSError, StopIteration) as e:
            raise FeedError(f"Cannot read rows from slot {filled.slot}: {e}") from None
        if batch.schema != schema:
            raise FeedError(
                f"The rows have the schema {batch.schema.names}, but the feed was announced with {schema.names} "
                "and its types."
            )
        return batch


class GrantedSlots:
    """The slots that the node has granted to one upload."""

    def __init__(self, pool: SlotPool) -> None:
        self._pool = pool
        self._granted: set[int] = set()

    def grant(self, count: int) -> SlotsGranted:
        """Grant up to `count` more slots."""
        granted = self._pool.grant(count)
        self._granted |= set(granted.slots)
        return granted

    def read(self, filled: SlotFilled, schema: pa.Schema) -> pa.RecordBatch:
        """Return the rows in a slot; see `SlotPool.read`."""
        if filled.slot not in self._granted:
            raise FeedError(f"Slot {filled.slot} was not granted to this upload.")
        self._granted.remove(filled.slot)
        return self._pool.read(filled, schema)

    def close(self, orderly: bool) -> None:
        """Take back the slots that were not filled.

        If the upload did not end in order, its task may still write into its slots, so they are not granted again. An
        upload has few slots, and without slots rows are sent on the stream.
        """
        if orderly:
            for slot in self._granted:
                self._pool.give_back(slot)
        self._granted.clear()


class SlotWriter:
    """The feed task's side: writes messages into a node's memory.

    Parameters
    ----------
    granted
        The node's grant.

    Raises
    ------
    OSError
        If the node's memory cannot be opened from here.
    """

    def __init__(self, granted: SlotsGranted) -> None:
        self._fd = os.open(f"/proc/{granted.pid}/fd/{granted.fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            # The path may be a pipe or a terminal, where pread fails.
            if not granted.key or not hmac.compare_digest(os.pread(self._fd, _KEY_BYTES, 0), granted.key):
                raise OSError("The path of the node's memory is another file here.")
        except BaseException:
            self.close()
            raise

    def write(self, slot: int, batch: pa.RecordBatch) -> SlotFilled | None:
        """Write a batch into a slot; return ``None`` if it does not fit."""
        place = _Place(self._fd, _FIRST_SLOT + slot * SLOT_BYTES)
        try:
            with pa.ipc.new_stream(pa.PythonFile(place, mode="w"), batch.schema) as stream:
                stream.write_batch(batch)
        except pa.ArrowException:
            return None
        return SlotFilled(slot, place.nbytes)

    def close(self) -> None:
        """Close the memory."""
        os.close(self._fd)


class _Place(io.RawIOBase):
    """A slot as a file that Arrow writes its buffers to, without an extra copy.

    It uses ``pwrite`` instead of a mapping, because mapping the pages takes longer than the copy.
    """

    def __init__(self, fd: int, start: int) -> None:
        self._fd, self._start = fd, start
        self.nbytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        if self.nbytes + size > SLOT_BYTES:
            raise pa.ArrowCapacityError(f"The message does not fit a slot of {SLOT_BYTES} bytes.")
        while rest:
            written = os.pwrite(self._fd, rest, self._start + self.nbytes)
            self.nbytes += written
            rest = rest[written:]
        return size
