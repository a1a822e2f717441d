"""The Spark task that feeds one partition to one worker: Arrow in, Arrow Flight out, no row touched in Python.

It runs in a Spark Python worker, in an ordinary job beside the one that holds the nodes, and never imports
TensorFlow.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from tfspark.errors import SchemaError, TFSparkError
from tfspark.executor.host import address_towards
from tfspark.garbage import freeze_imports
from tfspark.packing import Packed, unpacked
from tfspark.prepare import prepare_batch
from tfspark.schema import ColumnSpec, arrow_schema
from tfspark.transport.auth import Secret, call_options
from tfspark.transport.client import MessageClient
from tfspark.transport.messages import Assign, FeedFailed, Message, PutEnd, PutHeader
from tfspark.transport.sender import Sender

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
    """All that a feed task needs; travels in the task's closure.

    Attributes
    ----------
    packed
        Columns that come from Spark as bytes.
    """

    feed: int
    columns: Sequence[ColumnSpec]
    coordinator_host: str
    coordinator_port: int
    secret: Secret
    packed: Packed = field(default_factory=dict)


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
    freeze_imports()
    try:
        first = next((b for b in batches if b.num_rows), None)
        if first is None:
            return
        host = address_towards(plan.coordinator_host, plan.coordinator_port)
        upload = uuid.uuid4().hex
        target = _ask(plan, Assign(plan.feed, partition, upload, host, attempt))
        if target.get("done"):
            return
        header = PutHeader(plan.feed, partition, upload, same_host=target["host"] == host)
        rows = _send(plan, header, target, first, batches)
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
    plan: FeedPlan, header: PutHeader, target: dict[str, Any], first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]
) -> int:
    schema = arrow_schema(plan.columns)
    client = MessageClient(target["host"], target["port"], plan.secret)
    descriptor = flight.FlightDescriptor.for_command(header.encode())
    rows = 0
    try:
        writer, replies = client.flight.do_put(descriptor, schema, call_options(plan.secret.token))
        with Sender(writer, replies, header.same_host) as sender:
            for batch in _chain(first, rest):
                sender.send(prepare_batch(unpacked(batch, plan.packed), plan.columns, schema))
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
