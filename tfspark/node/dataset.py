"""From the spool to ``tf.data``: committed partitions become chunks of tensors, chunks become batches.

Rows are handled in Arrow and numpy chunk by chunk, never one by one. A chunk holds a whole number of batches, so that
batches do not end where partitions do; the seam between two partitions is the only part that is copied.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from tfspark.arrays import column_arrays
from tfspark.errors import ConfigurationError, FeedError
from tfspark.schema import ColumnSpec
from tfspark.transport.spool import EpochReader, Spool

logger = logging.getLogger(__name__)

CHUNK_BYTES = 8 << 20
"""Rows handed to tf.data at a time; more amortises the call into Python, less keeps memory low."""

SHUFFLE_CHUNK_BYTES = 64 << 20
"""Window within which rows are shuffled."""

PREFETCHED_CHUNKS = 2


def fed_dataset(
    spool: Spool,
    batch_size: int,
    *,
    columns: Sequence[str] | None,
    label: str | None,
    weight: str | None,
    shuffle: bool,
    seed: int | None,
    drop_remainder: bool,
    endless: bool = False,
) -> tf.data.Dataset:
    """Build the dataset of `NodeContext.dataset`, or, if `endless`, that of `NodeContext.stream`."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigurationError(f"batch_size must be a whole number of at least 1, not {batch_size!r}.")
    feed = spool.wait_for_feed()
    if feed is None:
        raise FeedError("Nothing was fed.", hint="Call cluster.feed(df) in the driver.")
    kept = _select(feed.columns, columns, label, weight)
    epoch = Epoch(spool, [c.name for c in feed.columns])
    chunk_bytes = SHUFFLE_CHUNK_BYTES if shuffle else CHUNK_BYTES

    def chunks_of(reader: EpochReader) -> Iterator[tuple[np.ndarray, ...]]:
        rng = np.random.default_rng((feed.seed if seed is None else seed, reader.epoch)) if shuffle else None
        for table in rechunk(reader, batch_size, chunk_bytes, shuffle):
            if rng is not None:
                table = table.take(pa.array(rng.permutation(table.num_rows)))
            yield tuple(a for c in kept for a in column_arrays(table.column(c.name), c))

    def chunks() -> Iterator[tuple[np.ndarray, ...]]:
        yield from chunks_of(epoch.begin())
        while endless and epoch.end() and spool.wait_for_feed() is not None:
            yield from chunks_of(epoch.begin())

    def end_of_epoch() -> Iterator[tuple[np.ndarray, ...]]:
        epoch.end()
        yield from ()

    signature = tuple(s for c in kept for s in _chunk_signature(c))
    dataset = tf.data.Dataset.from_generator(chunks, output_signature=signature)
    dataset = dataset.prefetch(PREFETCHED_CHUNKS)
    if any(c.ragged or c.sparse for c in kept):
        dataset = dataset.flat_map(_graph(lambda *arrays: _slice_batches(arrays, kept, batch_size)))
        if drop_remainder:
            dataset = dataset.filter(_graph(lambda *t: tf.equal(_rows_of(t[0]), batch_size)))
    else:
        dataset = dataset.rebatch(batch_size, drop_remainder=drop_remainder)
    dataset = dataset.map(_graph(lambda *t: _structure(t, kept, label, weight)))
    # The generator may run ahead of whoever reads, so its own end says nothing; the reader has reached the
    # end of the epoch when it asks for what comes after the last batch.
    empty = tf.data.Dataset.from_generator(end_of_epoch, output_signature=dataset.element_spec)
    dataset = dataset.concatenate(empty)
    # These rows are this worker's own: a strategy that distributes the dataset must not leave any of them out.
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)


class Epoch:
    """The epoch that the dataset's current iteration reads."""

    def __init__(self, spool: Spool, names: list[str]) -> None:
        self._spool, self._names = spool, names
        self._reader: EpochReader | None = None

    def begin(self) -> EpochReader:
        """Start the next epoch, or the same again if the last iteration was given up."""
        reader = self._spool.next_epoch()
        if reader is None:
            raise FeedError(
                "The dataset was iterated once more than epochs were fed.",
                hint="Pass as many epochs to cluster.feed as main trains, or loop over ctx.epochs().",
            )
        if [c.name for c in reader.feed.columns] != self._names:
            raise FeedError("This feed has other columns than the one the dataset was made for.")
        self._reader = reader
        return reader

    def end(self) -> bool:
        """Note that the reader of the dataset has reached the end of the epoch; true, for chaining."""
        if self._reader is not None:
            self._reader.complete()
            self._reader = None
        return True


