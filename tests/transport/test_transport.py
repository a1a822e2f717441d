"""Arrow Flight between real processes: who may speak, what is believed, what a broken upload leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import eventually

from tfspark import messages as m
from tfspark.columns.spec import ColumnSpec
from tfspark.executor.process import resident_bytes
from tfspark.node.questions import Questions
from tfspark.node.receiver import Receiver
from tfspark.node.spool import Feed, Spool
from tfspark.spec import NodeId
from tfspark.transport.auth import TLS_NAME, Secret, call_options, new_secret
from tfspark.transport.client import MessageClient
from tfspark.transport.server import MessageServer
from tfspark.transport.silence import SilenceWatch, connections

pytestmark = pytest.mark.unit

SCHEMA = pa.schema([pa.field("x", pa.int64(), nullable=False)])
WORKER = NodeId("worker", 0)
BATCH = pa.record_batch([pa.array(range(1000), pa.int64())], schema=SCHEMA)


@dataclass
class Node:
    """A receiver, and what it asked and told."""

    receiver: Receiver
    spool: Spool
    token: str
    asked: list[Any] = field(default_factory=list)
    refused: list[Any] = field(default_factory=list)
    vote: bool = True

    @property
    def partitions(self) -> list[Any]:
        return self.spool._feeds[0].partitions

    def put(self, header: m.PutHeader, batches: int, end: m.PutEnd | None, token: str | None = None) -> Any:
        client = flight.FlightClient(f"grpc://127.0.0.1:{self.receiver.port}")
        descriptor = flight.FlightDescriptor.for_command(header.encode())
        writer, replies = client.do_put(descriptor, SCHEMA, call_options(token or self.token, 20))
        for _ in range(batches):
            writer.write_batch(BATCH)
        if end is not None:
            writer.write_metadata(end.encode())
        writer.done_writing()
        reply = replies.read()
        writer.close()
        client.close()
        return reply


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    spool = Spool(str(tmp_path))
    spool.begin_feed(Feed(0, 1, (ColumnSpec("x", "int64"),), SCHEMA, seed=0))
    secret = new_secret()
    made: Node

    def may_commit(header: m.PutHeader, rows: int, nbytes: int) -> bool:
        made.asked.append((header.partition, rows))
        return made.vote

    refuse = lambda h, e: made.refused.append((h, e))  # noqa: E731
    receiver = Receiver("127.0.0.1", secret, spool, may_commit, refuse, Questions())
    made = Node(receiver, spool, secret.token)
    yield made
    receiver.close()


def test_a_whole_upload_is_committed(node: Node) -> None:
    reply = node.put(m.PutHeader(0, 5, "u"), 3, m.PutEnd(3000))
    assert reply.to_pybytes() == m.CommitAnswer(True).encode()
    assert node.asked == [(5, 3000)] and [p.rows for p in node.partitions] == [3000]


@pytest.mark.parametrize("end", [None, m.PutEnd(2999), m.PutEnd(3001)])
def test_an_upload_without_its_right_end_is_dropped(node: Node, end: m.PutEnd | None) -> None:
    assert node.put(m.PutHeader(0, 5, "u"), 3, end) is None
    assert node.asked == [] and node.partitions == [] and node.spool.unread_bytes == 0


def test_the_second_of_two_twins_is_dropped(node: Node) -> None:
    node.vote = False
    assert node.put(m.PutHeader(0, 5, "u"), 1, m.PutEnd(1000)).to_pybytes() == m.CommitAnswer(False).encode()
    assert node.partitions == [] and node.spool.unread_bytes == 0


def test_rows_of_another_schema_are_refused(node: Node) -> None:
    client = flight.FlightClient(f"grpc://127.0.0.1:{node.receiver.port}")
    other = pa.schema([pa.field("x", pa.string())])
    descriptor = flight.FlightDescriptor.for_command(m.PutHeader(0, 1, "u").encode())
    writer, replies = client.do_put(descriptor, other, call_options(node.token, 20))
    with pytest.raises(flight.FlightError, match="schema"):
        replies.read()
        writer.close()
    assert node.partitions == []


@pytest.mark.parametrize("token", ["wrong", "Bearer", "x" * 5000])
def test_a_stranger_is_refused_before_anything_is_read(node: Node, token: str) -> None:
    with pytest.raises(flight.FlightUnauthenticatedError):
        node.put(m.PutHeader(0, 1, "u"), 1, m.PutEnd(1000), token=token)
    with pytest.raises(flight.FlightUnauthenticatedError):
        MessageClient("127.0.0.1", node.receiver.port, Secret(token)).send(m.Poll(WORKER, 0, 0.0))
    with pytest.raises(flight.FlightUnauthenticatedError):
        list(flight.FlightClient(f"grpc://127.0.0.1:{node.receiver.port}").do_action(flight.Action("Poll", b"{}")))
    assert node.asked == [] and node.partitions == [] and node.spool.unread_bytes == 0


def test_a_client_killed_half_way_leaves_nothing(node: Node) -> None:
    program = f"""
        import os, sys
        import pyarrow as pa, pyarrow.flight as flight
        from tfspark import messages as m
        from tfspark.transport.auth import call_options
        schema = pa.schema([pa.field("x", pa.int64(), nullable=False)])
        client = flight.FlightClient("grpc://127.0.0.1:{node.receiver.port}")
        descriptor = flight.FlightDescriptor.for_command(m.PutHeader(0, 1, "u").encode())
        writer, _ = client.do_put(descriptor, schema, call_options(sys.stdin.readline().strip(), 60))
        for _ in range(50):
            writer.write_batch(pa.record_batch([pa.array(range(1000), pa.int64())], schema=schema))
        print("half way", flush=True)
        sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(node.token + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "half way\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    # The server ends the call before a later one of the same partition can be committed.
    assert node.put(m.PutHeader(0, 1, "v"), 1, m.PutEnd(1000)).to_pybytes() == m.CommitAnswer(True).encode()
    with node.spool._changed:
        assert node.spool._changed.wait_for(lambda: not node.spool._uploads, timeout=20)
    assert node.asked == [(1, 1000)] and [p.rows for p in node.partitions] == [1000]
    assert node.spool.unread_bytes == node.partitions[0].nbytes


def test_a_stranger_costs_nothing(node: Node) -> None:
    """Bodies of a gigabyte in all, and connections that never say a word."""
    resident = resident_bytes(os.getpid())
    silent = [socket.create_connection(("127.0.0.1", node.receiver.port)) for _ in range(20)]
    body = bytes(64 << 20)
    for _ in range(16):
        client = flight.FlightClient(f"grpc://127.0.0.1:{node.receiver.port}")
        with pytest.raises(flight.FlightUnauthenticatedError):
            list(client.do_action(flight.Action("Poll", body), call_options("wrong", 20)))
        client.close()
    node.put(m.PutHeader(0, 1, "u"), 1, m.PutEnd(1000))
    assert resident_bytes(os.getpid()) - resident < 400 << 20, "this process is client and server"
    for s in silent:
        s.close()


def test_with_tls_only_those_who_know_the_certificate_are_heard(caplog: Any) -> None:
    secret = new_secret(tls=True)
    assert "BEGIN" not in repr(secret) and secret.token not in repr(secret)
    assert "PRIVATE" in secret.key and not secret.for_clients().key
    server = MessageServer("127.0.0.1", secret, {m.Poll: lambda message: m.Events([m.AllFinished()])})
    try:
        client = MessageClient("127.0.0.1", server.port, secret.for_clients())
        assert client.send(m.Poll(WORKER, 0, 0.0)) == m.Events([m.AllFinished()]).encode()
        for stranger in (
            Secret(secret.token),
            new_secret(tls=True),
            Secret("wrong", secret.certificate),
            replace(new_secret(tls=True), token=secret.token),
        ):
            with pytest.raises(flight.FlightError):
                MessageClient("127.0.0.1", server.port, stranger).send(m.Poll(WORKER, 0, 0.0), timeout=5)
        context = ssl.create_default_context(cadata=secret.certificate)
        with socket.create_connection(("127.0.0.1", server.port)) as s:
            assert context.wrap_socket(s, server_hostname=TLS_NAME).version() in ("TLSv1.2", "TLSv1.3")
    finally:
        server.close()


def test_actions_nobody_knows_and_bodies_nobody_can_read() -> None:
    secret = new_secret()
    server = MessageServer("127.0.0.1", secret, {m.Poll: lambda message: m.Events([m.AllFinished()])})
    try:
        client = flight.FlightClient(f"grpc://127.0.0.1:{server.port}")
        for action, body, message in (
            ("Nothing", b"{}", "Unknown action"),
            ("Exited", b"{}", "Unknown action"),
            ("Poll", b"\xff\x00", "Cannot decode the message Poll"),
            ("Poll", msgspec.msgpack.encode([]), "Cannot decode the message Poll"),
            ("Poll", msgspec.msgpack.encode({"type": "Poll", "since": 0}), "Cannot decode the message Poll"),
            ("Poll", m.WhichEpoch().encode(), "Cannot decode the message Poll"),
            ("Poll", msgspec.msgpack.encode({"type": "Poll", "node": ["worker"], "since": "0"}), "Cannot decode"),
        ):
            with pytest.raises(flight.FlightError, match=message):
                list(client.do_action(flight.Action(action, body), call_options(secret.token, 20)))
    finally:
        server.close()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode), st.sampled_from(sorted(m.REQUESTS)))
