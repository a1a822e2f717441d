"""From the spool to ``tf.data``: committed partitions become chunks of tensors, chunks become batches.

Rows are handled in Arrow and numpy chunk by chunk, never one by one. A chunk holds a whole number of batches, so that
batches do not end where partitions do. It is a copy of the spool's rows, as TensorFlow may write over what it gets.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from tfspark.errors import ConfigurationError, FeedError
from tfspark.node.layout import Layout, graph, rows_of
from tfspark.schema import ColumnSpec
from tfspark.transport.input_clock import InputState
from tfspark.transport.spool import EpochReader, Feed, Spool

logger = logging.getLogger(__name__)

CHUNK_BYTES = 8 << 20
"""Rows handed to tf.data at a time; more amortises the call into Python, less keeps memory low."""

SHUFFLE_CHUNK_BYTES = 64 << 20
"""Window within which rows are shuffled."""

PREFETCHED_CHUNKS = 2


@dataclass(frozen=True)
class DatasetTerms:
    """What `NodeContext.dataset` was asked for."""

    batch_size: int
    columns: tuple[str, ...] | None = None
    label: str | None = None
    weight: str | None = None
    shuffle: bool = False
    seed: int | None = None
    drop_remainder: bool = False
    name: str = ""

    def layout(self, fed: Sequence[ColumnSpec]) -> Layout:
        """Return the layout of the columns asked for."""
        return Layout(fed, self.columns, self.label, self.weight)

    def to_json(self) -> bytes:
        """Encode for another process."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> DatasetTerms:
        """Decode what `to_json` made."""
        fields = json.loads(text)
        columns = fields.pop("columns")
        return cls(columns=None if columns is None else tuple(columns), **fields)


def read_chunks(reader: EpochReader, layout: Layout, terms: DatasetTerms) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield an epoch's rows in chunks of a whole number of batches; the last holds the rest."""
    seed = reader.feed.seed if terms.seed is None else terms.seed
    rng = np.random.default_rng((seed, reader.epoch)) if terms.shuffle else None
    chunk_bytes = SHUFFLE_CHUNK_BYTES if terms.shuffle else CHUNK_BYTES
    for table in rechunk(reader, terms.batch_size, chunk_bytes, terms.shuffle):
        if rng is not None:
            table = table.take(pa.array(rng.permutation(table.num_rows)))
        # What was taken in another order is a copy already; else these are the spool's rows, to be read again.
        arrays = layout.arrays(table, copy=rng is None)
        reader.clock.enter(InputState.AHEAD)
        yield arrays
        reader.clock.enter(InputState.PREPARING)
    # What was made lasts until the consumer has reached its end.
    reader.clock.enter(InputState.AHEAD)


def fed_dataset(spool: Spool, terms: DatasetTerms, *, endless: bool = False, remote: bool = False) -> tf.data.Dataset:
    """Build the dataset of `NodeContext.dataset`, or, if `endless`, that of `NodeContext.stream`.

    A `remote` one reads the spool of the process that runs it; see `tfspark/node/parameter_server.py`.
    """
    batch_size = terms.batch_size
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigurationError(f"batch_size must be a whole number of at least 1, not {batch_size!r}.")
    feed = spool.wait_for_named(terms.name) if terms.name else spool.wait_for_feed()
    if feed is None:
        what = f" under the name {terms.name!r}" if terms.name else ""
        raise FeedError(f"Nothing was fed{what}.", hint="Call cluster.feed(df) in the driver.")
    layout = terms.layout(feed.columns)
    if remote:
        from tfspark.node.parameter_server import remote_chunks

        return _batches(remote_chunks(layout, terms), layout, terms)
    epoch = Epoch(spool, [c.name for c in feed.columns], feed if terms.name else None)

    def chunks() -> Iterator[tuple[np.ndarray, ...]]:
        yield from read_chunks(epoch.begin(), layout, terms)
        while endless and epoch.end() and spool.wait_for_feed() is not None:
            yield from read_chunks(epoch.begin(), layout, terms)

    chunked = tf.data.Dataset.from_generator(chunks, output_signature=layout.signature)
    dataset = _batches(chunked, layout, terms, epoch.end)
    # These rows are this worker's own: a strategy that distributes the dataset must not leave any of them out.
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    # There is nothing to tune here, and the tuner's thread can miss the word to stop: deleting the iterator then
    # takes until it wakes by itself, a second after two, a minute after hours.
    options.autotune.enabled = False
    dataset = dataset.with_options(options)
    if not endless:
        # Whoever trains with other workers can tell how long these go on.
        dataset._tfspark_steps = Steps(terms.batch_size, terms.drop_remainder, lambda: epoch.rows_by_worker)
    return dataset


