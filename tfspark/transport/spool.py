"""Where a node keeps the rows it was fed until training has read them.

The first rows stay in memory, as far as there is room. Every other upload is written as an Arrow IPC stream to an
unlinked file and becomes visible, memory-mapped, only when it was committed whole. No file has a name, so nothing is
left behind however the process ends. A bound on the bytes that wait unread holds the feeding side back.

Readers take epochs one after another: ``spool.next_epoch()`` gives an `EpochReader`; an epoch counts as read when
its reader says so, and is given again until then (Keras starts an iteration to look at one batch and starts over).
Feeds that have a name stand beside the epochs: ``spool.named_epoch(feed)`` reads them as often as it is asked.
"""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO

import pyarrow as pa

from tfspark.errors import ClusterStopped, FeedError, TFSparkError
from tfspark.schema import ColumnSpec
from tfspark.transport.input_clock import InputClock, InputState

DEFAULT_CAPACITY_BYTES = 1 << 30
"""Rows that may wait unread in one node; beyond it feeding tasks are held back."""

DEFAULT_MEMORY_BYTES = 256 << 20
"""Rows that a node keeps in memory before any go to the disk."""

REWIND_BYTES = 64 << 20
"""Read rows of a last epoch that stay available, so that an iteration given up early can start over."""


PEER_SILENCE_SECONDS = 60.0
"""A client that has sent nothing for so long no longer comes first: others need not wait for it."""


@dataclass
class Partition:
    """One committed partition."""

    batches: list[pa.RecordBatch]
    rows: int
    nbytes: int
    in_memory: bool = False
    read: bool = False
    number: int = 0


@dataclass
class Feed:
    """One call of `Cluster.feed`, as this node sees it."""

    number: int
    epochs: int
    columns: tuple[ColumnSpec, ...]
    schema: pa.Schema
    seed: int
    in_memory: bool = False
    epochs_to_come: int = 1
    reproducible: bool = False
    base: int = 0
    first_epoch: int = 0
    name: str = ""
    partitions: list[Partition | None] = field(default_factory=list)
    ended: bool = False
    rows_by_node: dict[str, int] = field(default_factory=dict)
    rows_here: int | None = None
    rows_received: int = 0

    @property
    def features(self) -> list[str]:
        """Names of what a dataset gives: columns, and structs as a whole."""
        return list(dict.fromkeys(c.keys[0] for c in self.columns))


