"""The Spark task that has one partition answered by a worker that serves: Arrow out, Arrow back, in order.

It runs in a Spark Python worker, in an ordinary job beside the one that holds the nodes, and never imports
TensorFlow. One thread sends while another receives, as either may have to wait for the other side.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from tfspark.errors import PredictError
from tfspark.executor.host import address_towards
from tfspark.garbage import freeze_imports
from tfspark.packing import Packed, unpacked
from tfspark.prepare import prepare_batch
from tfspark.schema import ColumnSpec, arrow_schema
from tfspark.spec import ClusterSpec, NodeAddress
from tfspark.transport.auth import Secret, call_options
from tfspark.transport.client import MessageClient
from tfspark.transport.messages import ServeHeader

IN_FLIGHT = 4
"""Batches on their way at a time; more hides more of the way, less keeps memory low."""


@dataclass(frozen=True)
class PredictPlan:
    """All that a predicting task needs; travels in the task's closure.

    Attributes
    ----------
    columns
        The tensor of each column that is sent.
    kept
        Names of columns, which come before these, that are passed through.
    outputs
        Schema of the answers.
    packed
        Columns that come from Spark as bytes.
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


def ask_for_structs(plan: PredictPlan, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Array]:
    """Body of the task, for an Arrow UDF: `ask` with the answers as structs."""
    for batch in ask(plan, batches):
        yield pa.StructArray.from_arrays(batch.columns, names=batch.schema.names)


def ask(plan: PredictPlan, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Body of the task, for ``DataFrame.mapInArrow``.

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
    worker = _choose(plan, partition)
    client = MessageClient(worker.host, worker.data_port, plan.secret)
    try:
        yield from _exchange(plan, partition, client, first, batches)
    except (flight.FlightError, OSError) as e:
        raise PredictError(
            f"{worker.node} at {worker.host}:{worker.data_port} gave no answer for partition {partition}: {e}",
            hint="Predictions are computed when they are asked for: do so before the cluster's with block is left.",
        ) from None
    finally:
        client.close()


def _choose(plan: PredictPlan, partition: int) -> NodeAddress:
    host = address_towards(plan.coordinator_host, plan.coordinator_port)
    near = [a for a in plan.workers.nodes if a.host == host] or plan.workers.nodes
    return near[partition % len(near)]


def _exchange(
    plan: PredictPlan, partition: int, client: MessageClient, first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    schema = arrow_schema(plan.columns)
    header = ServeHeader(
        plan.job,
        partition,
        [c.to_json() for c in plan.columns],
        plan.outputs.serialize().to_pybytes(),
        plan.batch_size,
    )
    writer, reader = client.flight.do_exchange(
        flight.FlightDescriptor.for_command(header.encode()), call_options(plan.secret.token)
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
            # The reading side learns of it by the end of the stream.
            failed.append(e)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    waiting: list[pa.RecordBatch] = []
    try:
        for batch in _with_rows(first, rest):
            outgoing.put(_prepared(batch, plan, schema))
            waiting.append(batch)
            if len(waiting) >= IN_FLIGHT:
                yield _joined(waiting.pop(0), reader, plan)
        outgoing.put(None)
        while waiting:
            yield _joined(waiting.pop(0), reader, plan)
        # The last answer can overtake the sender's word that there is no more to send, and two of these at once
        # abort the process: gRPC takes one writing operation at a time.
        sender.join()
        writer.close()
    finally:
        outgoing.put(None)
        reader.cancel()
        sender.join()


def _with_rows(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from (b for b in rest if b.num_rows)


def _prepared(batch: pa.RecordBatch, plan: PredictPlan, schema: pa.Schema) -> pa.RecordBatch:
    chosen = pa.RecordBatch.from_arrays(batch.columns[len(plan.kept) :], names=[c.name for c in plan.columns])
    return prepare_batch(unpacked(chosen, plan.packed), plan.columns, schema)


def _joined(batch: pa.RecordBatch, reader: Any, plan: PredictPlan) -> pa.RecordBatch:
    try:
        answer = reader.read_chunk().data
    except StopIteration:
        raise OSError("it closed the stream") from None
    if answer.num_rows != batch.num_rows:
        raise PredictError(f"A worker answered {answer.num_rows} rows for {batch.num_rows}.")
    kept = batch.columns[: len(plan.kept)]
    return pa.RecordBatch.from_arrays([*kept, *answer.columns], names=[*plan.kept, *plan.outputs.names])
