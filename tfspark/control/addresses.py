"""The address on which this program listens, and the address at which Spark's executors reach it.

Spark's settings contain the driver's addresses, but not those of a client of Spark Connect. For a client, a small Spark
job tries the possible addresses.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import pyarrow as pa
import pyarrow.flight as flight

from tfspark.errors import ConfigurationError
from tfspark.executor.host import address_towards
from tfspark.host_names import bare
from tfspark.messages import Probe, ProbeAnswer
from tfspark.spark import conf, connect
from tfspark.spark.arrow_jobs import map_in_arrow
from tfspark.spark.jobs import describe_job_error
from tfspark.transport.auth import Secret, new_secret
from tfspark.transport.client import MessageClient, without_context
from tfspark.transport.ports import Ports
from tfspark.transport.server import MessageServer

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)

HOST_VARIABLE = "TFSPARK_CLIENT_HOST"
"""Environment variable of a client of Spark Connect: the address or name at which executors reach it."""

PROBES = 4
"""Number of tasks that try to reach the client; they need not run on different executors."""

PROBE_SECONDS = 5.0
"""Timeout of a task's call to each address."""

_ELSEWHERE = "192.0.2.1"
"""An address that no host has (RFC 5737): the route to it is the default route of this machine. Nothing is sent."""

_PROBE_DDL = "host string, address int, fault string"

Addresses = tuple[str, str]
"""The address to bind, and the address at which executors reach it."""

_HERE: Addresses = ("127.0.0.1", "127.0.0.1")
"""Addresses of a client that executors reach through a tunnel: only the client's own end of it calls the client."""

_found: WeakKeyDictionary[Any, Addresses] = WeakKeyDictionary()
_behind_tunnel: WeakSet[Any] = WeakSet()
_finding = threading.Lock()


def driver_addresses(spark: SparkSession, ports: Ports | None = None) -> Addresses:
    """Return the address to bind, and the address at which executors reach it.

    On Spark Connect, a job tries the addresses once per session. Where `needs_tunnel`, both are addresses of this
    machine only.

    Parameters
    ----------
    ports
        Range of ports that executors can reach; any port by default.

    Raises
    ------
    ConfigurationError
        If executors cannot reach this client of Spark Connect.
    """
    if not connect.is_connect(spark):
        return conf.driver_addresses(spark)
    with _finding:
        if spark not in _found:
            _found[spark] = _find(spark, ports)
            logger.debug("executors reach this client at %s", _found[spark][1])
        return _found[spark]


def needs_tunnel(spark: SparkSession, ports: Ports | None = None) -> bool:
    """Return whether executors cannot reach this client of Spark Connect, except through a tunnel."""
    driver_addresses(spark, ports)
    return connect.is_connect(spark) and spark in _behind_tunnel


def candidates(server: str, master: str, chosen: str | None) -> list[Addresses]:
    """Return the addresses at which executors may reach this client, the most likely first.

    Parameters
    ----------
    server
        Host of the Spark Connect server.
    master
        Spark's master; with a local master, executors are on the server's host.
    chosen
        Value of `HOST_VARIABLE`, or None.
    """
    if chosen:
        host = bare(chosen)
        return [(host if _is_here(host) else "::" if ":" in host else "0.0.0.0", host)]
    ways = [server, _ELSEWHERE] if master.startswith("local") else [_ELSEWHERE, server]
    found = []
    for way in ways:
        with contextlib.suppress(OSError):
            found.append(address_towards(way, 9))
    return [(address, address) for address in dict.fromkeys(found)]


def _is_here(host: str) -> bool:
    """Return whether this machine can listen on an address; it cannot if a router translates the address."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as s:
            s.bind(address)
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class _Target:
    host: str
    port: int


def _find(spark: SparkSession, ports: Ports | None) -> Addresses:
    chosen = os.environ.get(HOST_VARIABLE)
    tried = candidates(connect.server_host(spark), conf.master_of(spark), chosen)
    if not tried:
        raise ConfigurationError("This machine has no network address.", hint=f"Set {HOST_VARIABLE}.")
    secret = new_secret()
    with contextlib.ExitStack() as servers:
        targets = []
        for bind, host in tried:
            server = MessageServer(bind, secret, {Probe: lambda _: ProbeAnswer()}, ports)
            servers.callback(server.close)
            targets.append(_Target(host, server.port))
        faults = _probe(spark, targets, secret)
    for number, addresses in enumerate(tried):
        if not faults[number]:
            return addresses
    told = "; ".join(f"{t.host}:{t.port} from {f[0]}" for t, f in zip(targets, faults, strict=True))
    if not chosen and connect.shared_session(spark) is not None:
        logger.info(
            "Spark's executors cannot reach this client of Spark Connect: %s. Messages pass through the Spark Connect "
            "server and a Spark task, which takes one task slot; each takes some 0.1 s longer.",
            told,
        )
        _behind_tunnel.add(spark)
        return _HERE
    raise ConfigurationError(
        f"Spark's executors cannot reach this client of Spark Connect: {told}.",
        hint=f"Set {HOST_VARIABLE} to an address of this machine that executors reach, open a range of ports and "
        "pass it (ports=(first, last)), or run the program in the network of the Spark cluster: "
        "docs/clusters/connect.md.",
    )


def _probe(spark: SparkSession, targets: Sequence[_Target], secret: Secret) -> list[list[str]]:
    """Run tasks that call each target; return the errors of each target, one for each task that could not reach it."""
    job = map_in_arrow(spark.range(0, PROBES, 1, PROBES), partial(_call_all, targets, secret), _PROBE_DDL)
    try:
        rows = job.collect()
    except Exception as e:
        raise ConfigurationError(
            f"The job that looks for the address of this client failed: {describe_job_error(e)}"
        ) from e
    return [[f"{r.host}: {r.fault}" for r in rows if r.address == n and r.fault] for n in range(len(targets))]


def _call_all(
    targets: Sequence[_Target], secret: Secret, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Body of a task: call each target."""
    for _ in batches:
        pass
    host = socket.gethostname()
    said = [{"host": host, "address": n, "fault": _call(t, secret)} for n, t in enumerate(targets)]
    yield pa.RecordBatch.from_pylist(
        said, schema=pa.schema([("host", pa.string()), ("address", pa.int32()), ("fault", pa.string())])
    )


def _call(target: _Target, secret: Secret) -> str:
    """Call a target; return the first line of the error, or ``""`` if it answered."""
    client = MessageClient(target.host, target.port, secret)
    try:
        client.ask(Probe(), ProbeAnswer, PROBE_SECONDS)
    except (flight.FlightError, pa.ArrowException, OSError, ValueError) as e:
        return without_context(e).splitlines()[0]
    finally:
        client.close()
    return ""
