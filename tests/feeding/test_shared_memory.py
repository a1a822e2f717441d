"""Rows that pass through memory which a node and the tasks on its host both see."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest

from tfspark.columns.spec import ColumnSpec, arrow_schema
from tfspark.errors import FeedError
from tfspark.feeding import feed_task
from tfspark.feeding.feed_task import FeedTask
from tfspark.messages import PutEnd, PutHeader, SlotFilled, SlotsGranted
from tfspark.node.questions import Questions
from tfspark.node.receiver import Receiver
from tfspark.node.spool import Feed, Spool
from tfspark.spark.session import ARROW_BATCH_BYTES
from tfspark.spec import NodeAddress, NodeId
from tfspark.transport.auth import call_options, new_secret
from tfspark.transport.client import MessageClient
from tfspark.transport.sender import Sender
from tfspark.transport.shared_memory import LEAST_BYTES, MESSAGE_BYTES, SLOT_BYTES, GrantedSlots, SlotPool, SlotWriter

pytestmark = pytest.mark.unit

COLUMNS = (ColumnSpec("x", "float32", (256,)), ColumnSpec("id", "int64"))
SCHEMA = arrow_schema(COLUMNS)


def rows(first: int, count: int) -> pa.RecordBatch:
    ids = np.arange(first, first + count)
    x = np.repeat(ids.astype(np.float32), 256)
    return pa.RecordBatch.from_arrays(
        [pa.FixedSizeListArray.from_arrays(pa.array(x), 256), pa.array(ids)], schema=SCHEMA
    )


@pytest.fixture
def pool() -> SlotPool:
    return SlotPool(4 * SLOT_BYTES)


class Node:
    """A receiver and all that it needs, without a coordinator: every upload is committed."""

    def __init__(self, directory: Path, memory_bytes: int) -> None:
        self.secret = new_secret()
        self.spool = Spool(str(directory), 1 << 30, memory_bytes)
        self.feed = Feed(0, 1, COLUMNS, SCHEMA, 0)
        self.spool.begin_feed(self.feed)
        self.refused: list[str] = []
        self.receiver = Receiver(
            "127.0.0.1",
            self.secret,
            self.spool,
            lambda *_: True,
            lambda _, e: self.refused.append(e.message),
            Questions(),
        )

    def put(self, partition: int, batches: list[pa.RecordBatch]) -> None:
        """Send a partition as a feed task does."""
        task = FeedTask(0, COLUMNS, "127.0.0.1", 0, self.secret)
        target = NodeAddress(NodeId("worker", 0), "127.0.0.1", 0, self.receiver.port, 0)
        header = PutHeader(0, partition, f"u{partition}", same_host=True)
        feed_task._send(task, header, target, iter(batches))

    def read(self) -> Iterator[pa.RecordBatch]:
        reader = self.spool.next_epoch()
        assert reader is not None
        for partition in reader.partitions():
            yield from partition.batches
        reader.complete()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Messages by the way they took."""
    counts = {"slot": 0, "stream": 0}
    by_slot = Sender._send_by_slot

    def counting(self: Sender, memory: SlotWriter, piece: pa.RecordBatch) -> bool:
        sent = by_slot(self, memory, piece)
        counts["slot" if sent else "stream"] += 1
        return sent

    monkeypatch.setattr(Sender, "_send_by_slot", counting)
    return counts


@pytest.mark.parametrize("memory_bytes", [0, 8 << 20, 256 << 20])
def test_rows_arrive_whole_and_in_order_whether_kept_in_memory_or_not(
    tmp_path: Path, counted: dict[str, int], memory_bytes: int
) -> None:
    node = Node(tmp_path, memory_bytes)
    sizes = [7, 20_000, 5_000, 11_111, 1]
    first = 0
    for partition in range(4):
        batches = []
        for size in sizes:
            batches.append(rows(first, size))
            first += size
        node.put(partition, batches)
    node.spool.end_feed(0, {}, first)
    expected = 0
    for batch in node.read():
        ids = batch.column("id").to_numpy()
        np.testing.assert_array_equal(ids, np.arange(expected, expected + len(ids)))
        x = batch.column("x").flatten().to_numpy().reshape(-1, 256)
        assert (x == ids.astype(np.float32)[:, None]).all()
        expected += len(ids)
    assert expected == first
    assert counted["slot"] > counted["stream"] > 0
    node.receiver.close()