class Upload:
    """One partition on its way in: in memory as far as there is room, else in a file."""

    def __init__(self, spool: Spool, feed: Feed, partition: int) -> None:
        self._spool, self.feed, self.partition = spool, feed, partition
        self._batches: list[pa.RecordBatch] = []
        self._file: IO[bytes] | None = None
        self._path = ""
        self._writer: pa.RecordBatchStreamWriter | None = None
        self.rows = 0
        self.nbytes = 0
        self.memory_bytes = 0
        self.touched = time.monotonic()

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch, waiting while the spool is full.

        Raises
        ------
        FeedError
            If the partition can never fit, or the disk is full.
        """
        in_memory = self._spool._reserve(self, batch.nbytes)
        self.rows += batch.num_rows
        if self._spool.discarding:
            self._batches.clear()
            return
        self._batches.append(batch)
        if in_memory:
            return
        try:
            if self._writer is None:
                self._file = tempfile.TemporaryFile(dir=self._spool.directory)  # noqa: SIM115 - see seal and abort
                self._path = f"/proc/self/fd/{self._file.fileno()}"
                self._writer = pa.ipc.new_stream(pa.OSFile(self._path, "wb"), self.feed.schema)
            for waiting in self._batches:
                self._writer.write_batch(waiting)
        except OSError as e:
            raise FeedError(
                f"The spool could not be written: {e}.",
                hint="Spark's local directory (spark.local.dir) may be full: free some space, or feed fewer rows.",
            ) from e
        self._batches.clear()

    @property
    def in_memory(self) -> bool:
        """Whether nothing has been written to a file."""
        return self._file is None

    def seal(self) -> Partition:
        """Finish; the partition is not yet visible."""
        if self._file is None or self._writer is None:
            return Partition(self._batches, self.rows, self.nbytes, in_memory=True, number=self.partition)
        self._writer.close()
        with pa.memory_map(self._path) as source:
            batches = list(pa.ipc.open_stream(source))
        self._file.close()
        return Partition(batches, self.rows, self.nbytes, number=self.partition)

    def abort(self) -> None:
        """Forget the upload and give its bytes back."""
        if self._file is not None:
            self._file.close()
        self._batches = []
        self._spool._forget(self)


class Spool:
    """All rows of one node.

    Parameters
    ----------
    directory
        A directory on a local disk.
    capacity_bytes
        Bound of the bytes that wait unread.
    memory_bytes
        Rows that are kept in memory before any go to the disk; `capacity_bytes` for a feed that asks for memory.
    """

    def __init__(self, directory: str, capacity_bytes: int = DEFAULT_CAPACITY_BYTES, memory_bytes: int = 0) -> None:
        os.makedirs(directory, exist_ok=True)
        self.directory = directory
        self.capacity_bytes = capacity_bytes
        self.memory_bytes = memory_bytes
        self._in_memory = 0
        self._changed = threading.Condition()
        self._feeds: dict[int, Feed] = {}
        self._uploads: list[Upload] = []
        self._unread_bytes = 0
        self._no_more = False
        self._error: TFSparkError | None = None
        self._cursor: tuple[int, int] | None = None
        self._before_first_wait: Callable[[], object] | None = None
        self.clock = InputClock()
        self.rows_read = 0
        self.is_read = False
        self.last_feed: Feed | None = None
        self.discarding = False

    # --- told by the coordinator

    def begin_feed(self, feed: Feed) -> None:
        """Make room for the partitions of a feed."""
        with self._changed:
            self._feeds[feed.number] = self.last_feed = feed
            self._changed.notify_all()

    def end_feed(self, number: int, rows_by_node: dict[str, int], rows_here: int = 0) -> None:
        """All partitions of the feed are committed, here and elsewhere.

        A node that was lost and is back waits until it has all its rows again.
        """
        with self._changed:
            feed = self._feeds[number]
            feed.rows_by_node, feed.rows_here = rows_by_node, rows_here
            self._end_if_complete(feed)
            self._changed.notify_all()

    def _end_if_complete(self, feed: Feed) -> None:
        if feed.rows_here is None or feed.rows_received < feed.rows_here:
            return
        feed.ended = True
        if feed.reproducible:
            feed.partitions.sort(key=lambda p: p.number if p else -1)

    def no_more_feeds(self) -> None:
        """The driver will not feed again."""
        with self._changed:
            self._no_more = True
            self._changed.notify_all()

    def fail(self, error: TFSparkError) -> None:
        """Wake everyone who waits here with `error`."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def discard(self) -> None:
        """Nobody will read here again: take what still comes, so that the feed can end, and keep none of it."""
        with self._changed:
            self.discarding = True
            self._changed.notify_all()

    # --- the writing side

    def begin_upload(self, number: int, partition: int = 0, patience: float = 30.0) -> Upload:
        """Open an upload; the feed may be announced a moment later than its first rows arrive."""
        with self._changed:
            if not self._changed.wait_for(lambda: number in self._feeds or self._error, patience):
                raise FeedError(f"feed {number} is not known here")
            self._check()
            upload = Upload(self, self._feeds[number], partition)
            self._uploads.append(upload)
            return upload

    def commit(self, upload: Upload, partition: Partition) -> None:
        """Show a sealed partition to training."""
        with self._changed:
            self._uploads.remove(upload)
            partition.read = bool(upload.feed.name)
            if self.discarding:
                self._give_back(upload)
            else:
                upload.feed.partitions.append(partition)
            upload.feed.rows_received += partition.rows
            self._end_if_complete(upload.feed)
            self._changed.notify_all()

    def _reserve(self, upload: Upload, nbytes: int) -> bool:
        """Wait until the bytes have room; true if they may stay in memory."""
        with self._changed:
            # Of a reproducible feed nothing is read before all is there, and a named one is read when epochs end: they
            # have the disk as their bound.
            bounded = not (self.discarding or upload.feed.reproducible or upload.feed.name)
            if bounded and upload.nbytes + nbytes > self.capacity_bytes:
                raise FeedError(
                    f"A partition of more than {upload.nbytes + nbytes:,} bytes does not fit the spool of "
                    f"{self.capacity_bytes:,} bytes.",
                    hint="Repartition the DataFrame into smaller partitions, or raise Cluster(spool_bytes=...).",
                )
            upload.touched = time.monotonic()
            while not (self._error or self.discarding or not bounded or self._has_room(upload, nbytes)):
                self._changed.wait(PEER_SILENCE_SECONDS / 4)
                upload.touched = time.monotonic()
            self._check()
            upload.nbytes += nbytes
            if not upload.feed.name:
                self._unread_bytes += nbytes
            if self.discarding or not upload.in_memory:
                return False
            most = self.capacity_bytes if upload.feed.in_memory else self.memory_bytes
            if self._in_memory + nbytes <= most:
                upload.memory_bytes += nbytes
                self._in_memory += nbytes
                return True
            # The whole partition moves: it is either here or there.
            self._leave_memory(upload)
            return False

    def _leave_memory(self, upload: Upload) -> None:
        self._in_memory -= upload.memory_bytes
        upload.memory_bytes = 0

    def _has_room(self, upload: Upload, nbytes: int) -> bool:
        if self._unread_bytes + nbytes <= self.capacity_bytes:
            return True
        # The oldest upload whose client still sends is held back by committed rows alone: else several half-written
        # partitions could fill the spool, none could be completed, and nothing would ever be read.
        half_written = sum(u.nbytes for u in self._uploads if not u.feed.name)
        committed = self._unread_bytes - half_written
        now = time.monotonic()
        active = next((u for u in self._uploads if now - u.touched < PEER_SILENCE_SECONDS), None)
        return upload is active and committed + upload.nbytes + nbytes <= self.capacity_bytes

    def _forget(self, upload: Upload) -> None:
        with self._changed:
            if upload in self._uploads:
                self._uploads.remove(upload)
                self._give_back(upload)
                self._changed.notify_all()

    def _give_back(self, upload: Upload) -> None:
        if not upload.feed.name:
            self._unread_bytes -= upload.nbytes
        self._leave_memory(upload)

    # --- the reading side

    def before_first_wait(self, call: Callable[[], object]) -> None:
        """Have `call` called, once, before a reader waits for the first time."""
        self._before_first_wait = call

    def wait_for_feed(self) -> Feed | None:
        """Wait for the feed that the next epoch belongs to; ``None`` if there will be none."""
        with self._changed:
            call, self._before_first_wait = self._before_first_wait, None
        if call is not None:
            call()
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._next() or self._no_more)
            self._check()
            following = self._next()
            return self._feeds[following[0]] if following else None

    def next_epoch(self) -> EpochReader | None:
        """Return a reader of the next epoch; ``None`` if all that was and will be fed has been read."""
        feed = self.wait_for_feed()
        if feed is None:
            return None
        following = self._next()
        assert following is not None
        return EpochReader(self, feed, following[1])

    @property
    def epochs_read(self) -> int:
        """How many epochs of all that was fed have been read to their end, those before a restart included."""
        if self._cursor is None:
            return min((f.base + f.first_epoch for f in self._feeds.values() if not f.name), default=0)
        number, epoch = self._cursor
        return self._feeds[number].base + epoch + 1

    def epochs_to_come(self) -> int:
        """Wait for the next epoch; return how many its call of ``cluster.feed`` has still to give, 0 if none comes."""
        feed, following = self.wait_for_feed(), self._next()
        if feed is None or following is None:
            return 0
        return feed.epochs_to_come - (following[1] - feed.first_epoch)

    def epoch_of(self, number: int, epoch: int) -> EpochReader:
        """Return a reader of an epoch that someone else has begun; waits until its feed is known here."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or number in self._feeds)
            self._check()
            return EpochReader(self, self._feeds[number], epoch)

    def _next(self) -> tuple[int, int] | None:
        later = sorted(n for n, feed in self._feeds.items() if not feed.name)
        if self._cursor is not None:
            number, epoch = self._cursor
            if epoch + 1 < self._feeds[number].epochs:
                return number, epoch + 1
            later = [n for n in later if n > number]
        return (later[0], self._feeds[later[0]].first_epoch) if later else None

    def wait_for_named(self, name: str) -> Feed | None:
        """Wait for the feed with a name, the last of several; ``None`` if there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._named(name) or self._no_more)
            self._check()
            return self._named(name)

    def named_epoch(self, feed: Feed) -> EpochReader:
        """Return a reader of all rows of a feed with a name."""
        return EpochReader(self, feed, 0)

    def _named(self, name: str) -> Feed | None:
        return next((f for _, f in sorted(self._feeds.items(), reverse=True) if f.name == name), None)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    @property
    def unread_bytes(self) -> int:
        """Bytes received and not yet read."""
        return self._unread_bytes

    @property
    def waiting_seconds(self) -> float:
        """How long a reader has waited for the next partition of a feed that goes on; 0.0 if none waits."""
        return self.clock.waiting_seconds


