"""TCP connections between two programs that cannot connect, but can both read and write shared values.

The far end listens. For each connection that it accepts, the near end opens one to a port of its own host. The bytes of
all connections travel in *parcels*: an end writes its next parcel after the other end has read the last one. So shared
values need no other order than that a value that was written is read, and they never hold more than two parcels.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import struct
import threading
import time
from collections import deque
from collections.abc import Coroutine
from enum import IntEnum
from typing import Any, Protocol

logger = logging.getLogger(__name__)

PARCEL_BYTES = 1 << 20
"""Bytes after which a parcel is full. Heartbeats wait for the parcel before theirs, so it must not take long."""

WAITING_BYTES = 8 << 20
"""Bytes that wait for a parcel, after which an end reads no more from its connections."""

FIRST_PAUSE_SECONDS = 0.005
"""Pause after a turn that has moved bytes; each further pause is twice as long, up to `LONGEST_PAUSE_SECONDS`."""

LONGEST_PAUSE_SECONDS = 0.1

BEAT_SECONDS = 1.0
"""An end that has nothing to send shows this often that it is alive."""

LOOK_SECONDS = 1.0
"""Pause between two checks whether the other end is still alive."""

_CHUNK_BYTES = 1 << 16
_FRAME = struct.Struct("!IBI")
_GONE = b"gone"


class Values(Protocol):
    """Values that both ends read and write."""

    def get(self, key: str) -> bytes | None:
        """Return a value; None if it was never written."""

    def set(self, key: str, value: bytes) -> None:
        """Write a value."""


class Parcels:
    """Sends bytes to the other end and receives its bytes, in order and each once.

    Parameters
    ----------
    values
        The shared values.
    own, other
        Names of this end and of the other end.
    """

    def __init__(self, values: Values, own: str, other: str) -> None:
        self._values, self._own, self._other = values, own, other
        self._sent = self._received = 0
        self._state, self._other_state = b"", b""
        self.heard_at = time.monotonic()

    def turn(self, outbox: Outbox) -> tuple[bytes | None, bool]:
        """Receive a parcel if there is one, and send what waits if the other end has read the last parcel.

        Returns
        -------
        received
            The bytes that have arrived; None if the other end is gone and will send no more.
        sent
            Whether a parcel was sent.
        """
        state = self._values.get(f"{self._other}.state") or b"0 0 0"
        if state == _GONE:
            return None, False
        if state != self._other_state:
            self._other_state, self.heard_at = state, time.monotonic()
        sent, read, _ = map(int, state.split())
        received = b""
        if sent > self._received:
            parcel = self._values.get(f"{self._other}.parcel")
            if parcel is None:
                raise LookupError(f"Parcel {sent} of the tunnel's {self._other} end was not kept.")
            received, self._received = parcel, sent
        leaving = outbox.take() if read == self._sent else b""
        if leaving:
            # The parcel comes first: the state announces it.
            self._values.set(f"{self._own}.parcel", leaving)
            self._sent += 1
        self._tell(f"{self._sent} {self._received} {int(time.monotonic() / BEAT_SECONDS)}".encode())
        return received, bool(leaving)

    def leave(self) -> None:
        """Tell the other end that this end is gone."""
        self._tell(_GONE)

    def _tell(self, state: bytes) -> None:
        if state != self._state:
            self._values.set(f"{self._own}.state", state)
            self._state = state


class Outbox:
    """Frames that wait to be sent; several threads may use it."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._nbytes = 0
        self._lock = threading.Lock()
        self.news = threading.Event()

    @property
    def is_full(self) -> bool:
        """Whether `WAITING_BYTES` wait."""
        return self._nbytes >= WAITING_BYTES

    def put(self, frame: bytes) -> None:
        """Add a frame."""
        with self._lock:
            self._frames.append(frame)
            self._nbytes += len(frame)
        self.news.set()

    def take(self) -> bytes:
        """Remove and return the frames of the next parcel, the oldest first."""
        parcel = bytearray()
        with self._lock:
            while self._frames and len(parcel) < PARCEL_BYTES:
                parcel += self._frames.popleft()
            self._nbytes -= len(parcel)
        return bytes(parcel)


class _Kind(IntEnum):
    OPEN = 0
    DATA = 1
    END = 2


