"""The Spark task that feeds one partition to one worker: Arrow in, Arrow Flight out, no row is handled in Python.

It runs in a Spark Python worker, in an ordinary Spark job while another job holds the nodes. It never imports
TensorFlow.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from tfspark.columns.lengths import Lengths, OtherLength, expected_lengths, lengths_of, other_length
from tfspark.columns.packed_arrays import Packed, unpacked
from tfspark.columns.prepare import prepare_batch
from tfspark.columns.spec import ColumnSpec, arrow_schema
from tfspark.errors import SchemaError, TFSparkError
from tfspark.executor.host import address_towards
from tfspark.messages import (
    Assign,
    AssignAnswer,
    FeedFailed,
    LengthVaries,
    LengthVariesAnswer,
    PutEnd,
    PutHeader,
)
from tfspark.settings import Settings
from tfspark.spark.garbage import freeze_imports
from tfspark.spark.internals import input_is_complete
from tfspark.spec import NodeAddress
from tfspark.transport.auth import Secret, call_options
from tfspark.transport.client import MessageClient, without_context
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
class FeedTask:
    """All that a feed task needs; it is sent in the task's closure.

    Attributes
    ----------
    packed
        Columns that Spark sends as bytes.
    settings
        Settings of the cluster; a driver that does not answer for `driver_timeout` counts as gone.
    """

    feed: int
    columns: Sequence[ColumnSpec]
    coordinator_host: str
    coordinator_port: int
    secret: Secret
    packed: Packed = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)


def push(task: FeedTask, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Run the feed task; this is its body for ``DataFrame.mapInArrow``."""
    from pyspark import TaskContext

    context = TaskContext.get()
    assert context is not None
    yield from push_partition(task, context.partitionId(), context.attemptNumber(), batches)


def push_partition(
    task: FeedTask, partition: int, attempt: int, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Send one partition to the worker that the coordinator assigns.

    Raises
    ------
    SchemaError
        If a value breaks the rule of its column.
    RuntimeError
        If the worker is gone or refuses the rows, or Spark has not sent all rows. The coordinator has been told the
        reason, or Spark runs the task again.
    """
    began = time.monotonic()
    freeze_imports()
    try:
        prepared = _prepared(task, batches)
        first = next(prepared, None)
        if first is None:
            return
        lengths = lengths_of(first, task.columns)
        ready = itertools.chain([first], prepared)
        # Keep no reference, so that the batch's memory is freed after it is sent.
        del first
        host = address_towards(task.coordinator_host, task.coordinator_port)
        upload = uuid.uuid4().hex
        with _coordinator(task) as coordinator:
            assign = Assign(task.feed, partition, upload, host, attempt, lengths)
            answer = coordinator.insist(assign, AssignAnswer, task.settings.driver_timeout)
        worker = answer.worker
        if worker is None:
            return
        header = PutHeader(task.feed, partition, upload, same_host=worker.host == host)
        checked = _of_expected_lengths(task, ready, lengths, answer.columns)
        rows = _send(task, header, worker, checked)
    except TFSparkError as e:
        with _coordinator(task) as coordinator:
            failed = FeedFailed(task.feed, partition, type(e).__name__, e.message, e.hint or "")
            coordinator.insist_on_sending(failed, task.settings.driver_timeout)
        raise
    yield pa.RecordBatch.from_pylist(
        [{"partition": partition, "worker": str(worker.node), "rows": rows, "seconds": time.monotonic() - began}],
        schema=RESULT_SCHEMA,
    )


@contextmanager
def _coordinator(task: FeedTask) -> Iterator[MessageClient]:
    coordinator = MessageClient(task.coordinator_host, task.coordinator_port, task.secret, task.settings.call_timeout)
    try:
        yield coordinator
    finally:
        coordinator.close()


def _prepared(task: FeedTask, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the batches that have rows, prepared for sending."""
    schema = arrow_schema(task.columns)
    for batch in batches:
        if batch.num_rows:
            yield prepare_batch(unpacked(batch, task.packed), task.columns, schema)
    if not input_is_complete():
        raise RuntimeError("Spark's task failed before it had sent all rows of the partition to Python")


def _of_expected_lengths(
    task: FeedTask,
    batches: Iterator[pa.RecordBatch],
    first: Mapping[str, Lengths],
    settled: Sequence[ColumnSpec] | None,
) -> Iterator[pa.RecordBatch]:
    """Yield the batches, and check that their arrays are as long as those in the feed's first rows.

    As long as the coordinator waits for the first rows of other workers (`settled` is ``None``), report to it arrays
    that are not as long as those in this partition's `first` batch: they may make the column ragged, or fail the feed.

    Raises
    ------
    SchemaError
        If an array has another length.
    """
    expected = dict(first) if settled is None else expected_lengths(task.columns, settled)
    for batch in batches:
        while expected and (other := other_length(batch, task.columns, expected)) is not None:
            if settled is not None:
                raise other.error()
            settled = _tell(task, other)
            if settled is not None:
                expected = expected_lengths(task.columns, settled)
            else:
                lengths = expected[other.column]
                expected[other.column] = tuple(n if i != other.level else None for i, n in enumerate(lengths))
        yield batch


def _tell(task: FeedTask, other: OtherLength) -> Sequence[ColumnSpec] | None:
    with _coordinator(task) as coordinator:
        return coordinator.insist(
            LengthVaries(task.feed, other), LengthVariesAnswer, task.settings.driver_timeout
        ).columns


def _send(task: FeedTask, header: PutHeader, worker: NodeAddress, batches: Iterator[pa.RecordBatch]) -> int:
    schema = arrow_schema(task.columns)
    client = MessageClient(worker.host, worker.data_port, task.secret)
    descriptor = flight.FlightDescriptor.for_command(header.encode())
    rows = 0
    try:
        writer, replies = client.flight.do_put(descriptor, schema, call_options(task.secret.token))
        with Sender(writer, replies, header.same_host) as sender:
            for batch in batches:
                sender.send(batch)
                rows += batch.num_rows
        _finish(writer, replies, rows)
    except SchemaError:
        raise
    except (flight.FlightError, pa.ArrowException, OSError) as e:
        # Not final: Spark runs the task again, and by then the coordinator may know that the worker is gone.
        raise RuntimeError(
            f"{worker.node} at {worker.host}:{worker.data_port} did not take the rows: {without_context(e)}"
        ) from e
    finally:
        client.close()
    return rows


def _finish(writer: Any, replies: Any, rows: int) -> None:
    writer.write_metadata(PutEnd(rows).encode())
    writer.done_writing()
    if replies.read() is None:
        raise OSError("it closed the stream without acknowledging them")
    writer.close()
