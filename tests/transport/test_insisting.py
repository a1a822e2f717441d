"""Calls that are made again while a server does not answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pyarrow.flight as flight
import pytest

from tfspark import messages as m
from tfspark.spec import NodeId
from tfspark.transport.auth import new_secret
from tfspark.transport.client import MessageClient, without_context
from tfspark.transport.server import MessageServer

pytestmark = pytest.mark.unit

Serve = Callable[[Callable[[m.WhichEpoch], m.Message]], MessageClient]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server with one handler; returns a client of it."""
    opened: list[MessageServer | MessageClient] = []

    def start(handler: Callable[[m.WhichEpoch], m.Message]) -> MessageClient:
        secret = new_secret()
        server = MessageServer("127.0.0.1", secret, {m.WhichEpoch: handler})
        client = MessageClient("127.0.0.1", server.port, secret.for_clients())
        opened.extend([client, server])
        return client

    yield start
    for it in opened:
        it.close()


def test_a_call_that_is_not_answered_in_time_is_made_again(serve: Serve) -> None:
    calls, hold = [], threading.Event()

    def handler(message: m.WhichEpoch) -> m.Message:
        calls.append(message)
        if len(calls) < 3:
            hold.wait(20.0)
        return m.EpochBegins(len(calls), 0)

    answer = serve(handler).insist(m.WhichEpoch(), m.EpochBegins, patience=20.0, timeout=0.3)
    hold.set()
    assert answer.feed == len(calls) == 3


def test_patience_ends(serve: Serve) -> None:
    hold = threading.Event()

    def handler(message: m.WhichEpoch) -> m.Message:
        hold.wait(20.0)
        return m.EpochBegins(0, 0)

    client, began = serve(handler), time.monotonic()
    with pytest.raises(flight.FlightTimedOutError):
        client.insist(m.WhichEpoch(), m.EpochBegins, patience=1.0, timeout=0.3)
    hold.set()
    assert 0.6 <= time.monotonic() - began < 15.0


def test_nobody_insists_once_stopped() -> None:
    client = MessageClient("127.0.0.1", 1, new_secret().for_clients())
    pauses: list[float] = []

    def stopped(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) == 3

    with pytest.raises(flight.FlightUnavailableError):
        client.insist_on_sending(m.WhichEpoch(), patience=60.0, pause=stopped)
    client.close()
    assert pauses == [0.1, 0.2, 0.4]


def test_what_would_fail_again_is_not_repeated(serve: Serve) -> None:
    client = serve(lambda message: m.EpochBegins(0, 0))
    pauses: list[float] = []
    with pytest.raises(flight.FlightServerError, match="Unknown action 'Entered'"):
        client.insist_on_sending(m.Entered(NodeId("worker", 0)), patience=60.0, pause=pauses.append)
    assert pauses == []


def test_what_grpc_says_about_itself_is_left_out() -> None:
    noise = ". Detail: Failed. gRPC client debug context: UNKNOWN\n. Client context: OK"
    error = RuntimeError(f"The function gave 'a'.{noise}")
    assert without_context(error) == "The function gave 'a'"
    assert without_context(RuntimeError("plain.")) == "plain."
