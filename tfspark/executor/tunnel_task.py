"""The far end of a tunnel: a Spark task that listens for nodes and feed tasks where they cannot reach the client.

It exchanges their bytes with the client through the Spark Connect server (`tfspark.transport.tunnel`). It ends when the
client leaves, or has not been heard of for ``driver_timeout``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from tfspark.executor.host import address_towards
from tfspark.host_names import bare
from tfspark.spark.connect import SharedSession, SharedValues, is_reachable
from tfspark.transport.ports import Ports, ReservedPort
from tfspark.transport.tunnel import Parcels, TunnelEnd

RESULT_DDL = "fault string"

NEAR, FAR = "near", "far"
"""Names of the two ends: of the client and of this task."""

WORD = "word"
"""Key of a word of the client, by which the task knows that it talks to the same server."""

ADDRESS = "address"
"""Key of the ``host:port`` at which the task listens."""


@dataclass(frozen=True)
class TunnelOrder:
    """What the task needs.

    Attributes
    ----------
    session
        Where the client's values are.
    word
        The client's word.
    patience
        Seconds after which a silent client counts as gone.
    ports
        Range to take the port from; any port by default.
    """

    session: SharedSession
    word: bytes
    patience: float
    ports: Ports | None = None


def hold_tunnel(order: TunnelOrder, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Body of the task: carry bytes until the client leaves; yield a row only if the client's values are not found."""
    from pyspark import TaskContext

    for _ in batches:
        pass
    context = TaskContext.get()
    # Nodes do not know the address of a second attempt, and bytes of the first attempt are lost.
    fault = "" if context is None or context.attemptNumber() == 0 else "its first attempt was lost"
    if not fault:
        found = _find(order)
        if found is None:
            tried = " or ".join(order.session.addresses)
            fault = f"{socket.gethostname()} does not reach the Spark Connect server at {tried}"
        else:
            address, values = found
            # The client knows when this task has ended.
            with contextlib.closing(values):
                asyncio.run(_listen(order, address, values))
    if fault:
        yield pa.RecordBatch.from_pylist([{"fault": fault}], schema=pa.schema([("fault", pa.string())]))


def _find(order: TunnelOrder) -> tuple[str, SharedValues] | None:
    """Return the server's address and the client's values in it."""
    for address in order.session.addresses:
        if is_reachable(address):
            values = SharedValues(f"sc://{address}/{order.session.parameters}")
            if values.has(WORD, order.word):
                return address, values
            values.close()
    return None


async def _listen(order: TunnelOrder, server_address: str, values: SharedValues) -> None:
    towards, _, port = server_address.rpartition(":")
    host = address_towards(bare(towards), int(port))
    end = TunnelEnd(Parcels(values, FAR, NEAR), order.patience)
    with contextlib.ExitStack() as held:
        reserved = held.enter_context(ReservedPort(host, order.ports)) if order.ports else None
        server = await asyncio.start_server(end.accept, host, reserved.port if reserved else 0)
        values.set(ADDRESS, f"{host}:{server.sockets[0].getsockname()[1]}".encode())
        try:
            await end.run()
        finally:
            server.close()
