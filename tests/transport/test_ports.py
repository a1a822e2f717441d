"""Ports that are claimed before they are listened on, and addresses that are told to others."""

from __future__ import annotations

import socket
from typing import Any

import pyarrow.flight as flight
import pytest

from tfspark.errors import ResourceError
from tfspark.executor.host import address_towards
from tfspark.messages import EpochBegins, WhichEpoch
from tfspark.spark.conf import driver_addresses
from tfspark.spec import ClusterSpec, NodeAddress, NodeId
from tfspark.transport.auth import new_secret
from tfspark.transport.client import MessageClient
from tfspark.transport.ports import ReservedPort
from tfspark.transport.server import MessageServer, location_of

pytestmark = pytest.mark.unit

HOSTS = ["127.0.0.1", "::1"]


def unused_port(host: str) -> int:
    with ReservedPort(host) as reserved:
        return reserved.port


@pytest.mark.parametrize("host", HOSTS)
def test_two_claims_never_hold_the_same_port(host: str) -> None:
    port = unused_port(host)
    with ReservedPort(host, (port, port)) as first:
        assert first.port == port
        with pytest.raises(ResourceError, match=f"All ports from {port} to {port} are in use on {host}"):
            ReservedPort(host, (port, port))
    with ReservedPort(host, (port, port)) as again:
        assert again.port == port


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("ranged", [True, False])
def test_a_server_gets_the_port_while_it_is_claimed_and_no_second_one_does(host: str, ranged: bool) -> None:
    port = unused_port(host)
    reserved = ReservedPort(host, (port, port) if ranged else None)
    with reserved, flight.FlightServerBase(location_of(host, reserved.port, tls=False)) as server:
        assert server.port == reserved.port
        with pytest.raises(Exception, match="did not start"):
            flight.FlightServerBase(location_of(host, reserved.port, tls=False))


def test_a_claim_passes_over_ports_that_others_listen_on() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other:
        port = other.getsockname()[1]
        with pytest.raises(ResourceError, match="in use"):
            ReservedPort("127.0.0.1", (port, port))


@pytest.mark.parametrize("ranged", [True, False])
def test_a_port_claimed_on_all_addresses_is_nobody_elses_on_any(ranged: bool) -> None:
    port = unused_port("127.0.0.1")
    with ReservedPort(None, (port, port) if ranged else None) as reserved:
        for host in ("127.0.0.1", "127.0.0.2", "::1"):
            other = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            with other, pytest.raises(OSError, match="in use"):
                other.bind((host, reserved.port))
        # As TensorFlow's server does.
        with flight.FlightServerBase(location_of("0.0.0.0", reserved.port, tls=False)) as server:
            assert server.port == reserved.port


@pytest.mark.parametrize("listening", [True, False])
def test_a_port_in_use_on_another_address_is_no_port_for_tensorflow(listening: bool) -> None:
    with socket.create_server(("127.0.0.2", 0)) as other, socket.socket() as client:
        client.bind(("127.0.0.2", 0))
        client.connect(other.getsockname())
        port = (other if listening else client).getsockname()[1]
        with ReservedPort("127.0.0.1", (port, port)), pytest.raises(OSError, match="in use"), socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("0.0.0.0", port))
        with pytest.raises(ResourceError, match=f"All ports from {port} to {port} are in use on this host"):
            ReservedPort(None, (port, port))


def test_a_port_whose_last_connection_has_just_ended_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with socket.create_connection(address) as client:
            accepted, _ = server.accept()
            accepted.close()
            assert client.recv(1) == b""
    with pytest.raises(OSError, match="in use"), socket.socket() as plain:
        plain.bind(address)
    with ReservedPort(address[0], (address[1], address[1])) as reserved:
        assert reserved.port == address[1]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("tls", [True, False])
def test_messages_by_ipv4_and_ipv6_within_a_range(host: str, tls: bool) -> None:
    secret = new_secret(tls)
    port = unused_port(host)
    server = MessageServer(host, secret, {WhichEpoch: lambda message: EpochBegins(7, 0)}, (port, port + 20))
    client = MessageClient(host, server.port, secret.for_clients())
    try:
        assert port <= server.port <= port + 20
        assert client.ask(WhichEpoch(), EpochBegins) == EpochBegins(7, 0)
        assert address_towards(host, server.port) == host
    finally:
        client.close()
        server.close()
    with ReservedPort(host, (server.port, server.port)):
        """It has given its port back."""


def test_spark_local_ip_comes_first_if_it_is_ours(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.5")
    assert address_towards("127.0.0.1", 9) == "127.0.0.5"
    monkeypatch.setenv("SPARK_LOCAL_IP", "[::1]")
    assert address_towards("127.0.0.1", 9) == "::1"
    monkeypatch.setenv("SPARK_LOCAL_IP", "203.0.113.7")
    assert address_towards("127.0.0.1", 9) == "127.0.0.1"
    assert "203.0.113.7: it is not an address of this host" in caplog.text


@pytest.mark.parametrize("name", ["0.0.0.0", "::", "[::]", "0"])
def test_a_spark_local_ip_that_nobody_can_connect_to_counts_as_unset(name: str, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setenv("SPARK_LOCAL_IP", name)
    assert address_towards("127.0.0.1", 9) == "127.0.0.1"
    assert not caplog.text


def test_the_cluster_spec_writes_ipv6_in_brackets() -> None:
    spec = ClusterSpec((NodeAddress(NodeId("worker", 0), "fd00::2", 2222, 1, 1),))
    assert spec.jobs == {"worker": ["[fd00::2]:2222"]}


def test_a_driver_with_an_ipv6_address() -> None:
    class Context:
        master = "spark://host:7077"

        def getConf(self) -> dict[str, str]:
            return {"spark.driver.host": "[fd00::1]", "spark.driver.bindAddress": "::"}

    class Session:
        sparkContext = Context()

    assert driver_addresses(Session()) == ("::", "fd00::1")  # type: ignore[arg-type]