def _select(
    fed: Sequence[ColumnSpec], columns: Sequence[str] | None, label: str | None, weight: str | None
) -> list[ColumnSpec]:
    by_name: dict[str, list[ColumnSpec]] = {}
    for c in fed:
        # A struct column is asked for by its own name or by that of one of its fields.
        for name in dict.fromkeys((c.name, c.keys[0])):
            by_name.setdefault(name, []).append(c)
    targets = [n for n in (label, weight) if n is not None]
    named = {id(c) for n in targets for c in by_name.get(n, [])}
    names = list(columns) if columns is not None else [c.name for c in fed if id(c) not in named]
    unknown = sorted(set(names + targets) - set(by_name))
    if unknown:
        raise ConfigurationError(f"No column named {unknown} is fed.", hint=f"The columns are {list(by_name)}.")
    if not names:
        raise ConfigurationError("No column is left for the features.", hint="Name some in columns=.")
    return list(dict.fromkeys(c for n in names + targets for c in by_name[n]))


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


def _chunk_signature(c: ColumnSpec) -> list[tf.TensorSpec]:
    dtype = tf.as_dtype(c.dtype)
    splits = tf.TensorSpec([None], tf.int64)
    if c.sparse:
        return [tf.TensorSpec([None], dtype), splits, splits]
    if c.ragged:
        return [tf.TensorSpec([None, *c.shape], dtype), *[splits] * c.ragged]
    return [tf.TensorSpec([None, *c.shape], dtype)]


def _graph(function: Any) -> Any:
    """Mark a function as graph code already: AutoGraph would only slow the start and write temporary files."""
    return tf.autograph.experimental.do_not_convert(function)


def _rows_of(t: Any) -> tf.Tensor:
    return t.nrows(out_type=tf.int32) if isinstance(t, tf.RaggedTensor) else tf.shape(t)[0]


def _slice_batches(arrays: tuple[tf.Tensor, ...], kept: Sequence[ColumnSpec], batch_size: int) -> tf.data.Dataset:
    """Cut a chunk with ragged columns into batches."""
    tensors: list[Any] = []
    rest = list(arrays)
    for c in kept:
        tensors += _ragged(c, rest)
    rows = tf.cast(_rows_of(tensors[0]), tf.int64)
    starts = tf.data.Dataset.range(0, rows, batch_size)
    return starts.map(_graph(lambda s: tuple(t[s : tf.minimum(s + batch_size, rows)] for t in tensors)))


def _ragged(c: ColumnSpec, rest: list[tf.Tensor]) -> list[Any]:
    """Take a column's arrays from `rest` and return tensors that can be cut by rows."""
    first = rest.pop(0)
    if c.sparse:
        indices, splits = rest.pop(0), rest.pop(0)
        return [tf.RaggedTensor.from_row_splits(t, splits, validate=False) for t in (first, indices)]
    splits = [rest.pop(0) for _ in range(c.ragged)]
    return [tf.RaggedTensor.from_nested_row_splits(first, splits, validate=False) if splits else first]


def _sparse(values: tf.RaggedTensor, indices: tf.RaggedTensor, size: int) -> tf.SparseTensor:
    where = tf.stack([values.value_rowids(), indices.values], axis=1)
    # Known as far as it can be: layers look at the last dimension.
    shape = tf.stack([values.nrows(), tf.constant(size, tf.int64)])
    return tf.SparseTensor(where, values.values, tf.ensure_shape(shape, [2]))


def _structure(tensors: tuple[Any, ...], kept: Sequence[ColumnSpec], label: str | None, weight: str | None) -> Any:
    features: dict[str, Any] = {}
    targets: dict[str, Any] = {}
    rest = list(tensors)
    for c in kept:
        tensor = rest.pop(0)
        if c.sparse:
            tensor = _sparse(tensor, rest.pop(0), c.shape[0])
        names = {c.name, c.keys[0]} & {label, weight} if len(c.keys) == 1 else {c.name} & {label, weight}
        if names:
            targets[str(names.pop())] = tensor
            continue
        level = features
        for key in c.keys[:-1]:
            level = level.setdefault(key, {})
        level[c.keys[-1]] = tensor
    return (features, *[targets[n] for n in (label, weight) if n is not None]) if targets else features
