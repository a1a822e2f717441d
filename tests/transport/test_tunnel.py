"""Connections through values that two ends share: no byte is lost or doubled, and each end notices the end."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pyarrow.flight as flight
import pytest
from waiting import eventually

from tfspark.messages import ResultPart, WhichExport, WhichExportAnswer
from tfspark.spec import NodeId
from tfspark.transport.auth import new_secret
from tfspark.transport.client import MessageClient
from tfspark.transport.server import MessageServer
from tfspark.transport.tunnel import PARCEL_BYTES, Outbox, Parcels, TunnelEnd

pytestmark = pytest.mark.unit


class Shared:
    """Values of one process; `fail` is raised instead of an answer."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.fail: Exception | None = None

    def get(self, key: str) -> bytes | None:
        if self.fail is not None:
            raise self.fail
        return self.values.get(key)

    def set(self, key: str, value: bytes) -> None:
        if self.fail is not None:
            raise self.fail
        self.values[key] = value


class Running:
    """An end that runs in a thread."""

    def __init__(self, end: TunnelEnd, listens: bool) -> None:
        self.end, self.error, self.port = end, None, 0
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listens,), daemon=True)
        self._thread.start()
        assert self._listening.wait(10.0)

    def _run(self, listens: bool) -> None:
        self.error: Exception | None
        try:
            asyncio.run(self._serve(listens))
        except Exception as e:
            self.error = e

    async def _serve(self, listens: bool) -> None:
        server = await asyncio.start_server(self.end.accept, "127.0.0.1", 0) if listens else None
        if server is not None:
            self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        try:
            await self.end.run()
        finally:
            if server is not None:
                server.close()

    def join(self) -> bool:
        self._thread.join(10.0)
        return not self._thread.is_alive()


@contextmanager
def tunnel(port: int, patience: float = 60.0) -> Iterator[tuple[Running, Running, Shared]]:
    """Both ends of a tunnel to a port."""
    shared = Shared()
    far = Running(TunnelEnd(Parcels(shared, "far", "near"), patience), listens=True)
    near = Running(TunnelEnd(Parcels(shared, "near", "far"), patience, ("127.0.0.1", port)), listens=False)
    try:
        yield far, near, shared
    finally:
        near.end.close()
        assert near.join() and far.join()


def test_a_parcel_is_sent_when_the_last_one_has_been_read() -> None:
    shared, outbox, empty = Shared(), Outbox(), Outbox()
    near, far = Parcels(shared, "near", "far"), Parcels(shared, "far", "near")
    outbox.put(b"one")
    assert near.turn(outbox) == (b"", True)
    outbox.put(b"two")
    assert near.turn(outbox) == (b"", False), "nobody has read the first"
    assert far.turn(empty) == (b"one", False) and far.turn(empty) == (b"", False)
    assert near.turn(outbox) == (b"", True) and far.turn(empty) == (b"two", False)
    outbox.put(b"three")
    near.turn(outbox)
    del shared.values["near.parcel"]
    with pytest.raises(LookupError, match="Parcel 3 of the tunnel's near end was not kept"):
        far.turn(empty)
    near.leave()
    assert far.turn(empty) == (None, False)


def test_a_full_outbox_is_sent_in_several_parcels() -> None:
    outbox = Outbox()
    for _ in range(3):
        outbox.put(b"x" * (PARCEL_BYTES // 2 + 1))
    assert outbox.is_full is False and len(outbox.take()) > PARCEL_BYTES
    assert len(outbox.take()) == PARCEL_BYTES // 2 + 1 and outbox.take() == b""


@pytest.mark.parametrize("tls", [False, True])
def test_calls_pass_and_large_ones_arrive_whole(tls: bool) -> None:
    secret, parts = new_secret(tls), []
    node = NodeId("worker", 0)
    handlers: dict[Any, Any] = {
        ResultPart: lambda m: parts.append(m.part),
        WhichExport: lambda m: WhichExportAnswer(m.base * 100_000, False),
    }
    server = MessageServer("127.0.0.1", secret, handlers)
    try:
        with tunnel(server.port) as (far, _, _):
            client = MessageClient("127.0.0.1", far.port, secret.for_clients(), 30.0)
            sent = [os.urandom(3_000_000) for _ in range(4)]
            for part in sent:
                client.send(ResultPart(node, 0, part))
            assert parts == sent
            with ThreadPoolExecutor(8) as pool:
                each = list(pool.map(lambda n: client.ask(WhichExport(str(n), 0, 0.0), WhichExportAnswer), range(8)))
            assert [a.path for a in each] == [str(n) * 100_000 for n in range(8)]
            client.close()
    finally:
        server.close()


def test_a_connection_without_a_server_is_closed() -> None:
    server = MessageServer("127.0.0.1", new_secret(), {})
    server.close()
    with tunnel(server.port) as (far, _, _):
        client = MessageClient("127.0.0.1", far.port, new_secret(), 10.0)
        with pytest.raises(flight.FlightUnavailableError):
            client.send(WhichExport("x", 0, 0.0))
        client.close()


def test_a_reader_that_stops_does_not_stop_other_connections() -> None:
    async def play() -> None:
        async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if await reader.readexactly(1) == b"f":
                writer.write(b"x" * (64 << 20))
            else:
                writer.write(b"y")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(flood, "127.0.0.1", 0)
        with tunnel(server.sockets[0].getsockname()[1]) as (far, _, _):
            _, stuck = await asyncio.open_connection("127.0.0.1", far.port, limit=1)
            stuck.write(b"f")
            reader, writer = await asyncio.open_connection("127.0.0.1", far.port)
            writer.write(b"s")
            assert await asyncio.wait_for(reader.readexactly(1), 20.0) == b"y"
            assert await asyncio.wait_for(reader.read(), 20.0) == b"", "the end arrives too"
            writer.close()
            stuck.close()
        server.close()

    asyncio.run(play())


def test_an_end_that_hears_nothing_ends_itself() -> None:
    shared = Shared()
    alone = Running(TunnelEnd(Parcels(shared, "far", "near"), 0.5), listens=True)
    assert alone.join() and isinstance(alone.error, TimeoutError)


def test_an_end_raises_the_error_of_its_values() -> None:
    with tunnel(1) as (far, near, shared):
        assert eventually(lambda: "far.state" in shared.values and "near.state" in shared.values, 10.0)
        shared.fail = OSError("the session was closed")
        assert far.join() and near.join()
        assert far.error is shared.fail and near.error is shared.fail
