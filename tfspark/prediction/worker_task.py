"""The Spark task that sends one partition to a worker with ``ctx.serve`` and returns its answers in order, as Arrow.

It runs in a Spark Python worker, in an ordinary Spark job while another job holds the nodes. It never imports
TensorFlow. One thread sends while another receives, because either may have to wait for the other side.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from tfspark.columns.packed_arrays import Packed, unpacked
from tfspark.columns.prepare import prepare_batch
from tfspark.columns.rows import RowName, in_partition
from tfspark.columns.spec import ColumnSpec, arrow_schema
from tfspark.errors import PredictError
from tfspark.executor.host import address_towards
from tfspark.messages import ServeHeader
from tfspark.spark.garbage import freeze_imports
from tfspark.spec import ClusterSpec, NodeAddress
from tfspark.transport.auth import Secret, call_options
from tfspark.transport.client import MessageClient, without_context

IN_FLIGHT = 4
"""Batches in flight at a time; more batches hide more of the latency, fewer use less memory."""


@dataclass(frozen=True)
class PredictTask:
    """All that a prediction task needs; it is sent in the task's closure.

    Attributes
    ----------
    columns
        The tensor of each column that is sent.
    kept
        Names of columns that are passed through; in batches they come before the columns that are sent.
    outputs
        Schema of the answers.
    packed
        Columns that Spark sends as bytes.
    """

    job: str
    columns: Sequence[ColumnSpec]
    kept: Sequence[str]
    outputs: pa.Schema
    batch_size: int
    workers: ClusterSpec
    coordinator_host: str
    coordinator_port: int
    secret: Secret
    packed: Packed = field(default_factory=dict)


def ask_for_structs(task: PredictTask, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Array]:
    """Run the task for an Arrow UDF: `ask`, with the answers as structs."""
    for batch in ask(task, batches):
        yield pa.StructArray.from_arrays(batch.columns, names=batch.schema.names)


def ask(task: PredictTask, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Run the task for ``DataFrame.mapInArrow``: yield the kept columns and the worker's answers.

    Raises
    ------
    PredictError
        If the worker is gone, or its function failed.
    """
    from pyspark import TaskContext

    freeze_imports()
    context = TaskContext.get()
    assert context is not None
    partition = context.partitionId()
    first = next((b for b in batches if b.num_rows), None)
    if first is None:
        return
    worker = _choose(task, partition)
    client = MessageClient(worker.host, worker.data_port, task.secret)
    try:
        yield from _exchange(task, partition, client, first, batches)
    except (flight.FlightError, OSError) as e:
        raise PredictError(
            f"{worker.node} at {worker.host}:{worker.data_port} gave no answer for partition {partition}: "
            f"{without_context(e)}",
            hint="Use the predictions inside the with block of the cluster: Spark computes them when they are used.",
        ) from None
    finally:
        client.close()


def _choose(task: PredictTask, partition: int) -> NodeAddress:
    host = address_towards(task.coordinator_host, task.coordinator_port)
    near = [a for a in task.workers.nodes if a.host == host] or task.workers.nodes
    return near[partition % len(near)]


def _exchange(
    task: PredictTask, partition: int, client: MessageClient, first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    schema = arrow_schema(task.columns)
    header = ServeHeader(
        task.job,
        partition,
        tuple(c.on_the_wire for c in task.columns),
        task.outputs.serialize().to_pybytes(),
        task.batch_size,
    )
    writer, reader = client.flight.do_exchange(
        flight.FlightDescriptor.for_command(header.encode()), call_options(task.secret.token)
    )
    writer.begin(schema)
    outgoing: queue.Queue[pa.RecordBatch | None] = queue.Queue()
    failed: list[BaseException] = []

    def send() -> None:
        try:
            while (batch := outgoing.get()) is not None:
                writer.write_batch(batch)
            writer.done_writing()
        except BaseException as e:
            # The receiving side notices the failure by the end of the stream.
            failed.append(e)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    waiting: list[pa.RecordBatch] = []
    try:
        rows = 0
        for batch in _with_rows(first, rest):
            outgoing.put(_prepared(batch, task, schema, in_partition(partition, rows)))
            rows += batch.num_rows
            waiting.append(batch)
            if len(waiting) >= IN_FLIGHT:
                yield _joined(waiting.pop(0), reader, task)
        outgoing.put(None)
        while waiting:
            yield _joined(waiting.pop(0), reader, task)
        # The last answer can arrive before the sender has called done_writing. Closing the writer during that call
        # aborts the process: gRPC allows one write operation at a time.
        sender.join()
        writer.close()
    finally:
        outgoing.put(None)
        reader.cancel()
        sender.join()


def _with_rows(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from (b for b in rest if b.num_rows)


def _prepared(batch: pa.RecordBatch, task: PredictTask, schema: pa.Schema, row: RowName) -> pa.RecordBatch:
    chosen = pa.RecordBatch.from_arrays(batch.columns[len(task.kept) :], names=[c.name for c in task.columns])
    return prepare_batch(unpacked(chosen, task.packed, row), task.columns, schema, "predict", row)


def _joined(batch: pa.RecordBatch, reader: Any, task: PredictTask) -> pa.RecordBatch:
    try:
        answer = reader.read_chunk().data
    except StopIteration:
        raise OSError("it closed the stream") from None
    if answer.num_rows != batch.num_rows:
        raise PredictError(f"A worker returned {answer.num_rows} rows for {batch.num_rows} rows.")
    kept = batch.columns[: len(task.kept)]
    return pa.RecordBatch.from_arrays([*kept, *answer.columns], names=[*task.kept, *task.outputs.names])