@dataclass(frozen=True)
class Steps:
    """How many batches each worker has in an epoch.

    Attributes
    ----------
    batch_size, drop_remainder
        As for `NodeContext.dataset`.
    rows_by_worker
        Returns this worker's rows, then those of all workers that have any; known when this worker's have been read.
    """

    batch_size: int
    drop_remainder: bool
    rows_by_worker: Callable[[], tuple[int, list[int]]]

    def joins(self) -> int:
        """Return for how many steps other workers go on when this one has read its rows."""
        own, others = self.rows_by_worker()
        return max((self._steps(n) for n in others), default=0) - self._steps(own)

    def _steps(self, rows: int) -> int:
        return rows // self.batch_size if self.drop_remainder else -(-rows // self.batch_size)


def _batches(
    chunks: tf.data.Dataset, layout: Layout, terms: DatasetTerms, at_end: Callable[[], object] | None = None
) -> tf.data.Dataset:
    """Cut chunks into batches; `at_end` is called when someone asks for what comes after the last of them."""
    dataset = chunks.prefetch(PREFETCHED_CHUNKS)
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
    """Return a dataset of batches like others, but without any, that calls `at_end` when it is read."""

    def none() -> np.int64:
        at_end()
        return np.int64(0)

    def no_batches(_: tf.Tensor) -> tf.data.Dataset:
        count = tf.numpy_function(none, [], tf.int64)
        count.set_shape([])
        if layout.varies:
            batches = layout.cut([_zeros(s, 1) for s in layout.signature], terms.batch_size)
        elif terms.drop_remainder:
            # All batches are full ones, so not even one is made.
            batches = tf.data.Dataset.range(1).map(graph(lambda _: tuple(_zeros(s, 0) for s in spec)))
        else:
            batches = tf.data.Dataset.from_tensors(tuple(_zeros(s, 0) for s in spec))
        return batches.take(count)

    return tf.data.Dataset.range(1).flat_map(graph(no_batches))


def _zeros(spec: tf.TensorSpec, unknown: int) -> tf.Tensor:
    return tf.zeros([unknown if d is None else d for d in spec.shape], spec.dtype)


class Epoch:
    """The epoch that the dataset's current iteration reads: the next one, or all rows of a feed with a name."""

    def __init__(self, spool: Spool, names: list[str], named: Feed | None = None) -> None:
        self._spool, self._names, self._named = spool, names, named
        self._reader: EpochReader | None = None
        self._last: Feed | None = None

    @property
    def rows_by_worker(self) -> tuple[int, list[int]]:
        """Rows of the epoch that was read last: this worker's, and those of each worker that has any."""
        assert self._last is not None
        return self._last.rows_here or 0, list(self._last.rows_by_node.values())

    def begin(self) -> EpochReader:
        """Start the next epoch, or the same again if the last iteration was given up."""
        reader = self._spool.named_epoch(self._named) if self._named else self._spool.next_epoch()
        if reader is None:
            raise FeedError(
                "The dataset was iterated once more than epochs were fed.",
                hint="Pass as many epochs to cluster.feed as main trains, or loop over ctx.epochs().",
            )
        if [c.name for c in reader.feed.columns] != self._names:
            raise FeedError("This feed has other columns than the one the dataset was made for.")
        self._reader, self._last = reader, reader.feed
        return reader

    def end(self) -> bool:
        """Note that the reader of the dataset has reached the end of the epoch; true, for chaining."""
        if self._reader is not None:
            self._reader.complete()
            self._reader = None
        return True


def rechunk(reader: EpochReader, batch_size: int, chunk_bytes: int, shuffle: bool) -> Iterator[pa.Table]:
    """Cut an epoch into tables of a whole number of batches, about `chunk_bytes` each; the last holds the rest."""
    pending: list[pa.RecordBatch] = []
    rows = nbytes = 0
    for partition in reader.partitions(shuffle):
        for batch in partition.batches:
            pending.append(batch)
            rows += batch.num_rows
            nbytes += batch.nbytes
            if nbytes < chunk_bytes or rows < batch_size:
                continue
            whole = rows - rows % batch_size
            table = pa.Table.from_batches(pending)
            for start, length in _pieces(whole, batch_size, chunk_bytes * rows // max(nbytes, 1)):
                yield table.slice(start, length)
            pending = table.slice(whole).to_batches()
            rows = sum(b.num_rows for b in pending)
            nbytes = sum(b.nbytes for b in pending)
    if rows:
        yield pa.Table.from_batches(pending)


def _pieces(whole: int, batch_size: int, wanted_rows: int) -> Iterator[tuple[int, int]]:
    step = max(batch_size, wanted_rows - wanted_rows % batch_size)
    for start in range(0, whole, step):
        yield start, min(step, whole - start)
