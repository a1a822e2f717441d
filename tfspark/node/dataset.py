"""Rows of the spool as a ``tf.data`` dataset: committed partitions become chunks of tensors, chunks become batches.

Arrow and numpy handle whole chunks, never single rows. A chunk holds a whole number of batches, so a batch may have
rows of several partitions. A chunk is a copy of the rows in the spool, because TensorFlow may overwrite its memory.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfspark.checks import check_whole_number
from tfspark.columns.spec import ColumnSpec
from tfspark.errors import FeedError
from tfspark.node.chunks import PREFETCHED_CHUNKS, DatasetTerms, Position, read_chunks
from tfspark.node.layout import Layout, graph, rows_of
from tfspark.node.spool import EpochReader, Feed, Spool

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 0.25
"""Seconds after which a generator that waits for rows yields a chunk without rows.

TensorFlow deletes an iterator only after its generator has yielded. Without this, an exception in a training loop would
wait for the next rows.
"""


def fed_dataset(spool: Spool, terms: DatasetTerms, *, endless: bool = False, remote: bool = False) -> tf.data.Dataset:
    """Build the dataset of `NodeContext.dataset`, or of `NodeContext.stream` if `endless`.

    A `remote` dataset reads the spool of the process that runs it; see `tfspark.node.parameter_server`.
    """
    check_whole_number("batch_size", terms.batch_size, 1)
    feed = spool.wait_for_named(terms.name) if terms.name else spool.wait_for_feed()
    if feed is None:
        what = f" under the name {terms.name!r}" if terms.name else ""
        raise FeedError(f"Nothing was fed{what}.", hint="Call cluster.feed(df) in the driver.")
    layout = terms.layout(feed.columns)
    if remote:
        from tfspark.node.parameter_server import remote_chunks

        return _batches(remote_chunks(layout, terms).prefetch(PREFETCHED_CHUNKS), layout, terms)
    epoch = Epoch(spool, feed.columns, feed if terms.name else None)

    def chunks() -> Iterator[tuple[np.ndarray, ...]]:
        position = Position(terms.batch_size)
        reader: EpochReader | None = epoch.begin()
        while reader is not None:
            yield from read_chunks(reader, layout, terms, position, PAUSE_SECONDS)
            if not endless:
                return
            while not spool.is_next_known(reader, PAUSE_SECONDS):
                yield layout.no_rows()
                position.take(0)
            reader = epoch.go_on(reader, position)

    chunked = tf.data.Dataset.from_generator(chunks, output_signature=layout.signature)
    chunked = chunked.prefetch(PREFETCHED_CHUNKS).filter(graph(has_rows))
    dataset = _batches(chunked, layout, terms, epoch.end)
    # The rows belong to this worker only: a strategy that distributes the dataset must not shard them.
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    # Autotuning has nothing to tune here, and its thread can miss its stop signal. Deleting the iterator then blocks
    # until the thread wakes by itself, which takes seconds up to a minute.
    options.autotune.enabled = False
    dataset = dataset.with_options(options)
    if not endless:
        # Training loops read this to know how many steps the other workers have.
        dataset._tfspark_steps = Steps(terms.batch_size, terms.drop_remainder, lambda: epoch.rows_by_worker)
    return dataset


def has_rows(*arrays: tf.Tensor) -> tf.Tensor:
    """Return whether a chunk has rows."""
    return tf.reduce_any([tf.shape(a)[0] > 0 for a in arrays])


@dataclass(frozen=True)
class Steps:
    """The number of batches that each worker has in an epoch.

    Attributes
    ----------
    batch_size, drop_remainder
        As for `NodeContext.dataset`.
    rows_by_worker
        Returns the number of rows of this worker, and a list of the numbers of rows of all workers that have rows. They
        are known after this worker has read its rows.
    """

    batch_size: int
    drop_remainder: bool
    rows_by_worker: Callable[[], tuple[int, list[int]]]

    def joins(self) -> int:
        """Return how many more steps the worker with the most batches has than this one."""
        own, others = self.rows_by_worker()
        return max((self._steps(n) for n in others), default=0) - self._steps(own)

    def _steps(self, rows: int) -> int:
        return rows // self.batch_size if self.drop_remainder else -(-rows // self.batch_size)


def _batches(
    chunks: tf.data.Dataset, layout: Layout, terms: DatasetTerms, at_end: Callable[[], object] | None = None
) -> tf.data.Dataset:
    """Cut chunks into batches; `at_end` is called when the consumer asks for a batch after the last one."""
    dataset = chunks
    if layout.varies:
        dataset = dataset.flat_map(graph(lambda *arrays: layout.cut(arrays, terms.batch_size)))
        if terms.drop_remainder:
            dataset = dataset.filter(graph(lambda *t: tf.equal(rows_of(t[0]), terms.batch_size)))
    else:
        dataset = dataset.rebatch(terms.batch_size, drop_remainder=terms.drop_remainder)
    if at_end is not None:
        dataset = dataset.concatenate(_nothing(dataset.element_spec, layout, terms, at_end))
    return dataset.map(graph(lambda *t: layout.structure(t)))


def _nothing(
    spec: tuple[Any, ...], layout: Layout, terms: DatasetTerms, at_end: Callable[[], object]
) -> tf.data.Dataset:
    """Return an empty dataset with the element spec of the batches; reading it calls `at_end`."""

    def none() -> np.int64:
        at_end()
        return np.int64(0)

    def no_batches(_: tf.Tensor) -> tf.data.Dataset:
        count = tf.numpy_function(none, [], tf.int64)
        count.set_shape([])
        if layout.varies:
            batches = layout.cut([_zeros(s, 1) for s in layout.signature], terms.batch_size)
        elif terms.drop_remainder:
            # All batches have `batch_size` rows, so this template is made only when it is read: it is as large as a
            # batch.
            batches = tf.data.Dataset.range(1).map(graph(lambda _: tuple(_zeros(s, 0) for s in spec)))
        else:
            batches = tf.data.Dataset.from_tensors(tuple(_zeros(s, 0) for s in spec))
        return batches.take(count)

    return tf.data.Dataset.range(1).flat_map(graph(no_batches))


def _zeros(spec: tf.TensorSpec, unknown: int) -> tf.Tensor:
    return tf.zeros([unknown if d is None else d for d in spec.shape], spec.dtype)


class Epoch:
    """The epoch that the current iteration of the dataset reads: the next one, or all rows of a named feed."""

    def __init__(self, spool: Spool, columns: tuple[ColumnSpec, ...], named: Feed | None = None) -> None:
        self._spool, self._columns, self._named = spool, columns, named
        self._reader: EpochReader | None = None
        self._before: deque[tuple[EpochReader, int]] = deque()
        self._last: Feed | None = None

    @property
    def rows_by_worker(self) -> tuple[int, list[int]]:
        """Rows of the epoch that was read last: the number of this worker, and that of each worker that has rows."""
        assert self._last is not None
        return self._last.rows_here or 0, list(self._last.rows_by_node.values())

    def begin(self) -> EpochReader:
        """Start the next epoch, or the same epoch again if the last iteration did not reach its end."""
        reader = self._spool.named_epoch(self._named) if self._named else self._spool.next_epoch()
        if reader is None:
            raise FeedError(
                "The dataset was iterated more often than epochs were fed.",
                hint="Loop over ctx.epochs(), or pass the number of epochs that main reads to cluster.feed.",
            )
        self._before.clear()
        return self._read(reader)

    def go_on(self, reader: EpochReader, position: Position) -> EpochReader | None:
        """Start the epoch that follows the one of `reader`, in the same iteration; return ``None`` if there is none.

        The next epoch may belong to another feed. An epoch is complete when the consumer is well past it: if the
        iteration is abandoned before, the epoch is read again.
        """
        self._before.append((reader, position.taken))
        while self._before and self._before[0][1] <= position.passed:
            self._before.popleft()[0].complete()
        following = self._spool.next_epoch(reader)
        return None if following is None else self._read(following)

    def _read(self, reader: EpochReader) -> EpochReader:
        if reader.feed.columns != self._columns:
            now, before = (
                {c.label: _described(c) for c in columns} for columns in (reader.feed.columns, self._columns)
            )
            raise FeedError(
                f"This feed has other columns than the one the dataset was made for: {now}, before {before}.",
                hint="Make a dataset for each feed, or feed the same columns; shapes= makes arrays of one shape.",
            )
        self._reader, self._last = reader, reader.feed
        return reader

    def end(self) -> None:
        """Mark the current epoch, and all earlier epochs of the same iteration, as read to the end."""
        while self._before:
            self._before.popleft()[0].complete()
        if self._reader is not None:
            self._reader.complete()
            self._reader = None


def _described(c: ColumnSpec) -> str:
    return f"{c.dtype}{[None] * c.ragged + list(c.shape)}"
