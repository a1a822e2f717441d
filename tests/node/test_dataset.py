"""Chunks of the spool's rows on their way to TensorFlow."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import tensorflow as tf
from waiting import eventually

from tfspark.columns.arrays import column_arrays
from tfspark.columns.spec import ColumnSpec, arrow_schema
from tfspark.errors import SchemaError
from tfspark.node.chunks import KEPT_BATCHES, DatasetTerms, read_chunks
from tfspark.node.dataset import PAUSE_SECONDS, fed_dataset
from tfspark.node.layout import rows_of
from tfspark.node.spool import Feed, Spool

ROWS = 64
FLOATS = np.arange(ROWS * 16, dtype=np.float32)
LISTS = pa.ListArray.from_arrays(np.arange(ROWS + 1, dtype=np.int32) * 16, FLOATS)
COLUMNS = {
    "a scalar": (ColumnSpec("x", "float32"), pa.array(FLOATS[:ROWS])),
    "an array": (ColumnSpec("x", "float32", (16,)), LISTS),
    "a ragged array": (ColumnSpec("x", "float32", (), ragged=1), LISTS),
}


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("memory_bytes", [1 << 20, 0], ids=["in memory", "on disk"])
@pytest.mark.parametrize("kind", COLUMNS)
def test_chunks_share_no_memory_with_the_spool(tmp_path: Path, kind: str, memory_bytes: int, shuffle: bool) -> None:
    # TensorFlow may write over what it is given: the next epoch would see it, or, in a mapped file, the process die.
    spec, column = COLUMNS[kind]
    schema = arrow_schema([spec])
    spool = Spool(str(tmp_path), memory_bytes=memory_bytes)
    feed = Feed(0, 2, (spec,), schema, seed=7)
    spool.begin_feed(feed)
    upload = spool.begin_upload(0)
    upload.write(pa.record_batch([column.cast(schema.field("x").type)], schema=schema))
    spool.commit(upload, upload.seal())
    spool.end_feed(0, {}, ROWS)
    held = [b for p in feed.partitions if p for batch in p.batches for b in batch.column("x").buffers() if b]
    reader = spool.next_epoch()
    assert reader is not None
    terms = DatasetTerms(32, shuffle=shuffle)
    (arrays,) = read_chunks(reader, terms.layout([spec]), terms)
    assert arrays[0].sum() == pc.sum(column.flatten() if pa.types.is_list(column.type) else column).as_py()
    for array in arrays:
        start = array.ctypes.data
        assert all(start >= b.address + b.size or start + array.nbytes <= b.address for b in held)


def test_a_look_at_the_first_batches_uses_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Batches, chunks and partitions of any size against how much can be read again.
    monkeypatch.setattr("tfspark.node.spool.REWIND_BYTES", 1)
    for shuffle in (False, True):
        spool = filled(tmp_path, partitions=200, rows=10)
        dataset = fed_dataset(spool, DatasetTerms(7, shuffle=shuffle, seed=1, chunk_bytes=80, shuffle_chunk_bytes=320))
        for wanted in (1, 1, KEPT_BATCHES):
            assert len(list(dataset.take(wanted))) == wanted
        assert not any(p is None for p in spool.last_feed.partitions), "something was let go of"
        read = np.concatenate([b["x"].numpy() for b in dataset])
        assert sorted(read.tolist()) == list(range(2000))
        assert spool.epochs_read == 1 and not spool.last_feed.partitions


def test_what_is_well_behind_the_consumer_is_let_go_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfspark.node.spool.REWIND_BYTES", 8 * 20)
    spool = filled(tmp_path, partitions=200, rows=10)
    dataset = fed_dataset(spool, DatasetTerms(5, chunk_bytes=80))
    for i, _ in enumerate(dataset):
        if i == 300:
            gone = [p is None for p in spool.last_feed.partitions]
            # 300 batches are 150 partitions; those of the last 16 batches, of 20 rows and of four chunks are kept.
            assert all(gone[:100]) and not any(gone[150:])
            break
    with pytest.raises(tf.errors.UnknownError, match="stopped early and started over"):
        list(dataset)


def test_a_look_at_a_stream_uses_nothing_up(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path))
    for number in range(60):
        feed_numbers(spool, number, [range(number * 5, number * 5 + 5)])
    spool.no_more_feeds()
    dataset = fed_dataset(spool, DatasetTerms(4), endless=True)
    for wanted in (1, 2, KEPT_BATCHES):
        assert len(list(dataset.take(wanted))) == wanted
    assert np.concatenate([b["x"].numpy() for b in dataset]).tolist() == list(range(300))
    assert spool.epochs_read == 60 and len(spool._feeds) == 1


def test_a_dataset_is_for_feeds_of_the_same_columns(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path))
    feed_numbers(spool, 0, [range(3)])
    dataset = fed_dataset(spool, DatasetTerms(4))
    assert len(list(dataset)) == 1
    other = (ColumnSpec("x", "int64", (2,)),)
    spool.begin_feed(Feed(1, 1, other, arrow_schema(other), seed=0))
    with pytest.raises(tf.errors.UnknownError, match=r"'x': 'int64\[2\]'\}, before \{'x': 'int64\[\]'"):
        list(dataset)


def test_an_open_column_is_read_when_its_shape_is_settled(tmp_path: Path) -> None:
    open_ = (ColumnSpec("x", "int64", ragged=2, open=True),)
    spool = Spool(str(tmp_path))
    spool.begin_feed(Feed(0, 1, open_, arrow_schema(open_), seed=0))
    rows = [[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 10], [11, 12]]]
    upload = spool.begin_upload(0)
    upload.write(pa.record_batch([pa.array(rows, open_[0].arrow_type)], schema=arrow_schema(open_)))
    spool.commit(upload, upload.seal())
    spool.end_feed(0, {}, 2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(spool.wait_for_feed)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        spool.settle(0, (ColumnSpec("x", "int64", (3, 2)),))
        assert waiting.result(timeout=10) is spool.last_feed
    (batch,) = fed_dataset(spool, DatasetTerms(4))
    assert batch["x"].shape == (2, 3, 2) and batch["x"].numpy().tolist() == rows


def test_an_array_of_another_length_is_never_cut_to_fit() -> None:
    spec = ColumnSpec("x", "int64", (2,))
    with pytest.raises(SchemaError, match=r"'x' has shape \(2,\), but a row holds an array of another length"):
        column_arrays(pa.chunked_array([pa.array([[1], [2, 3, 4]], pa.list_(pa.int64()))]), spec)


def feed_numbers(spool: Spool, number: int, partitions: Sequence[range]) -> None:
    """Feed partitions of numbers as column ``x``, and end the feed."""
    columns = (ColumnSpec("x", "int64"),)
    spool.begin_feed(Feed(number, 1, columns, arrow_schema(columns), seed=0, base=number))
    for p, values in enumerate(partitions):
        upload = spool.begin_upload(number, p)
        upload.write(pa.record_batch([pa.array(values, pa.int64())], schema=arrow_schema(columns)))
        spool.commit(upload, upload.seal())
    spool.end_feed(number, {}, sum(map(len, partitions)))


def filled(tmp_path: Path, partitions: int, rows: int) -> Spool:
    """Return a spool of one feed whose partitions hold the numbers from 0 on."""
    spool = Spool(str(tmp_path))
    feed_numbers(spool, 0, [range(p * rows, (p + 1) * rows) for p in range(partitions)])
    return spool


@pytest.mark.parametrize("endless", [False, True])
@pytest.mark.parametrize("kind", COLUMNS)
def test_an_exception_in_a_loop_does_not_wait_for_rows(tmp_path: Path, kind: str, endless: bool) -> None:
    spool = one_partition(tmp_path, kind)
    if endless:
        spool.end_feed(0, {}, ROWS)
    dataset = fed_dataset(spool, DatasetTerms(16, chunk_bytes=80), endless=endless)

    def train() -> None:
        for i, _ in enumerate(dataset, 1):
            # This is the last batch of those that have arrived, so the next one is waited for.
            if i == ROWS // 16:
                raise ValueError("of the loop")

    failing = in_thread(train)
    with pytest.raises(ValueError, match="of the loop"):
        failing.result(10.0)


@pytest.mark.parametrize("kind", COLUMNS)
def test_no_batch_is_without_rows_though_rows_come_late(tmp_path: Path, kind: str) -> None:
    spool = one_partition(tmp_path, kind)
    dataset = fed_dataset(spool, DatasetTerms(16, chunk_bytes=80))
    reading = in_thread(lambda: [int(rows_of(b["x"])) for b in dataset])
    assert eventually(lambda: spool.waiting_seconds > 3 * PAUSE_SECONDS, 20.0)
    spool.end_feed(0, {}, ROWS)
    assert reading.result(20.0) == [16] * (ROWS // 16)


def one_partition(tmp_path: Path, kind: str) -> Spool:
    """Return a spool of one partition, whose feed has not ended."""
    spec, column = COLUMNS[kind]
    schema = arrow_schema([spec])
    spool = Spool(str(tmp_path))
    spool.begin_feed(Feed(0, 1, (spec,), schema, seed=7))
    upload = spool.begin_upload(0)
    upload.write(pa.record_batch([column.cast(schema.field("x").type)], schema=schema))
    spool.commit(upload, upload.seal())
    return spool


def in_thread(function: Callable[[], object]) -> Future[object]:
    """Call a function in a thread that does not keep the program."""
    future: Future[object] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except Exception as e:
            future.set_exception(e)

    threading.Thread(target=run, daemon=True).start()
    return future
