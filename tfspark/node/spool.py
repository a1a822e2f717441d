"""The spool: keeps the rows that a node was fed until training has read them.

The first rows stay in memory, up to a limit. Every further upload is written as an Arrow IPC stream to an unlinked
file, which readers memory-map. A partition becomes visible to readers when the whole partition is committed. The files
have no names, so they disappear with the process. Feeding waits while the unread bytes are at their limit.

Epochs are read in order: ``spool.next_epoch()`` returns an `EpochReader`. Until the reader calls ``complete``, the
same epoch is returned again, because Keras starts an iteration to look at one batch and then starts over. Named feeds
are not part of this order: ``spool.named_epoch(feed)`` reads a named feed any number of times.
"""

from __future__ import annotations

import itertools
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa

from tfspark.columns.spec import ColumnSpec
from tfspark.errors import ClusterStopped, FeedError, TFSparkError
from tfspark.node.input_clock import InputClock, InputState
from tfspark.settings import Settings

REWIND_BYTES = 64 << 20
"""Bytes of the last epoch that are kept after they were read, so that an iteration that stops early can start over."""


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
    """One call of `Cluster.feed`, as this node knows it."""

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
    fill: dict[str, Any] = field(default_factory=dict)
    partitions: list[Partition | None] = field(default_factory=list)
    ended: bool = False
    rows_by_node: dict[str, int] = field(default_factory=dict)
    rows_here: int | None = None
    rows_received: int = 0

    @property
    def settled(self) -> bool:
        """Whether the shapes of all columns are known."""
        return not any(c.open for c in self.columns)

    @property
    def features(self) -> list[str]:
        """Names of the features of a dataset; a struct is one feature."""
        return list(dict.fromkeys(c.keys[0] for c in self.columns))