def test_without_a_free_slot_rows_take_the_stream(tmp_path: Path, counted: dict[str, int]) -> None:
    node = Node(tmp_path, 0)
    node.receiver._slots = SlotPool(3 * SLOT_BYTES)
    held = node.receiver._slots.grant(3)
    node.put(0, [rows(0, 20_000)])
    assert counted["slot"] == 0 and counted["stream"] > 1
    for slot in held.slots:
        node.receiver._slots.give_back(slot)
    node.put(1, [rows(20_000, 20_000)])
    assert counted["slot"] > 1
    node.spool.end_feed(0, {}, 40_000)
    assert sum(b.num_rows for b in node.read()) == 40_000
    node.receiver.close()


def test_what_does_not_fit_a_slot_takes_the_stream(tmp_path: Path, counted: dict[str, int]) -> None:
    columns = (ColumnSpec("s", "string"),)
    schema = arrow_schema(columns)
    node = Node(tmp_path, 64 << 20)
    node.feed.columns, node.feed.schema = columns, schema
    values = [b"a" * 3_000_000, b"b" * (MESSAGE_BYTES + 1), b"c" * 3_000_000, b"d"]
    batch = pa.RecordBatch.from_arrays([pa.array(values, schema.field(0).type)], schema=schema)
    task = FeedTask(0, columns, "127.0.0.1", 0, node.secret)
    target = NodeAddress(NodeId("worker", 0), "127.0.0.1", 0, node.receiver.port, 0)
    feed_task._send(task, PutHeader(0, 0, "u", same_host=True), target, iter([batch]))
    node.spool.end_feed(0, {}, 4)
    assert [v.as_py() for b in node.read() for v in b.column("s")] == values
    assert counted == {"slot": 2, "stream": 2}
    node.receiver.close()


def test_a_slot_is_free_again_only_when_nothing_refers_to_its_rows(pool: SlotPool) -> None:
    granted = pool.grant(1)
    writer = SlotWriter(granted)
    batch = rows(5, 1000)
    filled = writer.write(granted.slots[0], batch)
    assert filled is not None
    read = pool.read(filled, SCHEMA)
    assert read.equals(batch)
    values = read.column("x").flatten().to_numpy()
    del read
    gc.collect()
    assert len(pool.grant(4).slots) == 3
    assert values[0] == 5.0
    del values
    gc.collect()
    assert pool.grant(4).slots == granted.slots
    writer.close()


