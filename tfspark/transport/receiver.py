"""The data side of a node's Flight server: rows come in, are spooled, and are committed once.

An upload counts only if its end marker arrived with the right number of rows: when a client is killed, Flight ends
the stream as if it were complete.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from tfspark.errors import TFSparkError
from tfspark.transport.auth import Secret
from tfspark.transport.messages import PutEnd, PutHeader, ServeHeader, decode_mark
from tfspark.transport.ports import Ports
from tfspark.transport.server import MessageServer
from tfspark.transport.serving import Serving
from tfspark.transport.shared_memory import SLOTS_IN_HAND, GrantedSlots, SlotPool
from tfspark.transport.spool import Spool, Upload

logger = logging.getLogger(__name__)

READ_BYTES = 64 << 20
"""Slots beyond those for rows that wait in memory: for those that are being filled, and read by training."""

CommitVote = Callable[[PutHeader, int, int], bool]
Refusal = Callable[[PutHeader, TFSparkError], None]


class Receiver(MessageServer):
    """A Flight server that takes partitions by ``DoPut`` and answers questions by ``DoExchange``.

    Parameters
    ----------
    host, secret
        As for `MessageServer`.
    spool
        Where rows go.
    may_commit
        Asks the coordinator whether this upload of a partition is the first to be whole; given the header, rows
        and bytes.
    on_refusal
        Tells the coordinator why rows were refused: an answer to the client can get lost while it is still sending.
    serving
        What answers questions.
    ports
        As for `MessageServer`.
    """

    def __init__(
        self,
        host: str,
        secret: Secret,
        spool: Spool,
        may_commit: CommitVote,
        on_refusal: Refusal,
        serving: Serving,
        ports: Ports | None = None,
    ) -> None:
        self._spool = spool
        self._may_commit = may_commit
        self._on_refusal = on_refusal
        self._serving = serving
        self._slots = SlotPool(spool.memory_bytes + READ_BYTES)
        super().__init__(host, secret, {}, ports)

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Receive one partition; answers ``{"committed": bool}``."""
        header = PutHeader.decode(descriptor.command)
        upload = self._spool.begin_upload(header.feed, header.partition)
        slots = GrantedSlots(self._slots)
        done = False
        end: PutEnd | None = None
        try:
            if header.same_host:
                writer.write(slots.grant(SLOTS_IN_HAND).encode())
            end = self._receive(reader, writer, upload, slots)
            if end is None or end.rows != upload.rows or context.is_cancelled():
                logger.info("upload %s of partition %d broke off", header.upload, header.partition)
                return
            partition = upload.seal()
            if self._may_commit(header, partition.rows, partition.nbytes):
                self._spool.commit(upload, partition)
                done = True
            writer.write(json.dumps({"committed": done}).encode())
        except TFSparkError as e:
            done = False
            self._on_refusal(header, e)
            raise flight.FlightServerError(e.message) from None
        finally:
            slots.close(orderly=end is not None)
            if not done:
                upload.abort()

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Answer one partition's rows, batch by batch, with as many rows of outputs."""
        header = ServeHeader.decode(descriptor.command)
        try:
            with self._serving.stream(context.is_cancelled):
                writer.begin(pa.ipc.read_schema(pa.py_buffer(header.outputs)))
                for chunk in reader:
                    writer.write_batch(self._serving.answer(header, chunk.data, context.is_cancelled))
        except TFSparkError as e:
            raise flight.FlightServerError(str(e)) from None

    def _receive(self, reader: Any, writer: Any, upload: Upload, slots: GrantedSlots) -> PutEnd | None:
        if reader.schema != upload.feed.schema:
            raise flight.FlightServerError("the schema is not the one announced for this feed")
        while True:
            try:
                chunk = reader.read_chunk()
            except StopIteration:
                return None
            if chunk.data is not None:
                upload.write(chunk.data)
            if chunk.app_metadata is None:
                continue
            mark = decode_mark(chunk.app_metadata.to_pybytes())
            if isinstance(mark, PutEnd):
                return mark
            upload.write(slots.read(mark, upload.feed.schema))
            writer.write(slots.grant(1).encode())
