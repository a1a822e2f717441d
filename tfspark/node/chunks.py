"""Reads the rows of an epoch from the spool, for ``tf.data``, in chunks of a whole number of batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow as pa

from tfspark.columns.spec import ColumnSpec
from tfspark.node.input_clock import InputState
from tfspark.node.layout import Layout
from tfspark.node.spool import EpochReader
from tfspark.settings import Settings

PREFETCHED_CHUNKS = 2

KEPT_BATCHES = 16
"""Batches that can be read again after the consumer got them, for a consumer that starts over."""


@dataclass(frozen=True)
class DatasetTerms:
    """The arguments of `NodeContext.dataset`, and the sizes of chunks, in bytes.

    Larger chunks need fewer calls of Python; smaller chunks need less memory. Rows are shuffled within a chunk.
    """

    batch_size: int
    columns: tuple[str, ...] | None = None
    label: str | None = None
    weight: str | None = None
    shuffle: bool = False
    seed: int | None = None
    drop_remainder: bool = False
    name: str = ""
    chunk_bytes: int = Settings.chunk_bytes
    shuffle_chunk_bytes: int = Settings.shuffle_chunk_bytes

    def layout(self, fed: Sequence[ColumnSpec]) -> Layout:
        """Return the layout of the selected columns."""
        return Layout(fed, self.columns, self.label, self.weight)

    def to_json(self) -> bytes:
        """Encode for another process."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, text: bytes) -> DatasetTerms:
        """Decode the output of `to_json`."""
        return msgspec.json.decode(text, type=cls)


class Position:
    """Number of rows that the consumer of a dataset has certainly read, computed from the chunks taken for it.

    Some of these chunks have not reached the consumer yet, and the consumer may read its last batches again.
    """

    def __init__(self, batch_size: int) -> None:
        self._kept = KEPT_BATCHES * batch_size
        # Besides the prefetched chunks, one chunk is being cut into batches and one has just been taken.
        self._ahead: deque[int] = deque(maxlen=PREFETCHED_CHUNKS + 2)
        self.taken = 0

    def take(self, rows: int) -> None:
        """Note that a chunk of `rows` rows was taken."""
        self._ahead.append(rows)
        self.taken += rows

    @property
    def passed(self) -> int:
        """Number of rows, from the first one, that will not be read again."""
        return max(0, self.taken - sum(self._ahead) - self._kept)


def read_chunks(
    reader: EpochReader,
    layout: Layout,
    terms: DatasetTerms,
    position: Position | None = None,
    pause: float | None = None,
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the rows of an epoch in chunks of a whole number of batches; the last chunk has the remaining rows.

    Pass the consumer's `position` if it has read other epochs before this one. With `pause`, a chunk without rows is
    yielded each time that it has waited for rows for so many seconds.
    """
    position = position or Position(terms.batch_size)
    before = position.taken
    seed = reader.feed.seed if terms.seed is None else terms.seed
    rng = np.random.default_rng((seed, reader.epoch)) if terms.shuffle else None
    chunk_bytes = terms.shuffle_chunk_bytes if terms.shuffle else terms.chunk_bytes
    for table in rechunk(reader, terms.batch_size, chunk_bytes, terms.shuffle, pause):
        if table is None:
            yield layout.no_rows()
            position.take(0)
            continue
        if rng is not None:
            table = table.take(pa.array(rng.permutation(table.num_rows)))
        # Shuffled rows are already a copy. Other rows share the memory of the spool, which later epochs read again.
        arrays = layout.arrays(table, copy=rng is None)
        reader.clock.enter(InputState.AHEAD)
        yield arrays
        position.take(table.num_rows)
        reader.passed(position.passed - before)
        reader.clock.enter(InputState.PREPARING)
    # The epoch ends when the consumer has read the last chunk, not when the last chunk is made.
    reader.clock.enter(InputState.AHEAD)


def rechunk(
    reader: EpochReader, batch_size: int, chunk_bytes: int, shuffle: bool, pause: float | None
) -> Iterator[pa.Table | None]:
    """Cut an epoch into tables of whole batches, of about `chunk_bytes` each; the last table has the remaining rows.

    Yield ``None`` for each `pause`.
    """
    pending: list[pa.RecordBatch] = []
    rows = nbytes = 0
    for partition in reader.partitions_ahead(shuffle, pause):
        if partition is None:
            yield None
            continue
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