class EpochReader:
    """Gives the partitions of one epoch; iterate it any number of times until `complete` is called."""

    def __init__(self, spool: Spool, feed: Feed, epoch: int) -> None:
        self._spool, self.feed, self.epoch = spool, feed, epoch
        self.clock = spool.clock

    @property
    def _is_last(self) -> bool:
        return not self.feed.name and self.epoch + 1 >= self.feed.epochs

    def partitions(self, shuffle: bool = False) -> Iterator[Partition]:
        """Yield partitions as they are committed, or, once all are there, in a new order if `shuffle`."""
        spool, feed = self._spool, self.feed
        order: list[int] | None = None
        i = 0
        while True:
            with spool._changed:
                self.clock.enter(InputState.WAITING)
                while not (spool._error or feed.ended or (i < len(feed.partitions) and not feed.reproducible)):
                    spool._changed.wait()
                self.clock.enter(InputState.PREPARING)
                spool._check()
                if i >= len(feed.partitions):
                    return
                if shuffle and order is None and feed.ended and i == 0:
                    order = list(range(len(feed.partitions)))
                    random.Random(feed.seed * 1_000_003 + self.epoch).shuffle(order)
                partition = feed.partitions[order[i] if order else i]
                if partition is None:
                    raise FeedError(
                        "An iteration over the dataset was given up and started over after its first rows had "
                        "been released.",
                        hint="Iterate the dataset to its end once per epoch, or pass epochs=2 or more to feed(), "
                        "which keeps all rows.",
                    )
                if not partition.read:
                    partition.read = True
                    spool._unread_bytes -= partition.nbytes
                    spool._changed.notify_all()
                if not feed.name:
                    spool.is_read = True
                    spool.rows_read += partition.rows
            yield partition
            if self._is_last:
                self._release(order[: i + 1] if order else list(range(i + 1)))
            i += 1

    def _release(self, read: list[int]) -> None:
        kept = 0
        for k in reversed(read):
            partition = self.feed.partitions[k]
            if partition is None:
                return
            kept += partition.nbytes
            if kept > REWIND_BYTES:
                self._drop(partition)
                self.feed.partitions[k] = None

    def _drop(self, partition: Partition | None) -> None:
        if partition is not None and partition.in_memory:
            self._spool._in_memory -= partition.nbytes

    def complete(self) -> None:
        """The consumer has reached the end of this epoch."""
        if self.feed.name:
            self.clock.enter(InputState.IDLE)
            return
        spool = self._spool
        with spool._changed:
            spool._cursor = (self.feed.number, self.epoch)
            spool.is_read = False
            self.clock.enter(InputState.IDLE)
            if self._is_last:
                for partition in self.feed.partitions:
                    self._drop(partition)
                self.feed.partitions.clear()
                # The cursor is beyond those before; a stream has very many.
                for number in [n for n, f in spool._feeds.items() if n < self.feed.number and not f.name]:
                    del spool._feeds[number]
            spool._changed.notify_all()


def stopped_error(reason: str) -> ClusterStopped:
    """The error that readers and writers get when the cluster is stopped under them."""
    return ClusterStopped(f"The cluster is stopping: {reason}")
