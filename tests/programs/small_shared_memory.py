"""Add up ids that come through slots, where /dev/shm is what the caller has made it; say how they came, as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pyarrow as pa

import tfspark
from tfspark.spark.slot_rows import in_slots

QUIET = {"spark.ui.enabled": "false", "spark.log.level": "WARN", "spark.ui.showConsoleProgress": "false"}


def add_up(rows: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    from tfspark.columns.slots import batches_in_slots

    kept, ways = [], {"slot": 0, "socket": 0}

    def noted() -> Iterator[pa.RecordBatch]:
        for row in rows:
            ways["socket" if row["path"][0].as_py() is None else "slot"] += 1
            yield row

    for batch in batches_in_slots(noted(), pa.schema([("id", pa.int64())])):
        kept.append(batch)
    total = sum(int(b.column(0).to_numpy().sum()) for b in kept)
    yield pa.RecordBatch.from_pydict({"total": [total], "slot": [ways["slot"]], "socket": [ways["socket"]]})


if __name__ == "__main__":
    spark = tfspark.session("small shared memory", "local[1]", **QUIET)
    try:
        slots = in_slots(spark.range(0, 3_000_000, 1, 1))
        assert slots is not None
        (row,) = slots.mapInArrow(add_up, "total long, slot long, socket long").collect()
        print(
            json.dumps({"total": row.total, "by_slot": row.slot, "by_socket": row.socket}), file=sys.stdout, flush=True
        )
    finally:
        spark.stop()
