"""Rows from a feed task to a node on the same host through memory that both see, past the network's sockets.

The node owns an anonymous file in memory (``memfd_create``, Linux), cut into slots, that other processes of the same
user open as ``/proc/<pid>/fd/<fd>``. It grants a feed task some slots; the task writes a message of Arrow's IPC stream
format into one and says so on the Flight stream of its upload; the node reads the rows where they are, and the slot
is free again when nothing refers to them any more. Pages are reused, as fresh ones cost more than the copy.

The file has no name and goes with the node's process. It is found by number, which may mean another file in another
container: it begins with a key that only who is authenticated has been told.
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
from tfspark.transport.messages import SlotFilled, SlotsGranted

logger = logging.getLogger(__name__)

MESSAGE_BYTES = 4 << 20
"""Rows in a message: what fits the processors' caches is copied fastest from hand to hand."""

SLOT_BYTES = MESSAGE_BYTES + (64 << 10)
"""Room for a message with its headers; a multiple of the size of a page."""

LEAST_BYTES = MESSAGE_BYTES // 4
"""Smaller messages travel on the stream: each takes a whole slot."""

SLOTS_IN_HAND = 2
"""Slots that a feed task has: it fills one while the node reads the other."""

_KEY_BYTES = 32
_FIRST_SLOT = mmap.PAGESIZE


class _Lease:
    """Refers to the rows in a slot; the slot is free when this is gone."""

    def __init__(self, pool: SlotPool, slot: int) -> None:
        self._pool, self._slot = pool, slot

    def __del__(self) -> None:
        self._pool.give_back(self._slot)


class SlotPool:
    """The memory of one node.

    Parameters
    ----------
    nbytes
        Its size, of which only what is used is taken.
    """

    def __init__(self, nbytes: int) -> None:
        self._count = nbytes // SLOT_BYTES
        # Rows are let go of on any thread, in the middle of anything: this queue can be put to even so.
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
                # The kernel may refuse such files (vm.memfd_noexec, seccomp), or this one for its size.
                logger.warning("there is no shared memory, so all rows pass through sockets: %s", e)
                self._count = 0
                return False
            self._address = np.frombuffer(self._map, np.uint8).ctypes.data
            self._stack = list(reversed(range(self._count)))
            return True

    def _create(self, size: int) -> int:
        fd = os.memfd_create("tfspark", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            # Whoever else has it open must not take mapped pages away.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._key = secrets.token_bytes(_KEY_BYTES)
            os.pwrite(fd, self._key, 0)
            self._map = mmap.mmap(fd, size, prot=mmap.PROT_READ)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def grant(self, count: int) -> SlotsGranted:
        """Return where the memory is, and as many free slots as there are, at most `count`."""
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
            # The one that came back last is likeliest to be in the processors' caches.
            return [self._stack.pop() for _ in range(min(count, len(self._stack)))]

    def give_back(self, slot: int) -> None:
        """Note that a slot is free; from any thread."""
        self._free.put(slot)

    def read(self, filled: SlotFilled, schema: pa.Schema) -> pa.RecordBatch:
        """Return the rows in a slot, which is free again when they are gone.

        Raises
        ------
        FeedError
            If the slot does not hold what was announced.
        """
        lease = _Lease(self, filled.slot)
        if not 0 < filled.nbytes <= SLOT_BYTES:
            raise FeedError(f"a message of {filled.nbytes} bytes does not fit a slot")
        start = self._address + _FIRST_SLOT + filled.slot * SLOT_BYTES
        buffer = pa.foreign_buffer(start, filled.nbytes, lease)
        del lease
        try:
            batch = pa.ipc.open_stream(buffer).read_next_batch()
        except (pa.ArrowInvalid, OSError, StopIteration) as e:
            raise FeedError(f"a slot holds no rows: {e}") from None
        if batch.schema != schema:
            raise FeedError("the schema is not the one announced for this feed")
        return batch


class GrantedSlots:
    """The slots that one upload has been granted, in the node."""

    def __init__(self, pool: SlotPool) -> None:
        self._pool = pool
        self._granted: set[int] = set()

    def grant(self, count: int) -> SlotsGranted:
        """Grant more."""
        granted = self._pool.grant(count)
        self._granted |= set(granted.slots)
        return granted

    def read(self, filled: SlotFilled, schema: pa.Schema) -> pa.RecordBatch:
        """Return the rows in a slot; see `SlotPool.read`."""
        if filled.slot not in self._granted:
            raise FeedError(f"slot {filled.slot} was not granted")
        self._granted.remove(filled.slot)
        return self._pool.read(filled, schema)

    def close(self, orderly: bool) -> None:
        """Take back what was not filled.

        Unless the upload came to an orderly end: its task may be alive and still write, so nobody gets its slots any
        more. There are few of them, and without slots rows travel on the stream.
        """
        if orderly:
            for slot in self._granted:
                self._pool.give_back(slot)
        self._granted.clear()


class SlotWriter:
    """The feed task's end: writes messages into a node's memory.

    Parameters
    ----------
    granted
        The node's answer.

    Raises
    ------
    OSError
        If the node's memory cannot be reached from here.
    """

    def __init__(self, granted: SlotsGranted) -> None:
        self._fd = os.open(f"/proc/{granted.pid}/fd/{granted.fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            # It may be a pipe or a terminal, which cannot be read from a place.
            if not granted.key or not hmac.compare_digest(os.pread(self._fd, _KEY_BYTES, 0), granted.key):
                raise OSError("another file has the number of the node's memory here")
        except BaseException:
            self.close()
            raise

    def write(self, slot: int, batch: pa.RecordBatch) -> SlotFilled | None:
        """Write a batch into a slot; ``None`` if it does not fit."""
        place = _Place(self._fd, _FIRST_SLOT + slot * SLOT_BYTES)
        try:
            with pa.ipc.new_stream(pa.PythonFile(place, mode="w"), batch.schema) as stream:
                stream.write_batch(batch)
        except pa.ArrowException:
            return None
        return SlotFilled(slot, place.nbytes)

    def close(self) -> None:
        """Let go of the memory."""
        os.close(self._fd)


class _Place(io.RawIOBase):
    """A slot as a file that Arrow writes its buffers to, without a copy between.

    Written, not mapped: to have its pages mapped takes a task longer than the copy.
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
            raise pa.ArrowCapacityError("the message does not fit its slot")
        while rest:
            written = os.pwrite(self._fd, rest, self._start + self.nbytes)
            self.nbytes += written
            rest = rest[written:]
        return size