def test_a_slot_that_was_too_small_is_used_for_the_next_message(
    pool: SlotPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    granted = pool.grant(1)
    writer = SlotWriter(granted)
    assert writer.write(granted.slots[0], rows(1, SLOT_BYTES // 1024 + 1)) is None
    filled = writer.write(granted.slots[0], rows(5, 1000))
    assert filled is not None and pool.read(filled, SCHEMA).equals(rows(5, 1000))

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "pwrite", full)
        writer.write(granted.slots[0], rows(5, 1000))
    writer.close()


def test_slots_of_an_upload_that_broke_off_are_given_to_nobody(pool: SlotPool) -> None:
    broken, orderly = GrantedSlots(pool), GrantedSlots(pool)
    assert len(broken.grant(2).slots) == len(orderly.grant(2).slots) == 2
    broken.close(orderly=False)
    orderly.close(orderly=True)
    assert len(pool.grant(4).slots) == 2


def test_strangers_slots_and_messages_are_refused(pool: SlotPool) -> None:
    mine, others = GrantedSlots(pool), GrantedSlots(pool)
    granted = mine.grant(1)
    other = others.grant(1)
    with pytest.raises(FeedError, match="not granted"):
        mine.read(SlotFilled(other.slots[0], 100), SCHEMA)
    with pytest.raises(FeedError, match="does not fit"):
        mine.read(SlotFilled(granted.slots[0], SLOT_BYTES + 1), SCHEMA)
    slot = mine.grant(1).slots[0]
    with pytest.raises(FeedError, match="Cannot read rows from slot"):
        mine.read(SlotFilled(slot, 4096), SCHEMA)
    writer = SlotWriter(granted)
    filled = writer.write(other.slots[0], pa.RecordBatch.from_pydict({"y": [1, 2]}))
    assert filled is not None
    with pytest.raises(FeedError, match="schema"):
        others.read(filled, SCHEMA)
    writer.close()


def test_another_file_with_the_number_of_the_nodes_is_not_written(pool: SlotPool, tmp_path: Path) -> None:
    granted = pool.grant(1)
    with open(tmp_path / "mine", "w+b") as f:
        f.write(b"0" * 100)
        f.flush()
        with pytest.raises(OSError, match="another file"):
            SlotWriter(msgspec.structs.replace(granted, fd=f.fileno()))
        assert f.seek(0) == 0 and f.read() == b"0" * 100
    with pytest.raises(OSError):
        SlotWriter(SlotsGranted(granted.pid, 1 << 20, granted.key, [0]))
    with pytest.raises(OSError, match="another file"):
        SlotWriter(msgspec.structs.replace(granted, key=b""))


def test_the_memory_cannot_be_taken_away_from_the_node(pool: SlotPool) -> None:
    granted = pool.grant(1)
    fd = os.open(f"/proc/{granted.pid}/fd/{granted.fd}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def test_an_upload_that_breaks_off_in_a_slot_commits_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path, 256 << 20)
    client = MessageClient("127.0.0.1", node.receiver.port, node.secret)
    descriptor = flight.FlightDescriptor.for_command(PutHeader(0, 0, "u", same_host=True).encode())
    writer, replies = client.flight.do_put(descriptor, SCHEMA, call_options(node.secret.token))
    with Sender(writer, replies, same_host=True) as sender:
        sender.send(rows(0, 8000))
    # The count does not fit what was sent.
    writer.write_metadata(PutEnd(7999).encode())
    writer.done_writing()
    assert replies.read() is None
    client.close()
    node.put(0, [rows(0, 10)])
    node.spool.end_feed(0, {}, 10)
    assert sum(b.num_rows for b in node.read()) == 10
    node.receiver.close()


def test_where_the_kernel_gives_no_memory_rows_take_the_stream(
    tmp_path: Path, counted: dict[str, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "memfd_create", refuse)
    node = Node(tmp_path, 0)
    for partition in range(2):
        node.put(partition, [rows(20_000 * partition, 20_000)])
    node.spool.end_feed(0, {}, 40_000)
    assert sum(b.num_rows for b in node.read()) == 40_000
    assert counted["slot"] == 0 and caplog.text.count("Shared memory is not available") == 1
    node.receiver.close()


def test_a_file_that_cannot_be_read_from_a_place_is_let_go_of(pool: SlotPool) -> None:
    granted = pool.grant(1)
    reading, writing = os.pipe()
    before = len(os.listdir("/proc/self/fd"))
    for fd in (reading, writing):
        with pytest.raises(OSError, match="Illegal seek"):
            SlotWriter(msgspec.structs.replace(granted, fd=fd))
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(reading)
    os.close(writing)


def test_a_batch_of_spark_fits_a_message() -> None:
    assert LEAST_BYTES < ARROW_BATCH_BYTES < MESSAGE_BYTES, "else each batch is cut in two, or passes through sockets"
