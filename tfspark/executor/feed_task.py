"""The Spark task that feeds one partition to one worker: Arrow in, Arrow Flight out, no row touched in Python.

It runs in a Spark Python worker, in an ordinary job beside the one that holds the nodes, and never imports
TensorFlow.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from tfspark.errors import SchemaError, TFSparkError
from tfspark.executor.host import address_towards
from tfspark.prepare import prepare_batch
from tfspark.schema import ColumnSpec, arrow_schema
from tfspark.transport.auth import Secret, call_options
from tfspark.transport.client import MessageClient
from tfspark.transport.messages import Assign, FeedFailed, Message, PutEnd, PutHeader

MESSAGE_BYTES = 4 << 20
"""Size of a message: what fits the processors' caches is copied fastest from hand to hand."""

RESULT_SCHEMA = pa.schema(
    [
        pa.field("partition", pa.int32()),
        pa.field("worker", pa.string()),
        pa.field("rows", pa.int64()),
        pa.field("seconds", pa.float64()),
    ]
)
RESULT_DDL = "partition int, worker string, rows long, seconds double"


@dataclass(frozen=True)
class FeedPlan:
    """All that a feed task needs; travels in the task's closure."""

    feed: int
    columns: Sequence[ColumnSpec]
    coordinator_host: str
    coordinator_port: int
    secret: Secret


def push(plan: FeedPlan, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Body of the feed task, for ``DataFrame.mapInArrow``."""
    from pyspark import TaskContext

    context = TaskContext.get()
    assert context is not None
    yield from push_partition(plan, context.partitionId(), context.attemptNumber(), batches)


def push_partition(
    plan: FeedPlan, partition: int, attempt: int, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Send one partition to the worker that the coordinator assigns.

    Raises
    ------
    SchemaError
        If a value breaks the rule of its column.
    RuntimeError
        If the worker is gone or refuses the rows; it has told the coordinator why, or Spark runs the task again.
    """
    began = time.monotonic()
    try:
        first = next((b for b in batches if b.num_rows), None)
        if first is None:
            return
        host = address_towards(plan.coordinator_host, plan.coordinator_port)
        upload = uuid.uuid4().hex
        target = _ask(plan, Assign(plan.feed, partition, upload, host, attempt))
        if target.get("done"):
            return
        rows = _send(plan, partition, upload, target, first, batches)
    except TFSparkError as e:
        _ask(plan, FeedFailed(plan.feed, partition, type(e).__name__, e.message, e.hint or ""))
        raise
    yield pa.RecordBatch.from_pylist(
        [{"partition": partition, "worker": target["node"], "rows": rows, "seconds": time.monotonic() - began}],
        schema=RESULT_SCHEMA,
    )


def _ask(plan: FeedPlan, message: Message) -> Any:
    coordinator = MessageClient(plan.coordinator_host, plan.coordinator_port, plan.secret)
    try:
        return coordinator.ask(message)
    finally:
        coordinator.close()


def _send(
    plan: FeedPlan,
    partition: int,
    upload: str,
    target: dict[str, Any],
    first: pa.RecordBatch,
    rest: Iterator[pa.RecordBatch],
) -> int:
    schema = arrow_schema(plan.columns)
    client = MessageClient(target["host"], target["port"], plan.secret)
    header = PutHeader(plan.feed, partition, upload)
    descriptor = flight.FlightDescriptor.for_command(header.encode())
    rows = 0
    try:
        writer, replies = client.flight.do_put(descriptor, schema, call_options(plan.secret.token))
        for batch in _chain(first, rest):
            for piece in _pieces(prepare_batch(batch, plan.columns, schema)):
                writer.write_batch(piece)
            rows += batch.num_rows
        _finish(writer, replies, rows)
    except SchemaError:
        raise
    except (flight.FlightError, pa.ArrowException, OSError) as e:
        # Not for good: Spark runs the task again, and the coordinator may know by then that the worker is gone.
        raise RuntimeError(f"{target['node']} at {target['host']}:{target['port']} did not take the rows: {e}") from e
    finally:
        client.close()
    return rows


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut a batch into messages of about `MESSAGE_BYTES`, at least a row each; nothing is copied."""
    rows = max(1, batch.num_rows * MESSAGE_BYTES // max(batch.nbytes, 1))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _finish(writer: Any, replies: Any, rows: int) -> None:
    writer.write_metadata(PutEnd(rows).encode())
    writer.done_writing()
    if replies.read() is None:
        raise OSError("it closed the stream without acknowledging them")
    writer.close()


def _chain(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    for batch in rest:
        if batch.num_rows:
            yield batch
