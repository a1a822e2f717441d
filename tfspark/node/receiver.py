"""The data side of a node's Flight server: it receives rows, spools them and commits each partition once.

An upload counts only if its end marker arrives with the right number of rows: when a client is killed, Flight ends its
stream as if it were complete.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from tfspark.errors import TFSparkError
from tfspark.messages import CommitAnswer, PutEnd, PutHeader, ServeHeader, decode_mark
from tfspark.node.questions import Questions
from tfspark.node.spool import Spool, Upload
from tfspark.transport.auth import Secret
from tfspark.transport.ports import Ports
from tfspark.transport.server import MessageServer
from tfspark.transport.shared_memory import SLOTS_IN_HAND, GrantedSlots, SlotPool

logger = logging.getLogger(__name__)

READ_BYTES = 64 << 20
"""Bytes of slots in addition to those for waiting rows: slots that are being filled or read."""

SLOTS_PER_ROWS = 2
"""Bytes of slots for each byte of waiting rows: a message may fill half of its slot, or less."""

CommitVote = Callable[[PutHeader, int, int], bool]
Refusal = Callable[[PutHeader, TFSparkError], None]


class Receiver(MessageServer):
    """A Flight server that receives partitions by ``DoPut`` and prediction requests by ``DoExchange``.

    Parameters
    ----------
    host, secret
        As for `MessageServer`.
    spool
        The spool for received rows.
    may_commit
        Called with the header, rows and bytes; asks the coordinator whether this is the first complete upload of its
        partition.
    on_refusal
        Tells the coordinator why rows were rejected, because the answer to a client that is still sending can get lost.
    questions
        Handles prediction requests.
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
        questions: Questions,
        ports: Ports | None = None,
    ) -> None:
        self._spool = spool
        self._may_commit = may_commit
        self._on_refusal = on_refusal
        self._questions = questions
        self._slots = SlotPool(SLOTS_PER_ROWS * spool.memory_bytes + READ_BYTES)
        super().__init__(host, secret, {}, ports)

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Receive one partition; the answer is a `CommitAnswer`."""
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
                logger.info("discarded the incomplete upload %s of partition %d", header.upload, header.partition)
                return
            partition = upload.seal()
            if self._may_commit(header, partition.rows, partition.nbytes):
                self._spool.commit(upload, partition)
                done = True
            writer.write(CommitAnswer(done).encode())
        except TFSparkError as e:
            done = False
            self._on_refusal(header, e)
            raise flight.FlightServerError(e.message) from None
        finally:
            slots.close(orderly=end is not None)
            if not done:
                upload.abort()

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Predict one partition batch by batch; each answer has as many rows as its request."""
        header = ServeHeader.decode(descriptor.command)
        try:
            with self._questions.stream(context.is_cancelled):
                writer.begin(pa.ipc.read_schema(pa.py_buffer(header.outputs)))
                for chunk in reader:
                    writer.write_batch(self._questions.answer(header, chunk.data, context.is_cancelled))
        except TFSparkError as e:
            raise flight.FlightServerError(str(e)) from None

    def _receive(self, reader: Any, writer: Any, upload: Upload, slots: GrantedSlots) -> PutEnd | None:
        if reader.schema != upload.feed.schema:
            raise flight.FlightServerError(
                f"The rows have the schema {reader.schema.names}, but the feed was announced with "
                f"{upload.feed.schema.names} and its types."
            )
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