def test_random_bytes_are_no_message(body: bytes, name: str) -> None:
    cls = m.REQUESTS[name]
    try:
        message = cls.decode(body)
    except ValueError:
        return
    assert isinstance(message, cls)


def count_connections(port: int) -> int:
    count = 0
    for connection in connections(port):
        connection.socket.close()
        count += 1
    return count


def read_to_the_end(connection: socket.socket) -> None:
    """Read until the other end closes; it speaks first."""
    connection.settimeout(30)
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(4096):
            pass


def test_connections_that_say_nothing_are_closed_and_those_that_wait_for_an_answer_are_not() -> None:
    secret = new_secret()
    asked, go = threading.Event(), threading.Event()

    def answer(_: m.WhichEpoch) -> m.Message:
        asked.set()
        assert go.wait(60)
        return m.EpochBegins(1, 2)

    server = MessageServer("127.0.0.1", secret, {m.WhichEpoch: answer})
    watch = SilenceWatch(server.port, silent_seconds=0.5)
    client = MessageClient("127.0.0.1", server.port, secret)
    held = []
    try:
        with ThreadPoolExecutor(1) as pool:
            answered = pool.submit(client.ask, m.WhichEpoch(), m.EpochBegins, 60.0)
            assert asked.wait(30)
            held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
            for connection in held:
                read_to_the_end(connection)
            go.set()
            assert answered.result(30) == m.EpochBegins(1, 2)
        # The server closes its end a moment after the client has read it to the end.
        assert eventually(lambda: count_connections(server.port) == 1)
    finally:
        for connection in held:
            connection.close()
        client.close()
        watch.close()
        server.close()


def test_of_too_many_connections_the_idle_ones_are_closed_and_their_clients_come_back() -> None:
    secret = new_secret()
    server = MessageServer("127.0.0.1", secret, {m.WhichEpoch: lambda _: m.EpochBegins(1, 2)})
    watch = SilenceWatch(server.port, silent_seconds=60.0, most=3)
    clients = [MessageClient("127.0.0.1", server.port, secret) for _ in range(8)]
    try:
        for client in clients:
            assert client.ask(m.WhichEpoch(), m.EpochBegins) == m.EpochBegins(1, 2)
        assert eventually(lambda: count_connections(server.port) <= 3)
        for client in clients:
            assert client.insist(m.WhichEpoch(), m.EpochBegins, 30.0) == m.EpochBegins(1, 2)
    finally:
        for client in clients:
            client.close()
        watch.close()
        server.close()
