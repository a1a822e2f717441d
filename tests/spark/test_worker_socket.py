"""What Spark's JVM sends to a Python worker is acknowledged at once."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from tfspark.spark import worker_socket
from tfspark.spark.arrow_jobs import map_in_arrow

FOUND = "partition long, rows long, quick boolean, buffered boolean"


def test_a_task_acknowledges_at_once_although_its_worker_has_answered(spark: Any) -> None:
    def look(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        context, rows = TaskContext.get(), 0
        connection = worker_socket._connection()
        assert context is not None and connection is not None
        for batch in batches:
            rows += batch.num_rows
            # The state in which the kernel puts a connection on which both sides send.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        quick, unbuffered = (
            connection.getsockopt(socket.IPPROTO_TCP, option) for option in (socket.TCP_QUICKACK, socket.TCP_NODELAY)
        )
        found = {"partition": [context.partitionId()], "rows": [rows], "quick": [bool(quick)]}
        yield pa.RecordBatch.from_pydict(found | {"buffered": [not unbuffered]})

    # More partitions than cores, so that workers run several tasks.
    rows = map_in_arrow(spark.range(0, 8000, 1, 16), look, FOUND).collect()
    assert [(r.partition, r.rows) for r in rows] == [(i, 500) for i in range(16)]
    assert all(r.quick and not r.buffered for r in rows)


def test_other_connections_stay_as_they_are(spark: Any) -> None:
    def look(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as c:
                list(worker_socket.read_without_delay(iter([1, 2])))
                nagle = c.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
            yield pa.RecordBatch.from_pydict({"id": batch.column("id"), "same": [nagle] * batch.num_rows})

    assert all(r.same for r in map_in_arrow(spark.range(0, 4, 1, 2), look, "id long, same boolean").collect())


def test_a_default_timeout_does_not_make_the_connection_non_blocking(spark: Any) -> None:
    def look(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from tfspark.spark.internals import input_of_worker

        for batch in batches:
            before = socket.getdefaulttimeout()
            socket.setdefaulttimeout(30)
            worker_socket._connection.cache_clear()
            try:
                connection = worker_socket._connection()
            finally:
                socket.setdefaulttimeout(before)
            stream = input_of_worker()
            assert connection is not None and stream is not None
            blocking = os.get_blocking(stream.fileno())
            yield pa.RecordBatch.from_pydict({"id": batch.column("id"), "blocking": [blocking] * batch.num_rows})

    found = map_in_arrow(spark.range(0, 4, 1, 2), look, "id long, blocking boolean").collect()
    assert len(found) == 4 and all(r.blocking for r in found)


def test_outside_a_worker_nothing_is_set() -> None:
    assert list(worker_socket.read_without_delay(iter("abc"))) == ["a", "b", "c"]
    assert worker_socket._connection() is None
