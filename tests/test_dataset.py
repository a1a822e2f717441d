"""Chunks of the spool's rows on their way to TensorFlow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tfspark.node.dataset import DatasetTerms, read_chunks
from tfspark.schema import ColumnSpec, arrow_schema
from tfspark.transport.spool import Feed, Spool

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