class Upload:
    """A partition that is being received, in memory or in a file."""

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
        """Append a batch; wait while the spool is full.

        Raises
        ------
        FeedError
            If the partition is larger than the spool, or the disk is full.
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
                self._file = tempfile.TemporaryFile(dir=self._spool.next_directory())  # noqa: SIM115 - see seal and abort
                self._path = f"/proc/self/fd/{self._file.fileno()}"
                self._writer = pa.ipc.new_stream(pa.OSFile(self._path, "wb"), self.feed.schema)
            for waiting in self._batches:
                self._writer.write_batch(waiting)
        except OSError as e:
            raise FeedError(
                f"Cannot write the spool: {e}.",
                hint="Spark's local directory (spark.local.dir) may be full: free some space, or feed fewer rows.",
            ) from e
        self._batches.clear()

    @property
    def in_memory(self) -> bool:
        """Whether all rows are in memory."""
        return self._file is None

    def seal(self) -> Partition:
        """Finish the upload; the partition becomes visible with `Spool.commit`."""
        if self._file is None or self._writer is None:
            return Partition(self._batches, self.rows, self.nbytes, in_memory=True, number=self.partition)
        self._writer.close()
        with pa.memory_map(self._path) as source:
            batches = list(pa.ipc.open_stream(source))
        self._file.close()
        return Partition(batches, self.rows, self.nbytes, number=self.partition)

    def abort(self) -> None:
        """Discard the upload and release its bytes."""
        if self._file is not None:
            self._file.close()
        self._batches = []
        self._spool._forget(self)


class Spool:
    """The rows of one node.

    Parameters
    ----------
    directory
        A directory on a local disk, or several directories that are used in turn, one for each new file.
    capacity_bytes
        Limit of the unread bytes.
    memory_bytes
        Largest number of bytes that are kept in memory; further rows go to the disk. For a feed with ``cache="memory"``
        the limit is `capacity_bytes`.
    upload_timeout
        Seconds after which a client that sends nothing loses its priority, so that other clients do not wait for it.
    """

    def __init__(
        self,
        directory: str | Sequence[str],
        capacity_bytes: int = Settings.spool_bytes,
        memory_bytes: int = 0,
        upload_timeout: float = Settings.upload_timeout,
    ) -> None:
        self._directories = [directory] if isinstance(directory, str) else list(directory)
        for d in self._directories:
            os.makedirs(d, exist_ok=True)
        self._turn = itertools.count()
        self.capacity_bytes = capacity_bytes
        self.memory_bytes = memory_bytes
        self._upload_timeout = upload_timeout
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
        self.rows_completed = 0
        self.is_read = False
        self.last_feed: Feed | None = None
        self.discarding = False

    def next_directory(self) -> str:
        """Return the directory of the next file."""
        return self._directories[next(self._turn) % len(self._directories)]

    # --- events of the coordinator

    def begin_feed(self, feed: Feed) -> None:
        """Register a feed, so that its partitions can be received."""
        with self._changed:
            self._feeds[feed.number] = self.last_feed = feed
            self._changed.notify_all()

    def settle(self, number: int, columns: tuple[ColumnSpec, ...]) -> None:
        """Set the columns of a feed, with their final shapes; readers wait for this."""
        with self._changed:
            self._feeds[number].columns = columns
            self._changed.notify_all()

    def end_feed(self, number: int, rows_by_node: dict[str, int], rows_here: int = 0) -> None:
        """Note that all partitions of the feed are committed on all nodes.

        A restarted node's feed ends when the node has received all of its rows again.
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
        """Note that the driver will not feed again."""
        with self._changed:
            self._no_more = True
            self._changed.notify_all()

    def fail(self, error: TFSparkError) -> None:
        """Raise `error` in all waiting threads."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def discard(self) -> None:
        """Accept and discard further rows, so that the feed can end although there are no more readers."""
        with self._changed:
            self.discarding = True
            self._changed.notify_all()

    # --- the writing side

    def begin_upload(self, number: int, partition: int = 0, patience: float = 30.0) -> Upload:
        """Open an upload; wait for its feed first, because rows may arrive before the feed is announced."""
        with self._changed:
            if not self._changed.wait_for(lambda: number in self._feeds or self._error, patience):
                raise FeedError(f"Feed {number} was not announced to this node within {patience:g} s.")
            self._check()
            upload = Upload(self, self._feeds[number], partition)
            self._uploads.append(upload)
            return upload

    def commit(self, upload: Upload, partition: Partition) -> None:
        """Make a sealed partition visible to readers."""
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
        """Wait until there is room for the bytes; return whether they may stay in memory."""
        with self._changed:
            # A reproducible feed is read only when it is complete, and a named feed only when epochs end. The spool
            # must hold all rows of such a feed, so only the disk limits its size.
            bounded = not (self.discarding or upload.feed.reproducible or upload.feed.name)
            if bounded and upload.nbytes + nbytes > self.capacity_bytes:
                raise FeedError(
                    f"A partition of more than {upload.nbytes + nbytes:,} bytes does not fit the spool of "
                    f"{self.capacity_bytes:,} bytes.",
                    hint="Repartition the DataFrame into smaller partitions, or raise Cluster(spool_bytes=...).",
                )
            upload.touched = time.monotonic()
            while not (self._error or self.discarding or not bounded or self._has_room(upload, nbytes)):
                self._changed.wait(self._upload_timeout / 4)
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
            # A partition is either completely in memory or completely in its file.
            self._leave_memory(upload)
            return False

    def _leave_memory(self, upload: Upload) -> None:
        self._in_memory -= upload.memory_bytes
        upload.memory_bytes = 0

    def _has_room(self, upload: Upload, nbytes: int) -> bool:
        if self._unread_bytes + nbytes <= self.capacity_bytes:
            return True
        # For the oldest upload with an active client, only the bytes of committed rows count. Otherwise several
        # incomplete partitions could fill the spool, none could be completed, and nothing could be read.
        half_written = sum(u.nbytes for u in self._uploads if not u.feed.name)
        committed = self._unread_bytes - half_written
        now = time.monotonic()
        active = next((u for u in self._uploads if now - u.touched < self._upload_timeout), None)
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
        """Set a function that is called once, before a reader waits for the first time."""
        self._before_first_wait = call

    def wait_for_feed(self, after: EpochReader | None = None) -> Feed | None:
        """Wait for the feed of the next epoch, or of the epoch that follows `after`; ``None`` if there will be none."""
        with self._changed:
            call, self._before_first_wait = self._before_first_wait, None
        if call is not None:
            call()
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._is_settled(self._next_feed(after)))
            self._check()
            return self._next_feed(after)

    def next_epoch(self, after: EpochReader | None = None) -> EpochReader | None:
        """Return a reader of the next epoch; ``None`` if all rows that were fed and will be fed have been read.

        The next epoch is the first one that is not complete. With `after`, it is the epoch that follows `after`, which
        need not be complete.
        """
        feed = self.wait_for_feed(after)
        if feed is None:
            return None
        following = self._next(after)
        assert following is not None
        return EpochReader(self, feed, following[1])

    def is_next_known(self, after: EpochReader, seconds: float) -> bool:
        """Wait at most `seconds`; return whether it is known which epoch follows `after`, or that none does."""
        with self._changed:
            known = self._changed.wait_for(lambda: self._error or self._is_settled(self._next_feed(after)), seconds)
        return bool(known)

    @property
    def epochs_read(self) -> int:
        """Number of epochs that have been read to their end, including those before a restart."""
        if self._cursor is None:
            return min((f.base + f.first_epoch for f in self._feeds.values() if not f.name), default=0)
        number, epoch = self._cursor
        return self._feeds[number].base + epoch + 1

    def epochs_to_come(self) -> int:
        """Wait for the next epoch; return the number of unread epochs of its ``cluster.feed``, 0 if there is none."""
        feed, following = self.wait_for_feed(), self._next()
        if feed is None or following is None:
            return 0
        return feed.epochs_to_come - (following[1] - feed.first_epoch)

    def epoch_of(self, number: int, epoch: int) -> EpochReader:
        """Return a reader of the epoch that the chief has begun; wait until this node knows its feed and all shapes."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or (number in self._feeds and self._feeds[number].settled))
            self._check()
            return EpochReader(self, self._feeds[number], epoch)

    def _next(self, after: EpochReader | None = None) -> tuple[int, int] | None:
        later = sorted(n for n, feed in self._feeds.items() if not feed.name)
        cursor = self._cursor if after is None else (after.feed.number, after.epoch)
        if cursor is not None:
            number, epoch = cursor
            if epoch + 1 < self._feeds[number].epochs:
                return number, epoch + 1
            later = [n for n in later if n > number]
        return (later[0], self._feeds[later[0]].first_epoch) if later else None

    def _next_feed(self, after: EpochReader | None = None) -> Feed | None:
        following = self._next(after)
        return self._feeds[following[0]] if following else None

    def _is_settled(self, feed: Feed | None) -> bool:
        """Return whether a feed can be read or, if `feed` is ``None``, whether there will be no more feeds."""
        return feed.settled if feed is not None else self._no_more

    def wait_for_named(self, name: str) -> Feed | None:
        """Wait for the last feed with this name and return it; ``None`` if there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._is_settled(self._named(name)))
            self._check()
            return self._named(name)

    def named_epoch(self, feed: Feed) -> EpochReader:
        """Return a reader of all rows of a named feed."""
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
        """Seconds for which a reader has waited for the next partition of an unfinished feed; 0.0 if none waits."""
        return self.clock.waiting_seconds


class EpochReader:
    """The partitions of one epoch; `partitions` may be called any number of times until `complete` is called."""

    def __init__(self, spool: Spool, feed: Feed, epoch: int) -> None:
        self._spool, self.feed, self.epoch = spool, feed, epoch
        self._taken: list[tuple[int, int]] = []
        self.clock = spool.clock

    @property
    def _is_last(self) -> bool:
        return not self.feed.name and self.epoch + 1 >= self.feed.epochs

    def partitions(self, shuffle: bool = False) -> Iterator[Partition]:
        """Yield partitions as they are committed, or in a random order with `shuffle` if all of them are there already.

        The caller has read a partition when it asks for the next one.
        """
        rows = 0
        for partition in self.partitions_ahead(shuffle, None):
            assert partition is not None, "without a pause it waits"
            yield partition
            rows += partition.rows
            self.passed(rows)

    def partitions_ahead(self, shuffle: bool, pause: float | None) -> Iterator[Partition | None]:
        """Yield partitions as `partitions` does, for a caller that takes them early and calls `passed` itself.

        Yield ``None`` each time that it has waited for `pause` seconds.
        """
        spool, feed = self._spool, self.feed
        order: list[int] | None = None
        self._taken = []
        i = rows = 0

        def is_known() -> bool:
            there = i < len(feed.partitions) and not feed.reproducible
            return spool._error is not None or feed.ended or there

        while True:
            self.clock.enter(InputState.WAITING)
            while True:
                with spool._changed:
                    if spool._changed.wait_for(is_known, pause):
                        break
                yield None
            with spool._changed:
                self.clock.enter(InputState.PREPARING)
                spool._check()
                if i >= len(feed.partitions):
                    return
                if shuffle and order is None and feed.ended and i == 0:
                    order = list(range(len(feed.partitions)))
                    random.Random(feed.seed * 1_000_003 + self.epoch).shuffle(order)
                index = order[i] if order else i
                partition = feed.partitions[index]
                if partition is None:
                    raise FeedError(
                        "An iteration over the dataset stopped early and started over, but the first rows of the epoch "
                        "are no longer kept.",
                        hint="Iterate the dataset to its end once per epoch, or pass epochs=2 or more to cluster.feed, "
                        "which keeps all rows.",
                    )
                self._note_read(partition)
                if not feed.name:
                    spool.is_read = True
                    spool.rows_read += partition.rows
            rows += partition.rows
            self._taken.append((index, rows))
            yield partition
            i += 1

    def passed(self, rows: int) -> None:
        """Release partitions of a last epoch that are far behind the consumer, which has read `rows` rows so far.

        The newest `REWIND_BYTES` of the rows that it has read are kept.
        """
        if not self._is_last:
            return
        kept = 0
        for k, end in reversed(self._taken):
            if end > rows:
                continue
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

    def skip(self) -> None:
        """Wait until all rows of the epoch have arrived, do not read them, and mark the epoch as read."""
        spool, feed = self._spool, self.feed
        with spool._changed:
            while True:
                for partition in feed.partitions:
                    if partition is not None:
                        self._note_read(partition)
                spool._check()
                if feed.ended:
                    break
                spool._changed.wait()
        self.complete()

    def _note_read(self, partition: Partition) -> None:
        if not partition.read:
            partition.read = True
            self._spool._unread_bytes -= partition.nbytes
            self._spool._changed.notify_all()

    def complete(self) -> None:
        """Mark the epoch as read: its consumer has reached the end."""
        if self.feed.name:
            self.clock.enter(InputState.IDLE)
            return
        spool = self._spool
        with spool._changed:
            spool._cursor = (self.feed.number, self.epoch)
            spool.rows_completed += self.feed.rows_received
            spool.is_read = False
            self.clock.enter(InputState.IDLE)
            if self._is_last:
                for partition in self.feed.partitions:
                    self._drop(partition)
                self.feed.partitions.clear()
                # Earlier feeds have been read. They are deleted because a stream has very many feeds.
                for number in [n for n, f in spool._feeds.items() if n < self.feed.number and not f.name]:
                    del spool._feeds[number]
            spool._changed.notify_all()


def stopped_error(reason: str) -> ClusterStopped:
    """Return the error that readers and writers get when the cluster stops."""
    return ClusterStopped(f"The cluster is stopping: {reason}")
