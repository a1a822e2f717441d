"""The tunnel task, where it does not find the client's values."""

from __future__ import annotations

import uuid

import pytest

from tfspark.executor.tunnel_task import TunnelOrder, hold_tunnel
from tfspark.spark.connect import SharedSession
from tfspark.transport.auth import new_secret
from tfspark.transport.ports import ReservedPort
from tfspark.transport.server import MessageServer

pytestmark = pytest.mark.unit


def fault_with(*addresses: str) -> str:
    """Run the task with these addresses of the server."""
    session = SharedSession(addresses, f";user_id=tfspark;session_id={uuid.uuid4()}")
    (batch,) = hold_tunnel(TunnelOrder(session, b"word", 5.0), iter(()))
    (row,) = batch.to_pylist()
    return str(row["fault"])


def test_it_says_where_it_looked_for_the_server() -> None:
    with ReservedPort("127.0.0.1") as one, ReservedPort("127.0.0.1") as two:
        fault = fault_with(f"127.0.0.1:{one.port}", f"127.0.0.1:{two.port}")
    assert f"does not reach the Spark Connect server at 127.0.0.1:{one.port} or 127.0.0.1:{two.port}" in fault


def test_another_server_is_not_taken_for_the_clients() -> None:
    server = MessageServer("127.0.0.1", new_secret(), {})
    try:
        assert "does not reach the Spark Connect server" in fault_with(f"127.0.0.1:{server.port}")
    finally:
        server.close()
