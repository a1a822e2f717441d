"""The spool: bounded, whole partitions only, epochs replayed, nothing left on disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tfspark.columns.spec import ColumnSpec
from tfspark.errors import ClusterStopped, FeedError
from tfspark.node.spool import Feed, Spool

pytestmark = pytest.mark.unit

SCHEMA = pa.schema([pa.field("x", pa.int64(), nullable=False)])
BATCH = pa.record_batch([pa.array(range(1000), pa.int64())], schema=SCHEMA)


def spool(tmp_path: Path, capacity: int = 1 << 20, epochs: int = 1, **more: Any) -> Spool:
    s = Spool(str(tmp_path / "spool"), capacity, **more)
    s.begin_feed(Feed(0, epochs, (ColumnSpec("x", "int64"),), SCHEMA, seed=7))
    return s


def put(s: Spool, *values: int, batches: int = 1) -> None:
    upload = s.begin_upload(0)
    for _ in range(batches):
        upload.write(pa.record_batch([pa.array(values, pa.int64())], schema=SCHEMA) if values else BATCH)
    s.commit(upload, upload.seal())


def values(s: Spool, shuffle: bool = False, complete: bool = True) -> list[int]:
    reader = s.next_epoch()
    assert reader is not None
    read = [v for p in reader.partitions(shuffle) for b in p.batches for v in b.column(0).to_pylist()]
    if complete:
        reader.complete()
    return read


def in_thread(function: Callable[[], Any]) -> Future[Any]:
    with ThreadPoolExecutor(1) as pool:
        # Leaving the block would wait for it.
        pool.shutdown = lambda *a, **k: None  # type: ignore[method-assign]
        return pool.submit(function)


def test_an_epoch_is_skipped_when_all_of_its_rows_have_arrived(tmp_path: Path) -> None:
    s = spool(tmp_path, capacity=3 * BATCH.nbytes, epochs=2)
    put(s)
    reader = s.next_epoch()
    assert reader is not None
    skipping = in_thread(reader.skip)
    # Rows that nobody reads would fill the spool.
    for _ in range(10):
        put(s)
    assert not skipping.done() and s.epochs_read == 0
    s.end_feed(0, {})
    skipping.result(10.0)
    assert s.epochs_read == 1 and len(values(s)) == 11 * BATCH.num_rows


def test_only_whole_partitions_are_seen(tmp_path: Path) -> None:
    s = spool(tmp_path)
    upload = s.begin_upload(0)
    upload.write(BATCH)
    put(s, 1, 2)
    upload.abort()
    s.end_feed(0, {})
    assert values(s) == [1, 2]
    assert s.unread_bytes == 0


def test_epochs_are_replayed_and_counted_when_completed(tmp_path: Path) -> None:
    s = spool(tmp_path, epochs=3)
    put(s, 1, 2)
    put(s, 3)
    s.end_feed(0, {})
    assert values(s, complete=False) == [1, 2, 3]
    assert [values(s) for _ in range(3)] == [[1, 2, 3]] * 3
    assert not s.is_read
    s.no_more_feeds()
    assert s.next_epoch() is None


def test_shuffling_takes_partitions_in_another_order_the_same_each_time(tmp_path: Path) -> None:
    orders = []
    for run in "ab":
        s = spool(tmp_path / run, epochs=2)
        for i in range(20):
            put(s, i)
        s.end_feed(0, {})
        orders.append([values(s, shuffle=True) for _ in range(2)])
    assert orders[0] == orders[1]
    first, second = orders[0]
    assert first != second and first != list(range(20))
    assert sorted(first) == sorted(second) == list(range(20))


def test_a_full_spool_holds_the_writer_back_until_rows_are_read(tmp_path: Path) -> None:
    s = spool(tmp_path, capacity=BATCH.nbytes * 2)
    put(s, batches=2)
    written = in_thread(lambda: put(s))
    with pytest.raises(TimeoutError):
        written.result(timeout=0.3)
    reader = s.next_epoch()
    assert reader is not None
    partitions = reader.partitions()
    assert next(partitions).rows == 2000
    written.result(timeout=10)
    s.end_feed(0, {})
    assert [p.rows for p in partitions] == [1000]


def test_half_written_partitions_do_not_block_each_other(tmp_path: Path) -> None:
    s = spool(tmp_path, capacity=BATCH.nbytes * 3)
    uploads = [s.begin_upload(0) for _ in range(3)]
    for u in uploads:
        u.write(BATCH)

    def finish(upload: Any) -> None:
        for _ in range(2):
            upload.write(BATCH)
        s.commit(upload, upload.seal())

    finished = [in_thread(lambda u=u: finish(u)) for u in uploads]
    read = in_thread(lambda: len(values(s)))
    for f in finished:
        f.result(timeout=10)
    s.end_feed(0, {})
    assert read.result(timeout=10) == 9000


def test_a_client_that_falls_silent_does_not_hold_up_the_others(tmp_path: Path) -> None:
    s = spool(tmp_path, capacity=BATCH.nbytes * 3, upload_timeout=0.5)
    silent, other = s.begin_upload(0), s.begin_upload(0)
    for u in (silent, other):
        u.write(BATCH)

    def finish(upload: Any) -> None:
        for _ in range(2):
            upload.write(BATCH)
        s.commit(upload, upload.seal())

    in_thread(lambda: finish(other)).result(timeout=10)
    read = in_thread(lambda: len(values(s)))
    finish(silent)
    s.end_feed(0, {})
    assert read.result(timeout=10) == 6000


def test_what_can_never_fit_is_refused(tmp_path: Path) -> None:
    s = spool(tmp_path, capacity=BATCH.nbytes - 1)
    upload = s.begin_upload(0)
    with pytest.raises(FeedError, match=r"does not fit the spool of[\s\S]*spool_bytes"):
        upload.write(BATCH)
    upload.abort()
    assert s.unread_bytes == 0


def test_failing_wakes_everyone(tmp_path: Path) -> None:
    s = spool(tmp_path, capacity=BATCH.nbytes)
    put(s)
    waiting = [in_thread(lambda: put(s)), in_thread(lambda: s.begin_upload(1))]
    reader = s.next_epoch()
    assert reader is not None
    s2 = Spool(str(tmp_path / "other"))
    waiting.append(in_thread(s2.wait_for_feed))
    for one in (s, s2):
        one.fail(ClusterStopped("gone"))
    for w in waiting:
        with pytest.raises(ClusterStopped, match="gone"):
            w.result(timeout=10)
    with pytest.raises(ClusterStopped, match="gone"):
        list(reader.partitions())


def test_nothing_has_a_name_on_disk(tmp_path: Path) -> None:
    s = spool(tmp_path, epochs=2)
    upload = s.begin_upload(0)
    upload.write(BATCH)
    put(s)
    assert list((tmp_path / "spool").iterdir()) == []


def test_starting_over_after_rows_were_let_go_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfspark.node.spool.REWIND_BYTES", BATCH.nbytes)
    s = spool(tmp_path)
    for _ in range(4):
        put(s)
    s.end_feed(0, {})
    assert len(values(s, complete=False)) == 4000
    with pytest.raises(FeedError, match=r"stopped early and started over[\s\S]*epochs=2"):
        values(s)


def test_threads_are_not_left(tmp_path: Path) -> None:
    before = threading.active_count()
    s = spool(tmp_path)
    put(s, 1)
    s.end_feed(0, {})
    assert values(s) == [1]
    assert threading.active_count() <= before


def test_the_first_rows_stay_in_memory(tmp_path: Path) -> None:
    s = Spool(str(tmp_path), 100_000, memory_bytes=2000)
    s.begin_feed(Feed(0, 1, (ColumnSpec("x", "int64"),), SCHEMA, seed=0))
    half = pa.record_batch([pa.array(range(50), pa.int64())], schema=SCHEMA)
    where = []
    for n in range(4):
        upload = s.begin_upload(0)
        upload.write(half)
        upload.write(half)
        where.append(upload.in_memory)
        if n == 1:
            upload.abort()
        else:
            s.commit(upload, upload.seal())
    s.end_feed(0, {})
    # 800 bytes each: the aborted one gives its room back, the last one moves to the disk with its second half.
    assert where == [True, True, True, False] and s._in_memory == 1600
    assert values(s) == [*range(50)] * 6
    assert (s._in_memory, s.unread_bytes) == (0, 0)


def test_a_feed_that_asks_for_memory_gets_as_much_as_may_wait(tmp_path: Path) -> None:
    s = Spool(str(tmp_path), 16_000)
    s.begin_feed(Feed(0, 2, (ColumnSpec("x", "int64"),), SCHEMA, seed=0, in_memory=True))
    for _ in range(2):
        upload = s.begin_upload(0)
        upload.write(BATCH)
        assert upload.in_memory
        s.commit(upload, upload.seal())
    s.end_feed(0, {})
    assert values(s) == values(s) == [*range(1000)] * 2
    assert s._in_memory == 0


def test_a_feed_with_a_name_stands_beside_the_epochs(tmp_path: Path) -> None:
    s = Spool(str(tmp_path), 16_000)
    s.begin_feed(Feed(0, 1, (ColumnSpec("x", "int64"),), SCHEMA, seed=0, name="validation"))
    # More than may wait unread: nobody reads these before an epoch of others has ended.
    put(s, batches=5)
    s.end_feed(0, {})
    assert s.unread_bytes == 0
    s.begin_feed(Feed(1, 1, (ColumnSpec("x", "int64"),), SCHEMA, seed=0))
    upload = s.begin_upload(1)
    upload.write(BATCH)
    s.commit(upload, upload.seal())
    s.end_feed(1, {})
    s.no_more_feeds()
    named = s.wait_for_named("validation")
    assert named is not None and s.wait_for_named("other") is None
    for _ in range(2):
        reader = s.named_epoch(named)
        assert sum(p.rows for p in reader.partitions()) == 5000
        reader.complete()
    assert values(s) == [*range(1000)]
    assert s.next_epoch() is None and s.rows_read == 1000
    assert sum(p.rows for p in s.named_epoch(named).partitions()) == 5000


def test_a_feed_that_goes_on_begins_with_a_later_epoch(tmp_path: Path) -> None:
    s = Spool(str(tmp_path))
    s.begin_feed(Feed(0, 3, (ColumnSpec("x", "int64"),), SCHEMA, seed=0, base=2, first_epoch=1))
    put(s, 1, 2)
    s.end_feed(0, {"worker 0": 2}, 2)
    counted = [s.epochs_read]
    for _ in range(2):
        assert values(s) == [1, 2]
        counted.append(s.epochs_read)
    s.no_more_feeds()
    assert counted == [3, 4, 5] and s.next_epoch() is None


def test_a_node_that_is_back_waits_for_all_its_rows(tmp_path: Path) -> None:
    s = Spool(str(tmp_path))
    s.begin_feed(Feed(0, 1, (ColumnSpec("x", "int64"),), SCHEMA, seed=0))
    s.end_feed(0, {"worker 0": 4, "worker 1": 9}, 4)
    reader = s.epoch_of(0, 0)
    put(s, 1, 2)
    assert not reader.feed.ended
    put(s, 3, 4)
    assert reader.feed.ended
    assert [v for p in reader.partitions() for b in p.batches for v in b.column(0).to_pylist()] == [1, 2, 3, 4]


def test_what_comes_before_the_first_wait_comes_once(tmp_path: Path) -> None:
    s = Spool(str(tmp_path))
    calls: list[int] = []
    s.before_first_wait(lambda: calls.append(1))
    s.no_more_feeds()
    assert s.wait_for_feed() is None and s.next_epoch() is None and calls == [1]


def test_a_spool_that_nobody_reads_any_more_takes_all_rows_and_keeps_none(tmp_path: Path) -> None:
    s = spool(tmp_path, capacity=BATCH.nbytes * 2)
    put(s)
    waiting = s.begin_upload(0)

    def write_more_than_fits() -> None:
        for _ in range(5):
            waiting.write(BATCH)
        s.commit(waiting, waiting.seal())

    written = in_thread(write_more_than_fits)
    with pytest.raises(TimeoutError):
        written.result(timeout=0.3)
    s.discard()
    written.result(timeout=10)
    put(s, batches=5)
    broken = s.begin_upload(0)
    broken.write(BATCH)
    broken.abort()
    s.end_feed(0, {}, 11_000)
    feed = s.last_feed
    assert feed is not None and feed.ended and feed.rows_received == 11_000
    assert [p.rows for p in feed.partitions if p] == [1000] and s.unread_bytes == BATCH.nbytes


def test_feeds_that_have_been_read_are_let_go_of(tmp_path: Path) -> None:
    s = Spool(str(tmp_path))
    s.begin_feed(Feed(0, 1, (ColumnSpec("x", "int64"),), SCHEMA, seed=0, name="validation"))
    s.end_feed(0, {})
    for number in range(1, 6):
        s.begin_feed(Feed(number, 1, (ColumnSpec("x", "int64"),), SCHEMA, seed=0, base=number - 1))
        upload = s.begin_upload(number)
        upload.write(BATCH)
        s.commit(upload, upload.seal())
        s.end_feed(number, {}, 1000)
        assert values(s) == [*range(1000)] and s.epochs_read == number
    assert sorted(s._feeds) == [0, 5]
    assert s._named("validation") is not None


def test_files_take_the_directories_in_turn(tmp_path: Path) -> None:
    directories = [str(tmp_path / name) for name in "abc"]
    s = Spool(directories, 1 << 20)
    s.begin_feed(Feed(0, 1, (ColumnSpec("x", "int64"),), SCHEMA, seed=7))
    uploads = [s.begin_upload(0, i) for i in range(4)]
    for u in uploads:
        u.write(BATCH)
    written = [Path(os.readlink(u._path)).parent for u in uploads]
    assert [d.name for d in written] == ["a", "b", "c", "a"]
    for u in uploads:
        s.commit(u, u.seal())
    s.end_feed(0, {})
    assert len(values(s)) == 4000
