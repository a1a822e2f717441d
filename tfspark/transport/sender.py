"""The client of an upload: sends rows through shared memory on the same host, else on the Flight stream."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import pyarrow as pa

from tfspark.messages import SlotsGranted
from tfspark.transport.shared_memory import LEAST_BYTES, MESSAGE_BYTES, SlotWriter

logger = logging.getLogger(__name__)


class Sender:
    """Sends the rows of one upload.

    Parameters
    ----------
    writer, replies
        The result of ``FlightClient.do_put``.
    same_host
        Whether the header of the upload requested shared memory.
    """

    def __init__(self, writer: Any, replies: Any, same_host: bool) -> None:
        self._writer, self._replies = writer, replies
        self._memory: SlotWriter | None = None
        self._slots: list[int] = []
        self._answers_due = 1 if same_host else 0

    def __enter__(self) -> Sender:
        if self._answers_due:
            granted = self._next_answer()
            # The node may run in another container, whose memory cannot be opened from here.
            with contextlib.suppress(OSError):
                self._memory = SlotWriter(granted)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            while kind is None and self._answers_due:
                self._next_answer()
        finally:
            if self._memory is not None:
                self._memory.close()

    def send(self, batch: pa.RecordBatch) -> None:
        """Send rows.

        Raises
        ------
        pyarrow.flight.FlightError, OSError
            If the node rejects them or cannot be reached.
        """
        for piece in _pieces(batch):
            if not (self._memory is not None and self._send_by_slot(self._memory, piece)):
                self._writer.write_batch(piece)

    def _send_by_slot(self, memory: SlotWriter, piece: pa.RecordBatch) -> bool:
        if not LEAST_BYTES <= piece.nbytes <= MESSAGE_BYTES:
            return False
        while not self._slots and self._answers_due:
            self._next_answer()
        # If the node has granted no slot, the rest of the upload is sent on the stream.
        filled = memory.write(self._slots[-1], piece) if self._slots else None
        if filled is None:
            return False
        self._slots.pop()
        self._writer.write_metadata(filled.encode())
        self._answers_due += 1
        return True

    def _next_answer(self) -> SlotsGranted:
        answer = self._replies.read()
        if answer is None:
            raise OSError("The node closed the stream before it had received all rows.")
        self._answers_due -= 1
        granted = SlotsGranted.decode(answer.to_pybytes())
        self._slots += granted.slots
        return granted


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Slice a batch into messages of at most `MESSAGE_BYTES`, with at least one row each; nothing is copied."""
    rows = max(1, batch.num_rows * MESSAGE_BYTES // max(batch.nbytes, 1))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)