class TunnelEnd:
    """One end of a tunnel: connections on one side, parcels on the other.

    Parameters
    ----------
    parcels
        Carries the bytes.
    patience
        Seconds after which the other end counts as gone if nothing is heard from it.
    towards
        Host and port to which the near end connects; None for the far end, which listens.
    """

    def __init__(self, parcels: Parcels, patience: float, towards: tuple[str, int] | None = None) -> None:
        self._parcels, self._patience, self._towards = parcels, patience, towards
        self._outbox = Outbox()
        self._numbers = itertools.count()
        self._arriving: dict[int, asyncio.Queue[bytes]] = {}
        self._carrying: set[asyncio.Task[None]] = set()
        self._closing = threading.Event()
        self._error: Exception | None = None

    def close(self) -> None:
        """Make `run` return soon. Any thread may call it."""
        self._closing.set()
        self._outbox.news.set()

    async def run(self) -> None:
        """Carry bytes until `close`, or until the other end is gone.

        Raises
        ------
        TimeoutError
            If nothing was heard from the other end for `patience` seconds.
        Exception
            The error of the shared values, if they cannot be read or written any more.
        """
        self._loop, self._room, self._over = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        self._room.set()
        # A call that hangs must not keep the program from ending: threads of the loop's own pool are waited for.
        threading.Thread(target=self._take_turns, name="tfspark-tunnel-turns", daemon=True).start()
        try:
            while not self._over.is_set():
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._over.wait(), LOOK_SECONDS)
                if not self._over.is_set() and time.monotonic() - self._parcels.heard_at > self._patience:
                    raise TimeoutError(f"Nothing was heard from the tunnel's other end for {self._patience:g} s.")
        finally:
            self.close()
            for task in self._carrying:
                task.cancel()
            await asyncio.gather(*self._carrying, return_exceptions=True)
        if self._error is not None:
            raise self._error

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry a connection that the far end has accepted; for ``asyncio.start_server``."""
        number = next(self._numbers)
        arriving = self._begin(number)
        self._put(number, _Kind.OPEN)
        self._start(self._carry(number, arriving, reader, writer))

    def _take_turns(self) -> None:
        """Take turns until the end; runs in a thread, because the calls block."""
        pause = FIRST_PAUSE_SECONDS
        try:
            while not self._closing.is_set():
                self._outbox.news.clear()
                received, sent = self._parcels.turn(self._outbox)
                if received is None:
                    break
                if received or sent:
                    self._loop.call_soon_threadsafe(self._moved, received)
                pause = FIRST_PAUSE_SECONDS if received or sent else min(2 * pause, LONGEST_PAUSE_SECONDS)
                self._outbox.news.wait(pause)
            else:
                self._parcels.leave()
        except Exception as e:
            self._error = e
        # The loop is closed if the other end has been silent for too long.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._over.set)

    def _moved(self, received: bytes) -> None:
        if not self._outbox.is_full:
            self._room.set()
        place = 0
        while place < len(received):
            number, kind, size = _FRAME.unpack_from(received, place)
            place += _FRAME.size
            if kind == _Kind.OPEN:
                self._start(self._connect(number, self._begin(number)))
            elif number in self._arriving:
                # No data means the end. Data of a connection that has ended here is dropped.
                self._arriving[number].put_nowait(received[place : place + size])
            place += size

    def _start(self, carrying: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(carrying)
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    def _begin(self, number: int) -> asyncio.Queue[bytes]:
        self._arriving[number] = asyncio.Queue()
        return self._arriving[number]

    def _put(self, number: int, kind: _Kind, data: bytes = b"") -> None:
        self._outbox.put(_FRAME.pack(number, kind, len(data)) + data)
        if self._outbox.is_full:
            self._room.clear()

    async def _connect(self, number: int, arriving: asyncio.Queue[bytes]) -> None:
        assert self._towards is not None
        try:
            reader, writer = await asyncio.open_connection(*self._towards)
        except OSError as e:
            logger.debug("no server for a connection through the tunnel: %s", e)
            del self._arriving[number]
            self._put(number, _Kind.END)
            return
        await self._carry(number, arriving, reader, writer)

    async def _carry(
        self, number: int, arriving: asyncio.Queue[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Carry one connection until one of its sides ends it."""
        writing = asyncio.ensure_future(_write(arriving, writer))
        reading = asyncio.ensure_future(self._read(number, reader))
        try:
            await asyncio.wait((writing, reading), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for side in (writing, reading):
                side.cancel()
            del self._arriving[number]
            self._put(number, _Kind.END)
            writer.close()

    async def _read(self, number: int, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                await self._room.wait()
                self._put(number, _Kind.DATA, data)


async def _write(arriving: asyncio.Queue[bytes], writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await arriving.get():
            writer.write(data)
            await writer.drain()
